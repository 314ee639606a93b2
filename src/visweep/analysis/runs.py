"""The runs of a study of arms: which of its trials they are, and what each came to."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from optuna.trial import FrozenTrial, TrialState

from visweep.analysis.statistics.comparison import NoResult
from visweep.storage.replicates import seeds_of
from visweep.storage.specification import ARM, SEED

_STANDS = (
    TrialState.COMPLETE,
    TrialState.PRUNED,
    TrialState.FAIL,
    TrialState.RUNNING,
    TrialState.WAITING,
)


def is_ours(trial: FrozenTrial) -> bool:
    """Whether visweep ran it; of what other tools add to a study nobody knows what was trained."""
    attributes = trial.user_attrs
    # One that was lost with its worker says only how it ended.
    failed = trial.state == TrialState.FAIL and "ended" in attributes
    return failed or "provenance" in attributes


def by_seed(
    trials: Sequence[FrozenTrial], arm: str, states: Collection[TrialState]
) -> dict[int, FrozenTrial]:
    """The runs of an arm, by ascending seed: one of each, however often it was trained.

    A run that failed may have been run again, and copies of a study may have trained the same:
    what completed stands before what was pruned, and that before what failed. Of several of one
    state it is the one with the lowest number, so that no value decides.

    Args:
        trials: of the study.
        arm: its name.
        states: that count.
    """
    own = [
        trial
        for trial in trials
        if trial.params.get(ARM) == arm
        and SEED in trial.params
        and trial.state in states
        and is_ours(trial)
        and not seeds_of(trial)
    ]
    own.sort(key=lambda t: (_STANDS.index(t.state), t.number), reverse=True)
    found = {int(trial.params[SEED]): trial for trial in own}
    return {seed: found[seed] for seed in sorted(found)}


def accuracy_of(trial: FrozenTrial) -> float | NoResult:
    """The validation accuracy of a run that ended, a fraction; or why it has none."""
    if trial.state == TrialState.COMPLETE:
        value = trial.value
        if value is not None and 0 <= value <= 1:
            return float(value)
        return NoResult("its value is no accuracy")
    ended = str(trial.user_attrs.get("ended", "")).strip()
    return NoResult(ended or trial.state.name.lower())
