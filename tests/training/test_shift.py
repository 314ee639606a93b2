"""What shifts do to a model, against plain computations with NumPy and one image at a time."""

from __future__ import annotations

import json
from math import sqrt

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from visweep import models
from visweep.config import ConvNetConfig, ModelConfig, ViTConfig
from visweep.data.dataset import Dataset, Split
from visweep.data.resident import ResidentData, to_device
from visweep.draws import Draws
from visweep.models.layers import initialise
from visweep.training.features import features, strides_of
from visweep.training.shift import (
    DIRECTIONS,
    FARTHEST,
    Layer,
    RelativeError,
    Robustness,
    Shifts,
    interior,
    robustness,
    work,
)

CPU = torch.device("cpu")
CONVNET = ConvNetConfig(image_size=32, num_classes=4, widths=(4, 6), depths=(2, 1))
VIT = ViTConfig(image_size=32, num_classes=4, patch_size=8, embed_dim=8, depth=2, num_heads=2)
MODELS: dict[str, ModelConfig] = {
    "convnet": CONVNET,
    "vit": VIT,
    "class token": VIT.replace(class_token=True),
    "small patches": VIT.replace(patch_size=4, depth=1),
}


@pytest.fixture(scope="module")
def data() -> ResidentData:
    """Noise in a smooth frame: what moves in differs from what is there."""
    rng = np.random.default_rng(0)

    def split(count: int) -> Split:
        images = rng.integers(0, 256, (count, 1, 32, 32), dtype=np.uint8)
        return Split(images, rng.integers(0, 4, count))

    classes = tuple("abcd")
    return to_device(Dataset("noise", classes, split(50), split(13), "", may_flip=False), CPU)


@pytest.fixture(params=MODELS)
def config(request: pytest.FixtureRequest) -> ModelConfig:
    return MODELS[request.param]


def drawn(config: ModelConfig, seed: int = 0) -> models.ViT | models.ConvNet:
    model = models.build(config)
    initialise(model, Draws((seed,), CPU, ("init",)))
    return model.eval()


def shifted(images: np.ndarray, down: int, right: int) -> np.ndarray:
    """The same, moved pixel by pixel; elsewhere black."""
    moved = np.zeros_like(images)
    height, width = images.shape[-2:]
    for row in range(height):
        for column in range(width):
            if 0 <= row - down < height and 0 <= column - right < width:
                moved[..., row, column] = images[..., row - down, column - right]
    return moved


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    """Both (channels, values)."""
    spread = ((expected - expected.mean(1, keepdims=True)) ** 2).sum()
    return sqrt(((found - expected) ** 2).sum() / spread)


def test_images_are_moved_and_what_moves_in_is_black(data: ResidentData) -> None:
    shifts = Shifts(data.val.images[:3], 5)
    pixels = data.val.images[:3].numpy()
    for distance in (0, 2, 5):
        for down, right in DIRECTIONS:
            expected = shifted(pixels, distance * down, distance * right)
            assert np.array_equal(shifts.by(distance, (down, right)).numpy(), expected)


def test_what_is_heard_on_the_way_adds_up(config: ModelConfig, data: ResidentData) -> None:
    heard: list[int] = []
    robustness([drawn(config), drawn(config, 1)], config, data, heard.append)
    assert sum(heard) == 2 * work(config, data)
    assert all(0 < images <= len(data.val) for images in heard)


