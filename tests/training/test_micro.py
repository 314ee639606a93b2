"""A divided batch trains what the whole one does."""

import pytest
import torch

from visweep.config import ConvNetConfig, ModelConfig, TrainConfig, ViTConfig
from visweep.data.dataset import Dataset
from visweep.data.resident import ResidentData, to_device
from visweep.models.layers import ghosts
from visweep.training.micro import MicroBatches
from visweep.training.passes import Pass

CPU = torch.device("cpu")


@pytest.fixture
def data(many_quadrants: Dataset) -> ResidentData:
    return to_device(many_quadrants, CPU)


@pytest.fixture
def exact(train: TrainConfig) -> TrainConfig:
    """20 steps in float64 of three replicas; the ghosts of a batch have 32, 32 and 36 images."""
    return train.replace(epochs=4, batch_size=100, precision="float64", seeds=(3, 5, 8))


def divided(model: ModelConfig, train: TrainConfig, data: ResidentData, size: int) -> Pass:
    """A run in micro-batches of `size` images, after its last step."""
    run = Pass.of(model, train, data)
    run.micro.shrink_to(size)
    assert run.micro.size == size
    for epoch in range(1, train.epochs + 1):
        run.epoch([epoch])
    return run


@pytest.mark.parametrize("size", [pytest.param(1, marks=pytest.mark.slow), 13, 50])
def test_a_transformers_batch_is_divided_anywhere(
    vit: ViTConfig, exact: TrainConfig, data: ResidentData, size: int
) -> None:
    assert_the_same_is_trained(vit, exact, data, size)


@pytest.mark.parametrize("size", [36, 64])
def test_a_convnets_batch_is_divided_between_its_ghosts(
    convnet: ConvNetConfig, exact: TrainConfig, data: ResidentData, size: int
) -> None:
    assert_the_same_is_trained(convnet, exact, data, size)


def assert_the_same_is_trained(
    model: ModelConfig, train: TrainConfig, data: ResidentData, size: int
) -> None:
    whole, parts = Pass.of(model, train, data), divided(model, train, data, size)
    losses = [whole.epoch([epoch])[0].train_loss for epoch in range(1, train.epochs + 1)]
    assert len(losses) * whole.steps_per_epoch == 20
    torch.testing.assert_close(parts.flat.values, whole.flat.values, rtol=0, atol=1e-10)
    for one, other in zip(parts.model.buffers(), whole.model.buffers(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10)


@pytest.mark.parametrize("batch_size", [1, 20, 32, 64, 100, 128])
def test_halving_ends_at_what_cannot_be_divided(model: ModelConfig, batch_size: int) -> None:
    micro = MicroBatches(model, batch_size, CPU)
    assert (micro.parts, micro.size, micro.divided) == ([None], batch_size, False)
    sizes = [micro.size]
    while not micro.smallest:
        micro.halve()
        sizes.append(micro.size)
        taken = [part.images for part in micro.parts if part is not None]
        assert torch.cat(taken).sort().values.tolist() == list(range(batch_size))
        assert max(map(len, taken)) == micro.size
    whole = ghosts(batch_size) if isinstance(model, ConvNetConfig) else [range(1)]
    assert sizes[-1] == max(map(len, whole))
    assert sizes == sorted(set(sizes), reverse=True)
    micro.halve()
    assert micro.size == sizes[-1]
