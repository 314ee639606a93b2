"""A study read once: its trials by state, its best and baseline, what it cost.

Every attribute that visweep writes may be missing or of another type, since other tools make and
change studies too; what cannot be read is None, never an error.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from visweep.analysis.measure import Measure
from visweep.errors import UsageError
from visweep.storage.companions import companions, source_name
from visweep.storage.specification import BUDGET, OF, SPECIFICATION
from visweep.training.results import is_lost

STATE_WORDS = {
    TrialState.COMPLETE: "completed",
    TrialState.PRUNED: "pruned",
    TrialState.RUNNING: "running",
    TrialState.FAIL: "failed",
    TrialState.WAITING: "waiting",
}
"""What a page calls the states of trials."""

_MOST_EPOCHS = 10**9
"""An attribute of that name with a larger value is another tool's, and counts something else."""

COMPANIONS = ("ablation", "neighbours", "race", "pruned")
"""Kinds of studies that are made of another one and shown in its report; they end the names that
they are given, which say nothing."""


def attribute(trial: FrozenTrial, name: str) -> float | None:
    """A numeric user attribute, or None when it is missing, not finite or not a number."""
    value = trial.user_attrs.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if abs(value) <= sys.float_info.max else None


def curve(trial: FrozenTrial) -> list[tuple[int, float]]:
    """The finite intermediate values, by epoch."""
    reported = sorted(trial.intermediate_values.items())
    return [(epoch, value) for epoch, value in reported if math.isfinite(value)]


def epochs(trial: FrozenTrial) -> int:
    """How many epochs the trial ran."""
    counted = attribute(trial, "epochs")
    if counted is None or not 0 <= counted <= _MOST_EPOCHS:
        return len(trial.intermediate_values)
    return int(counted)


def was_pruned(trial: FrozenTrial) -> bool:
    """Whether it was stopped though it could have gone on."""
    return trial.state == TrialState.PRUNED and not is_lost(trial.user_attrs.get("ended"))


def shown_value(trial: FrozenTrial) -> float | None:
    """The objective of a completed trial; of any other the last value that it reported."""
    if trial.values is not None and len(trial.values) == 1 and math.isfinite(trial.values[0]):
        return float(trial.values[0])
    reported = curve(trial)
    if trial.state == TrialState.COMPLETE or not reported:
        return None
    return reported[-1][1]


def value_of(trial: FrozenTrial) -> float:
    """The value of a trial that is known to have one to show."""
    value = shown_value(trial)
    assert value is not None, f"trial {trial.number} has no value"
    return value


def in_state(trials: Sequence[FrozenTrial], *states: TrialState) -> list[FrozenTrial]:
    """The trials in one of these states that have a value to show."""
    return [t for t in trials if t.state in states and shown_value(t) is not None]


def ranked(trials: Sequence[FrozenTrial], measure: Measure) -> list[FrozenTrial]:
    """The completed trials, best first; the earlier one first where two are equal."""
    return sorted(
        in_state(trials, TrialState.COMPLETE),
        key=lambda trial: (-measure.key(value_of(trial)), trial.number),
    )


def parameter_names(trials: Sequence[FrozenTrial]) -> list[str]:
    """Every parameter of these trials, in the order of first appearance."""
    return list(dict.fromkeys(name for trial in trials for name in trial.distributions))


@dataclass(frozen=True)
class Cost:
    """Epochs of the finished trials.

    Attributes:
        spent: what they ran.
        unpruned: what they would have run, had none been pruned.
        seconds_saved: an estimate of the time not spent; None when no trial recorded its time.
    """

    spent: int
    unpruned: int
    seconds_saved: float | None

    @property
    def saved(self) -> float:
        """The share of epochs that pruning saved, in [0, 1]."""
        return max(0, self.unpruned - self.spent) / self.unpruned if self.unpruned else 0.0


