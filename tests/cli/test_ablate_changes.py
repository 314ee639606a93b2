"""Which changes of a winner are trained."""

from __future__ import annotations

from dataclasses import replace

from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from visweep.cli.ablate import CHANGES
from visweep.cli.companions import Source
from visweep.config import DataConfig, TrainConfig, ViTConfig
from visweep.storage.specification import Specification

SEARCH = Specification(
    space={
        "patch_size": CategoricalDistribution([4, 8, 16]),
        "depth": IntDistribution(2, 6),
        "drop": FloatDistribution(0.0, 0.3),
        "lr": FloatDistribution(1e-3, 1e-2, log=True),
    },
    data=DataConfig(),
    fingerprint="f",
    model=ViTConfig(patch_size=16, depth=4),
    train=TrainConfig(seeds=(3000, 3001)),
    sampler="tpe",
    pruner="none",
    seed=3,
)
SOURCE = Source(name="study", specification=SEARCH, trials=())
WINNER = {"patch_size": 4, "depth": 4, "drop": 0.1, "lr": 2e-3}


def test_each_parameter_goes_back_to_the_baseline_unless_it_is_there() -> None:
    assert CHANGES["baseline"](SOURCE, WINNER) == [{"patch_size": 16}, {"drop": 0.0}]
    assert CHANGES["baseline"](SOURCE, SEARCH.baseline()) == []


def test_each_parameter_goes_to_its_neighbours() -> None:
    changes = CHANGES["neighbours"](SOURCE, WINNER)
    assert [next(iter(change)) for change in changes] == [
        "patch_size", "depth", "depth", "drop", "drop", "lr", "lr",
    ]  # fmt: skip
    assert changes[:3] == [{"patch_size": 8}, {"depth": 3}, {"depth": 5}]


def test_seeds_are_none_that_the_winner_was_chosen_by() -> None:
    assert SOURCE.fresh_seed == 3002
    one = replace(SOURCE, specification=replace(SEARCH, train=TrainConfig()))
    assert one.fresh_seed == 1
