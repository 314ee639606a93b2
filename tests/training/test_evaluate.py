"""Evaluation against a plain computation over all images at once."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from visweep import models
from visweep.config import ModelConfig, TrainConfig, ViTConfig
from visweep.data.dataset import Dataset, Split
from visweep.data.resident import to_device
from visweep.draws import Draws
from visweep.models.layers import initialise
from visweep.training.amounts import EVALUATED
from visweep.training.estimate import Calibration, Images, seconds_per_epoch
from visweep.training.evaluate import predict, tally

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def data() -> Dataset:
    """Noise in two channels; more validation images than one batch holds, with a short rest."""
    rng = np.random.default_rng(0)

    def split(count: int) -> Split:
        images = rng.integers(0, 256, (count, 2, 8, 8), dtype=np.uint8)
        images[:, 1] //= 3
        return Split(images, rng.integers(0, 4, count))

    parts = {"train": split(100), "val": split(EVALUATED["cpu"] + 88)}
    return Dataset(name="noise", classes=tuple("abcd"), fingerprint="", may_flip=False, **parts)


def drawn(config: ModelConfig, seeds: tuple[int, ...]) -> nn.Module:
    model = models.build(config, len(seeds))
    initialise(model, Draws(seeds, CPU, ("init",)))
    return model.double()


def plain_logits(model: nn.Module, data: Dataset, split: Split) -> Tensor:
    """From pixels in [0, 1], with the channels' moments taken over the training images."""
    mean = data.train.images.mean(axis=(0, 2, 3), keepdims=True)
    std = data.train.images.std(axis=(0, 2, 3), keepdims=True)
    images = torch.from_numpy((split.images - mean) / std)
    replicas = next(model.parameters()).shape[0]
    with torch.no_grad():
        logits: Tensor = model.eval()(torch.stack([images] * replicas))
    return logits


def test_loss_and_accuracy_are_torchs_over_all_images(model: ModelConfig, data: Dataset) -> None:
    stacked = drawn(model.replace(in_chans=2, drop=0.5), (0, 1))
    resident = to_device(data, CPU)
    found = tally(stacked, resident, resident.val, 2, torch.float64).read()
    assert stacked.training
    logits, labels = plain_logits(stacked, data, data.val), torch.from_numpy(data.val.labels)
    assert found.accuracy[0] != found.accuracy[1]
    for k in range(2):
        expected = F.cross_entropy(logits[k], labels).item()
        assert found.loss[k] == pytest.approx(expected, rel=1e-5)  # moments are in float32
        assert found.accuracy[k] == (logits[k].argmax(1) == labels).double().mean().item()


def test_its_batches_are_those_of_the_estimate(
    vit: ViTConfig, data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(EVALUATED, "cpu", 100)
    model, resident = drawn(vit.replace(in_chans=2), (0,)), to_device(data, CPU)
    sizes: list[int] = []
    model.register_forward_pre_hook(lambda _, given: sizes.append(given[0].shape[1]))
    tally(model, resident, resident.val, 1, torch.float64)
    assert sizes == [100, 100, 16]
    one_a_pass = Calibration(
        device="cpu",
        precision="float64",
        step={},
        evaluation={"passes": 1.0},
        memory={},
        held=0.0,
    )
    images = Images(train=100, val=len(data.val))
    assert seconds_per_epoch(vit, TrainConfig(), images, one_a_pass) == len(sizes)


def test_changes_nothing_in_the_model(model: ModelConfig, data: Dataset) -> None:
    stacked, resident = drawn(model.replace(in_chans=2), (0,)), to_device(data, CPU)
    before = {name: value.clone() for name, value in stacked.state_dict().items()}
    tally(stacked, resident, resident.val, 1, torch.float64)
    for name, value in stacked.state_dict().items():
        assert torch.equal(value, before[name])


def test_the_probe_is_spread_evenly_over_the_training_images(quadrants: Dataset) -> None:
    resident = to_device(quadrants, CPU)
    assert len(resident.probe) == len(quadrants.val)
    indices = np.round(np.linspace(0, len(quadrants.train) - 1, len(quadrants.val))).astype(int)
    assert np.array_equal(resident.probe.images.numpy(), quadrants.train.images[indices])
    assert np.array_equal(resident.probe.labels.numpy(), quadrants.train.labels[indices])


def test_predictions_are_float32_at_least(model: ModelConfig, quadrants: Dataset) -> None:
    stacked, resident = drawn(model, (0,)).float().eval(), to_device(quadrants, CPU)
    computed_in = []
    stacked.head.register_forward_hook(lambda module, args, out: computed_in.append(out.dtype))
    with torch.no_grad():
        half = predict(stacked, resident, resident.val.images, 1, torch.bfloat16)
        full = predict(stacked, resident, resident.val.images, 1, torch.float32)
    assert computed_in == [torch.bfloat16, torch.float32]
    assert half.dtype == full.dtype == torch.float32
    torch.testing.assert_close(half, full, rtol=0.05, atol=0.05)
