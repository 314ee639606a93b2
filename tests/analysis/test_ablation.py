"""From the trials of a study of arms to its table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from visweep.analysis.ablation import ablation_table
from visweep.analysis.statistics.comparison import Missing, NoResult
from visweep.analysis.statistics.verdicts import Verdict
from visweep.config import DataConfig, TrainConfig, ViTConfig
from visweep.search.arms import changed
from visweep.storage.replicates import SEEDS
from visweep.storage.specification import Arm, Specification

VIT = ViTConfig(patch_size=16)
ARMS = {
    "vit": (baseline := Arm(model=VIT, train=TrainConfig())),
    **changed("vit", baseline, [{"depth": 8}, {"drop": 0.2, "lr": 1e-3}]),
}
SPACE: Mapping[str, Any] = {
    "arm": CategoricalDistribution(list(ARMS)),
    "seed": IntDistribution(0, 999),
}
SPECIFICATION = Specification(
    space=SPACE,
    data=DataConfig(),
    fingerprint="f",
    model=VIT,
    train=TrainConfig(),
    sampler="grid",
    pruner="none",
    seed=0,
    arms=ARMS,
)


def trial(
    arm: str, seed: int, value: float | None, *, ours: bool = True, **attributes: Any
) -> FrozenTrial:
    state = TrialState.COMPLETE if value is not None else TrialState.PRUNED
    state = attributes.pop("state", state)
    return create_trial(
        state=state,
        value=value,
        params={"arm": arm, "seed": seed},
        distributions=dict(SPACE),
        user_attrs={"provenance": {}, **attributes} if ours else attributes,
    )


def stored(trials: Iterable[FrozenTrial]) -> list[FrozenTrial]:
    """The same, numbered, through a real study."""
    study = optuna.create_study(direction="maximize")
    study.add_trials(list(trials))
    return study.get_trials()


def test_a_run_that_was_trained_twice_counts_once() -> None:
    """What completed stands, and of several the lowest number, whatever came out."""
    runs = [trial(arm, seed, 0.5 + seed / 100) for arm in ARMS for seed in range(3)]
    once = ablation_table(SPECIFICATION, stored(runs))
    again = [trial(arm, seed, value) for arm in ARMS for seed in range(3) for value in (0.9, 0.1)]
    ended = [trial("vit", seed, None, ended="diverged") for seed in range(3)]
    assert ablation_table(SPECIFICATION, stored([*ended, *runs, *again])) == once
    failed = trial("vit", 0, None, state=TrialState.FAIL, ended="failed: it broke")
    first = ablation_table(SPECIFICATION, stored([failed, *ended, failed])).arms[0]
    assert first.accuracy[0] == NoResult("diverged")


def test_rows_compare_the_same_seeds() -> None:
    values = {"vit": [0.50, 0.52, 0.54], "vit: depth=8": [0.60, 0.63, 0.64]}
    table = ablation_table(
        SPECIFICATION,
        stored(
            trial(arm, seed, value, val_loss=1.5 - value)
            for arm, of_seed in values.items()
            for seed, value in enumerate(of_seed)
        ),
    )
    deeper, other = table.rows
    assert deeper.changed.name == "vit: depth=8"
    assert deeper.fields == {"depth": (6, 8)}
    assert other.fields == {"drop": (0.0, 0.2), "lr": (2e-3, 1e-3)}
    assert deeper.before == pytest.approx(0.52)
    assert deeper.after == pytest.approx(1.87 / 3)
    assert deeper.loss_before == pytest.approx(0.98)
    assert deeper.row.effect == pytest.approx(100 * (1.87 / 3 - 0.52))
    assert deeper.row.verdict is Verdict.BETTER
    assert other.row.verdict is Verdict.NOT_ENOUGH_RUNS
    assert other.after is None
    assert table.seeds == (0, 1, 2)
    assert [each.name for each in table.baselines] == ["vit"]
    assert table.baselines[0].scatter == pytest.approx(0.02)


def test_what_has_no_result_is_named_and_leaves_its_pair_out() -> None:
    trials = [trial("vit", seed, 0.5 + seed / 100) for seed in range(4)]
    trials += [trial("vit: depth=8", seed, 0.6 + seed / 100) for seed in range(2)]
    trials += [trial("vit: depth=8", 2, None, ended="diverged")]
    trials += [trial("vit: depth=8", 3, None, ended="failed: ValueError", state=TrialState.FAIL)]
    table = ablation_table(SPECIFICATION, stored(trials))
    row = table.rows[0].row
    assert row.seeds == (0, 1)
    assert row.missing == (
        Missing(2, changed="diverged"),
        Missing(3, changed="failed: ValueError"),
    )
    # The means are those of the pairs, so that they differ by the effect.
    assert table.rows[0].before == pytest.approx(0.505)
    assert table.baselines[0].mean == pytest.approx(0.515)


def test_a_failed_run_that_was_made_good_counts() -> None:
    again = [
        trial("vit", 0, None, ended="failed: ValueError", state=TrialState.FAIL),
        trial("vit", 0, 0.5),
    ]
    for order in (again, again[::-1]):
        table = ablation_table(SPECIFICATION, stored(order))
        assert table.baselines[0].accuracy == {0: 0.5}


def test_runs_under_way_and_replicates_are_left_out() -> None:
    trials = [trial("vit", 0, 0.5), trial("vit", 0, 0.9, **{SEEDS: [77]})]
    trials += [trial("vit", 1, None, state=TrialState.RUNNING)]
    table = ablation_table(SPECIFICATION, stored(trials))
    assert table.baselines[0].accuracy == {0: 0.5}


def test_what_other_tools_add_is_left_out() -> None:
    trials = [trial("vit", 0, 0.5), trial("vit", 0, 0.9, ours=False)]
    trials += [trial("vit", 1, None, ours=False), trial("vit", 2, 0.7, ours=False)]
    table = ablation_table(SPECIFICATION, stored(trials))
    assert table.baselines[0].accuracy == {0: 0.5}


@pytest.mark.parametrize("value", [-0.01, 1.01, 93.0, float("inf")])
def test_a_value_that_is_no_accuracy_is_no_result(value: float) -> None:
    trials = [trial(arm, seed, 0.5) for arm in ("vit", "vit: depth=8") for seed in (0, 1)]
    table = ablation_table(SPECIFICATION, stored([*trials, trial("vit", 2, value)]))
    assert table.baselines[0].values == [0.5, 0.5]
    missing = Missing(2, baseline="its value is no accuracy", changed="not run")
    assert table.rows[0].row.missing == (missing,)


def test_a_study_without_any_run_has_rows() -> None:
    table = ablation_table(SPECIFICATION, [])
    assert [row.row.verdict for row in table.rows] == [Verdict.NOT_ENOUGH_RUNS] * 2
    assert table.seeds == ()
