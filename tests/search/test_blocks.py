"""A space of the user's that searches the type of a ViT's blocks."""

from __future__ import annotations

from typing import Any, get_args

import pytest
from optuna.distributions import CategoricalDistribution, IntDistribution

from visweep.config import TrainConfig, ViTBlock, ViTConfig
from visweep.data.resident import ResidentData
from visweep.errors import UsageError
from visweep.search.duplicates import trained_as
from visweep.search.packing import make_worker
from visweep.search.spaces import check_space
from visweep.search.trainer import SharedTrainer
from visweep.training.fit import fit
from visweep.training.passes import Pass

SPACE = {
    "block": CategoricalDistribution(get_args(ViTBlock)),
    "depth": IntDistribution(1, 2),
}


def test_trials_of_equal_blocks_share_a_pass_and_each_is_as_if_alone(
    sweep: Any, images: ResidentData, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[list[str]] = []
    pieces = Pass.pieces

    def watched(self: Pass, numbers: Any) -> Any:
        passes.append([member.model.block for member in self.members])
        return pieces(self, numbers)

    monkeypatch.setattr(Pass, "pieces", watched)
    made = sweep(8, space=SPACE, duplicates="skip", train={"precision": "float64"})
    made.worker = make_worker(made.opened, SharedTrainer(images), made.heard, made.interrupt, 4)
    made.run()
    monkeypatch.undo()

    assert made.states == ["COMPLETE"] * 8
    assert all(len(set(blocks)) == 1 for blocks in passes)
    assert max(map(len, passes)) > 1
    assert {trial.params["block"] for trial in made.trials} == set(get_args(ViTBlock))
    for trial in made.trials:
        model, train = trained_as(made.opened.specification, trial)
        alone = fit(model, train, images)
        assert model.block == trial.params["block"]
        assert list(trial.intermediate_values.values()) == [
            result.mean_val_accuracy for result in alone.history
        ]


def test_an_unknown_one_is_refused_before_the_first_trial() -> None:
    check_space(SPACE, ViTConfig(), TrainConfig())
    with pytest.raises(UsageError) as refused:
        check_space(
            {"block": CategoricalDistribution(["pre_norm", "late_norm"])},
            ViTConfig(),
            TrainConfig(),
        )
    assert str(refused.value) == (
        "--space: the point block=late_norm is invalid: block: 'late_norm' is not one of "
        "pre_norm, post_norm, single_residual, parallel"
    )
