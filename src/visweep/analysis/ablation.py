"""A study of arms as a table: what each change does, over seeds that both sides were trained with.

Nothing is left out silently: a run that has no result is named with the reason, and a run that is
still to come is missing, so that the table of a study under way is that of the seeds so far.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from visweep.analysis.overview import attribute
from visweep.analysis.runs import accuracy_of, by_seed
from visweep.analysis.statistics.comparison import Comparison, NoResult
from visweep.analysis.statistics.verdicts import Row, Verdicts, judge
from visweep.storage.specification import Arm, Specification

_ENDED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)


@dataclass(frozen=True)
class ArmResults:
    """What an arm's runs came to.

    Attributes:
        name: of the arm.
        arm: what was trained.
        accuracy: validation accuracy (a fraction) of each run that ended, or why it has none, by
            seed.
        loss: mean validation cross-entropy of those that have one, in nats, by seed.
        error: standard error of an accuracy by the choice of validation images, in points, by
            seed; of those that say.
    """

    name: str
    arm: Arm
    accuracy: Mapping[int, float | NoResult]
    loss: Mapping[int, float]
    error: Mapping[int, float]

    @property
    def values(self) -> list[float]:
        """The accuracies that there are, by seed."""
        found = (self.accuracy[seed] for seed in sorted(self.accuracy))
        return [value for value in found if not isinstance(value, NoResult)]

    @property
    def mean(self) -> float | None:
        return fmean(self.values) if self.values else None

    @property
    def scatter(self) -> float | None:
        """Standard deviation over seeds, as a fraction."""
        return stdev(self.values) if len(self.values) > 1 else None


@dataclass(frozen=True)
class AblationRow:
    """One change.

    Attributes:
        changed: the arm.
        baseline: what it is a change of.
        fields: what differs: by field, before and after.
        row: the comparison, judged.
        before, after: mean accuracy (a fraction) over the seeds that both sides have; None
            without any.
        loss_before, loss_after: mean loss likewise, over those that have one.
    """

    changed: ArmResults
    baseline: ArmResults
    fields: Mapping[str, tuple[Any, Any]]
    row: Row

    @property
    def before(self) -> float | None:
        return self._mean(self.baseline)

    @property
    def after(self) -> float | None:
        return self._mean(self.changed)

    @property
    def loss_before(self) -> float | None:
        return _mean_of(self.baseline.loss, self.row.seeds)

    @property
    def loss_after(self) -> float | None:
        return _mean_of(self.changed.loss, self.row.seeds)

    def _mean(self, side: ArmResults) -> float | None:
        known = {s: v for s, v in side.accuracy.items() if not isinstance(v, NoResult)}
        return _mean_of(known, self.row.seeds)


@dataclass(frozen=True)
class AblationTable:
    """A study of arms, judged.

    Attributes:
        arms: every arm with its results, in the study's order.
        rows: the changes, in the same order.
        verdicts: of the rows together.
        seeds: that any of its runs that ended was trained with.
    """

    arms: tuple[ArmResults, ...]
    rows: tuple[AblationRow, ...]
    verdicts: Verdicts
    seeds: tuple[int, ...]

    @property
    def baselines(self) -> list[ArmResults]:
        return [each for each in self.arms if each.arm.against is None]


def ablation_table(
    specification: Specification, trials: Sequence[FrozenTrial], aim: float = 1.0
) -> AblationTable:
    """The table of a study of arms, whatever of it has been trained so far.

    Args:
        specification: of the study.
        trials: of the study.
        aim: the size of effect, in points, that the number of seeds is told for.
    """
    results = {
        name: _results(name, arm, by_seed(trials, name, _ENDED))
        for name, arm in specification.arms.items()
    }
    changes = [each for each in results.values() if each.arm.against is not None]
    comparisons = [
        Comparison(each.name, results[str(each.arm.against)].accuracy, each.accuracy)
        for each in changes
    ]
    verdicts = judge(comparisons, aim)
    rows = tuple(
        AblationRow(
            changed=each,
            baseline=(baseline := results[str(each.arm.against)]),
            fields=each.arm.differences(baseline.arm),
            row=row,
        )
        for each, row in zip(changes, verdicts.rows, strict=True)
    )
    seeds = sorted({seed for each in results.values() for seed in each.accuracy})
    return AblationTable(tuple(results.values()), rows, verdicts, tuple(seeds))


def _results(name: str, arm: Arm, runs: Mapping[int, FrozenTrial]) -> ArmResults:
    accuracy = {seed: accuracy_of(run) for seed, run in runs.items()}
    return ArmResults(
        name, arm, accuracy, _numbers(runs, "val_loss"), _numbers(runs, "val_error_points")
    )


def _numbers(runs: Mapping[int, FrozenTrial], name: str) -> dict[int, float]:
    found = {seed: attribute(run, name) for seed, run in runs.items()}
    return {seed: value for seed, value in found.items() if value is not None}


def _mean_of(values: Mapping[int, float], seeds: Sequence[int]) -> float | None:
    found = [values[seed] for seed in seeds if seed in values]
    return fmean(found) if found else None