def test_accuracy_and_pooled_features_by_hand(config: ModelConfig, data: ResidentData) -> None:
    model = drawn(config)
    found = robustness([model], config, data)
    assert found.pixels == tuple(range(FARTHEST + 1))
    pixels, labels = data.val.images.numpy(), data.val.labels.numpy()
    plain = features(model, data, data.val.images).pooled.double().numpy()
    for distance in (0, 1, 3, 8):
        right, pooled = [], []
        for down, across in DIRECTIONS:
            moved = torch.from_numpy(shifted(pixels, distance * down, distance * across))
            seen = features(model, data, moved)
            right.append(np.mean(seen.logits.argmax(1).numpy() == labels))
            pooled.append(seen.pooled.double().numpy())
        assert found.accuracy[distance] == pytest.approx(np.mean(right))
        expected = relative(np.concatenate(pooled).T, np.concatenate([plain] * 8).T)
        assert found.invariance[distance] == pytest.approx(expected, rel=1e-5, abs=1e-12)
    assert found.invariance[0] == 0.0
    assert found.invariance[3] > 0.01


def test_equivariance_by_hand(config: ModelConfig, data: ResidentData) -> None:
    model = drawn(config)
    found = {layer.name: layer for layer in robustness([model], config, data).layers}
    strides = strides_of(config)
    assert list(found) == list(strides)
    plain = features(model, data, data.val.images, maps=True).maps
    for name, stride in strides.items():
        cells = 32 // stride
        assert plain[name].shape[2:] == (cells, cells)
        inner = range(cells // 4, cells - cells // 4)
        for distance, error in ((stride, found[name].error), (8, found[name].far_error)):
            moved_cells, their_origins = [], []
            for down, right in DIRECTIONS:
                pixels = shifted(data.val.images.numpy(), distance * down, distance * right)
                moved = features(model, data, torch.from_numpy(pixels), maps=True).maps[name]
                for row in inner:
                    for column in inner:
                        y, x = row - down * distance // stride, column - right * distance // stride
                        if 0 <= y < cells and 0 <= x < cells:
                            moved_cells.append(moved[:, :, row, column].double().numpy())
                            their_origins.append(plain[name][:, :, y, x].double().numpy())
            expected = relative(np.concatenate(moved_cells).T, np.concatenate(their_origins).T)
            assert error == pytest.approx(expected, rel=1e-5)


def test_a_convolution_is_equivariant_and_patches_are_but_for_their_positions(
    data: ResidentData,
) -> None:
    convnet, vit = drawn(CONVNET), drawn(VIT)
    by_layer = {layer.name: layer.error for layer in robustness([convnet], CONVNET, data).layers}
    assert by_layer["stem"] < 1e-5
    assert by_layer["block 1"] < 1e-5  # it sees no further than the margin
    patches = robustness([vit], VIT, data).layers[0]
    assert patches.name == "embedding"
    assert patches.error > 0.01
    with torch.no_grad():
        vit.embedding.position.zero_()
    blind = robustness([vit], VIT, data)
    assert blind.layers[0].error < 1e-5
    assert blind.layers[1].error > 1e-3  # what moved out is seen from everywhere


def test_a_map_without_room_is_left_out(data: ResidentData) -> None:
    whole = VIT.replace(patch_size=32, depth=1)
    assert robustness([drawn(whole)], whole, data).layers == ()
    halves = VIT.replace(patch_size=16, depth=1)
    layers = robustness([drawn(halves)], halves, data).layers
    assert [(layer.name, layer.stride) for layer in layers] == [("embedding", 16), ("block 1", 16)]
    assert all(layer.far_error is None for layer in layers)  # 8 pixels are half a cell


def test_of_several_models_it_is_the_mean(data: ResidentData) -> None:
    one, other = drawn(CONVNET, 0), drawn(CONVNET, 1)
    alone = [robustness([model], CONVNET, data) for model in (one, other)]
    both = robustness([one, other], CONVNET, data)
    assert alone[0] != alone[1]
    for name in ("accuracy", "invariance"):
        expected = np.mean([getattr(each, name) for each in alone], axis=0)
        assert getattr(both, name) == pytest.approx(expected)
    for index, layer in enumerate(both.layers):
        assert layer.error == pytest.approx(np.mean([a.layers[index].error for a in alone]))


def test_a_layer_whose_features_vary_in_one_model_only_is_that_models(data: ResidentData) -> None:
    varied, blank = drawn(CONVNET, 0), drawn(CONVNET, 1)
    for parameter in blank.stem.parameters():
        torch.nn.init.zeros_(parameter)
    alone = [robustness([model], CONVNET, data).layers for model in (varied, blank)]
    missing = {layer.name for layer in alone[0]} - {layer.name for layer in alone[1]}
    assert "stem" in missing
    for models_ in ([varied, blank], [blank, varied]):
        layers = robustness(models_, CONVNET, data).layers
        assert [layer.name for layer in layers] == [layer.name for layer in alone[0]]
        assert layers[0] == alone[0][0]


def test_what_a_trial_keeps_is_json() -> None:
    layers = (Layer("stem", 1, 0.25, 0.5), Layer("block 1", 16, 0.75))
    kept = Robustness((0, 1), (0.5, 0.25), (0.0, 0.125), layers).to_json()
    assert json.loads(json.dumps(kept)) == {
        "pixels": [0, 1],
        "accuracy": [0.5, 0.25],
        "invariance": [0.0, 0.125],
        "equivariance": {"stem": 0.25, "block 1": 0.75},
        "strides": {"stem": 1, "block 1": 16},
        "far": {"pixels": 8, "equivariance": {"stem": 0.5}},
    }


def test_the_maps_are_those_between_the_blocks(config: ModelConfig, data: ResidentData) -> None:
    model = drawn(config)
    images = data.val.images[:4]
    x = data.normalise(images, torch.float32)[None]
    with torch.no_grad():
        if isinstance(model, models.ViT):
            x = model.embedding(x)
        else:
            x = model.stem_norm(model.stem(x[0])).relu()
        expected = [x]
        for block in model.blocks:
            x = block(x, None) if isinstance(model, models.ViT) else block(x)
            expected.append(x)
        logits = model(data.normalise(images, torch.float32)[None])[0]
    found = features(model, data, images, maps=True)
    assert torch.equal(found.logits, logits)
    assert torch.equal(model.head(found.pooled[None])[0], logits)
    for seen, out in zip(found.maps.values(), expected, strict=True):
        assert torch.equal(flat(seen, model), flat(out, model))
    assert not features(model, data, images).maps
    hooked = [m for m in model.modules() if m._forward_hooks or m._forward_pre_hooks]
    assert not hooked


def flat(features: Tensor, model: nn.Module) -> Tensor:
    """(B, places, D)."""
    if isinstance(model, models.ViT) and features.shape[0] == 1:
        return features[0][:, int(model.class_token) :]
    return features.flatten(2).transpose(1, 2)


@given(
    size=st.integers(1, 12),
    down=st.integers(-12, 12),
    right=st.integers(-12, 12),
    seed=st.integers(0),
)
def test_the_interior_holds_what_moved_along(size: int, down: int, right: int, seed: int) -> None:
    plain = np.random.default_rng(seed).random((2, 3, size, size)) + 1.0
    moved = shifted(plain, down, right)
    here, there = interior(torch.from_numpy(moved), torch.from_numpy(plain), (down, right))
    assert torch.equal(here, there)
    room = [len(range(max(size // 4, d), min(size - size // 4, size + d))) for d in (down, right)]
    assert list(here.shape[2:]) == room


def test_the_relative_error() -> None:
    generator = torch.Generator().manual_seed(0)
    one, other = torch.randn(2, 4000, 3, 5, generator=generator)
    same, unrelated, nothing = RelativeError(), RelativeError(), RelativeError()
    same.add(one + 7.0, one + 7.0)
    assert same.relative() == 0.0
    for found, expected in zip(one.split(1000), other.split(1000), strict=True):
        unrelated.add(found + 7.0, expected + 7.0)
    assert unrelated.relative() == pytest.approx(sqrt(2), abs=0.02)
    assert nothing.relative() is None
    nothing.add(one, torch.full_like(one, 0.1))
    assert nothing.relative() is None
