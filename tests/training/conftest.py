"""Small data and small models for the trainer's tests; their child processes import this too."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from visweep.config import ConvNetConfig, ModelConfig, TrainConfig, ViTConfig
from visweep.data.dataset import Dataset, Split, fingerprint

VIT = ViTConfig(
    image_size=8,
    num_classes=4,
    patch_size=4,
    embed_dim=16,
    depth=2,
    num_heads=2,
    drop=0.1,
    attn_drop=0.2,
    class_token=True,
)
CONVNET = ConvNetConfig(image_size=8, num_classes=4, widths=(4, 8), depths=(1, 1), drop=0.1)
MODELS: dict[str, ModelConfig] = {"vit": VIT, "convnet": CONVNET}

# 5 steps an epoch, with 6 images left over.
TRAIN = TrainConfig(
    epochs=4,
    batch_size=16,
    lr=5e-3,
    weight_decay=0.05,
    warmup_epochs=1.0,
    label_smoothing=0.1,
    clip_norm=1.0,
    translate=1,
    flip=True,
    precision="float32",
    seeds=(3, 5),
)


def make_quadrants(train: int = 86, val: int = 40, seed: int = 0) -> Dataset:
    """Noise of 8×8 pixels with one bright quadrant, which is the class."""
    rng = np.random.default_rng(seed)

    def split(count: int) -> Split:
        labels = rng.integers(0, 4, count)
        images = rng.integers(0, 128, (count, 1, 8, 8), dtype=np.uint8)
        for image, label in zip(images, labels, strict=True):
            top, left = 4 * (label // 2), 4 * (label % 2)
            image[:, top : top + 4, left : left + 4] += 100
        return Split(images, labels)

    parts = split(train), split(val)
    return Dataset(
        name="quadrants",
        classes=("top left", "top right", "bottom left", "bottom right"),
        train=parts[0],
        val=parts[1],
        fingerprint=fingerprint(*(a for part in parts for a in (part.images, part.labels))),
        # Wrong of these classes, but then flips are trained with, too.
        may_flip=True,
    )


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Bits depend on the number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def quadrants() -> Dataset:
    return make_quadrants()


@pytest.fixture(scope="session")
def many_quadrants() -> Dataset:
    """Enough to learn from."""
    return make_quadrants(train=512, val=100)


@pytest.fixture(params=MODELS.values(), ids=MODELS)
def model(request: pytest.FixtureRequest) -> ModelConfig:
    """Each model in turn."""
    config: ModelConfig = request.param
    return config


@pytest.fixture
def vit() -> ViTConfig:
    return VIT


@pytest.fixture
def convnet() -> ConvNetConfig:
    return CONVNET


@pytest.fixture
def train() -> TrainConfig:
    return TRAIN
