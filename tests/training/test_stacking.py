"""Promise 3: a replica's training depends on its configuration and seed alone."""

import pytest
import torch

from visweep.config import ModelConfig, TrainConfig
from visweep.data.dataset import Dataset
from visweep.training.fit import fit
from visweep.training.results import FitResult


def state(result: FitResult, k: int) -> dict[str, torch.Tensor]:
    """Weights and running statistics of one replica."""
    return {name: value[k] for name, value in result.model.state_dict().items()}


def gap(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert one.keys() == other.keys()
    return max((one[name] - other[name]).abs().max().item() for name in one)


@pytest.fixture
def exact(train: TrainConfig) -> TrainConfig:
    """20 steps in float64."""
    return train.replace(precision="float64")


@pytest.mark.parametrize("seeds", [(3, 5, 8), (8, 3), (5, 0, 8, 1)], ids=str)
def test_stacked_equals_alone(
    model: ModelConfig, exact: TrainConfig, quadrants: Dataset, seeds: tuple[int, ...]
) -> None:
    assert exact.epochs * (len(quadrants.train) // exact.batch_size) == 20
    stacked = fit(model, exact.replace(seeds=seeds), quadrants, device="cpu")
    for k, seed in enumerate(seeds):
        alone = fit(model, exact.replace(seeds=(seed,)), quadrants, device="cpu")
        assert gap(state(stacked, k), state(alone, 0)) < 1e-8
        assert stacked.train_accuracy[k] == alone.train_accuracy[0]
        for ours, theirs in zip(stacked.history, alone.history, strict=True):
            assert ours.train_loss[k] == pytest.approx(theirs.train_loss[0], abs=1e-8)
            assert ours.val_loss[k] == pytest.approx(theirs.val_loss[0], abs=1e-8)
            assert ours.val_accuracy[k] == theirs.val_accuracy[0]


def test_seeds_differ_from_each_other(
    model: ModelConfig, exact: TrainConfig, quadrants: Dataset
) -> None:
    result = fit(model, exact.replace(seeds=(3, 5, 8), epochs=1), quadrants, device="cpu")
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert gap(state(result, i), state(result, j)) > 1e-2


def test_the_same_seed_gives_the_same_bits(
    model: ModelConfig, train: TrainConfig, quadrants: Dataset
) -> None:
    torch.manual_seed(1)
    one = fit(model, train, quadrants, device="cpu")
    torch.manual_seed(2)
    two = fit(model, train, quadrants, device="cpu")
    for k in range(2):
        assert gap(state(one, k), state(two, k)) == 0.0