@dataclass(frozen=True)
class Overview:
    """One study, as its report sees it.

    Attributes:
        name: the study's name.
        measure: what it optimises.
        trials: its trials that were begun or still wait; slots closed unused are left out.
        budget: how many trials it is to finish; None when no budget is stored.
        specification: what it was created with; empty when none is stored.
        where: options that tell other commands in which storage it lies.
        attributes: user attributes of the study.
        companions: of the studies beside it that were made of it one of each kind.
        others: names of further ones of these kinds.
        source_now: what the study that it was made of is called now, beside it; None where it is
            not there.
    """

    name: str
    measure: Measure
    trials: tuple[FrozenTrial, ...]
    budget: int | None
    specification: Mapping[str, Any]
    where: Sequence[str] = ()
    attributes: Mapping[str, Any] = field(default_factory=dict)
    companions: Mapping[str, Overview] = field(default_factory=dict)
    others: Sequence[str] = ()
    source_now: str | None = None

    def having(self, *states: TrialState) -> list[FrozenTrial]:
        """The trials in one of these states."""
        return [trial for trial in self.trials if trial.state in states]

    @property
    def finished(self) -> list[FrozenTrial]:
        return self.having(TrialState.COMPLETE, TrialState.PRUNED)

    @property
    def best(self) -> FrozenTrial | None:
        """The completed trial with the best finite objective."""
        return next(iter(ranked(self.trials, self.measure)), None)

    @property
    def baseline(self) -> FrozenTrial | None:
        """Trial 0 of a sweep; another tool's first trial is no baseline."""
        if not self.specification:
            return None
        return next((trial for trial in self.trials if trial.number == 0), None)

    @property
    def identity(self) -> Mapping[str, Any]:
        return mapping(self.specification, "identity")

    @property
    def compares_arms(self) -> bool:
        """Whether it compares given configurations over seeds, and does not search."""
        return bool(mapping(self.identity, "arms"))

    @property
    def source(self) -> str | None:
        """What the study that it was made of was called then; None where it was made of none."""
        name = mapping(self.attributes, OF).get("study")
        return None if name is None else str(name)

    @property
    def varied(self) -> list[str]:
        """The parameters that the study could choose: more than one value is possible."""
        single = {
            name: all(t.distributions[name].single() for t in self.trials if name in t.params)
            for name in parameter_names(self.trials)
        }
        return [name for name, is_single in single.items() if not is_single]

    @property
    def full_epochs(self) -> int | None:
        """Epochs of a trial that is not stopped early."""
        planned = mapping(self.identity, "train").get("epochs")
        if isinstance(planned, int) and planned > 0:
            return planned
        return max((epochs(trial) for trial in self.having(TrialState.COMPLETE)), default=None)

    @property
    def cost(self) -> Cost | None:
        """What the finished trials cost; None when nothing is known of their epochs."""
        full = self.full_epochs
        if not full or not self.finished:
            return None
        return Cost(
            spent=sum(epochs(trial) for trial in self.finished),
            unpruned=sum(
                max(full, epochs(t)) if was_pruned(t) else epochs(t) for t in self.finished
            ),
            seconds_saved=_seconds_saved(self.having(TrialState.PRUNED), full),
        )

    @property
    def period(self) -> tuple[datetime, datetime] | None:
        """When the first trial began and the last one ended, in UTC."""
        begun = [t.datetime_start for t in self.trials if t.datetime_start is not None]
        ended = [t.datetime_complete for t in self.trials if t.datetime_complete is not None]
        return (min(begun), max(ended)) if begun and ended else None


def _seconds_saved(pruned: Sequence[FrozenTrial], full: int) -> float | None:
    saved = None
    for trial in pruned:
        if not was_pruned(trial):
            continue
        seconds, ran = attribute(trial, "seconds"), epochs(trial)
        if seconds is not None and ran > 0:
            saved = (saved or 0.0) + seconds / ran * max(0, full - ran)
    return saved


def mapping(values: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """The entry as a mapping; empty when it is missing or something else."""
    entry = values.get(name)
    return entry if isinstance(entry, Mapping) else {}


def read(study: optuna.Study, where: Sequence[str] = ()) -> Overview:
    """Read a study.

    Args:
        study: what to read.
        where: options that tell other commands in which storage it lies.

    Raises:
        UsageError: the study has several objectives.
    """
    if len(study.directions) != 1:
        raise UsageError(
            f"study {study.study_name!r}: it has {len(study.directions)} objectives; "
            "a report is made of a study with one"
        )
    found = _read(study, where)
    return _with_those_beside(found, study) if found.specification else found


def _with_those_beside(found: Overview, study: optuna.Study) -> Overview:
    names = {kind: of for kind, of in companions(study).items() if kind in COMPANIONS}
    shown = {
        kind: optuna.load_study(study_name=names[kind][0], storage=study._storage)
        for kind in COMPANIONS
        if kind in names
    }
    return replace(
        found,
        companions={kind: _read(other, found.where) for kind, other in shown.items()},
        others=[name for of in names.values() for name in of[1:]],
        source_now=source_name(study),
    )


def _read(study: optuna.Study, where: Sequence[str]) -> Overview:
    attributes = study.user_attrs
    budget = attributes.get(BUDGET)
    specification = mapping(attributes, SPECIFICATION)
    return Overview(
        name=study.study_name,
        measure=_measure(study, is_sweep=bool(specification)),
        trials=tuple(t for t in study.get_trials(deepcopy=False) if not _never_begun(t)),
        budget=budget if isinstance(budget, int) and budget > 0 else None,
        specification=specification,
        where=tuple(where),
        attributes=attributes,
    )


def _measure(study: optuna.Study, is_sweep: bool) -> Measure:
    maximize = study.directions[0] == StudyDirection.MAXIMIZE
    if is_sweep:
        return Measure("validation accuracy", percent=True, maximize=maximize)
    names = study.metric_names
    name = names[0] if names else "objective"
    return Measure(name, percent=False, maximize=maximize, step="step")


def _never_begun(trial: FrozenTrial) -> bool:
    """A slot that a smaller budget closed: it failed without having started, for no reason."""
    is_unstarted = trial.state == TrialState.FAIL and trial.datetime_start is None
    return is_unstarted and "ended" not in trial.user_attrs
