"""Runs of a change and of its baseline, paired by seed; what is missing stays in sight."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

NOT_RUN = "not run"
"""The reason for a seed that one side was given no run of."""


@dataclass(frozen=True)
class NoResult:
    """A run that was begun and has no final accuracy.

    Attributes:
        reason: why, as the page words it: `diverged`, `failed`, `pruned at epoch 3`.
    """

    reason: str

    def __post_init__(self) -> None:
        if not self.reason.strip():
            raise ValueError("a run without a result needs a reason")


@dataclass(frozen=True)
class Missing:
    """A pair that is left out.

    Attributes:
        seed: of the pair.
        baseline: why the baseline has no result; empty where it has one.
        changed: the same of the changed run.
    """

    seed: int
    baseline: str = ""
    changed: str = ""


Results = Mapping[int, float | NoResult]


@dataclass(frozen=True)
class Comparison:
    """One row of a table of verdicts.

    Pairs without both results are left out and named by `missing`. What remains is about runs that
    came to their end: a change that makes runs diverge is judged by its survivors, so that a page
    must show who is missing beside the verdict.

    Attributes:
        change: what was changed, as the row is called.
        baseline: final accuracy (fraction) of the unchanged run, or why there is none, by seed.
        changed: the same of the changed run.

    Raises:
        ValueError: an accuracy is not between 0 and 1. A run that came to NaN is a `NoResult`.
    """

    change: str
    baseline: Results
    changed: Results
    pairs: Mapping[int, tuple[float, float]] = field(init=False)
    """Baseline and changed accuracy of the seeds that have both, seeds ascending."""
    missing: tuple[Missing, ...] = field(init=False)
    """The other seeds of either side, ascending."""

    def __post_init__(self) -> None:
        pairs: dict[int, tuple[float, float]] = {}
        missing: list[Missing] = []
        for seed in sorted({*self.baseline, *self.changed}):
            before = _checked(self.baseline.get(seed, NoResult(NOT_RUN)))
            after = _checked(self.changed.get(seed, NoResult(NOT_RUN)))
            if isinstance(before, NoResult) or isinstance(after, NoResult):
                missing.append(Missing(seed, _reason(before), _reason(after)))
            else:
                pairs[seed] = before, after
        object.__setattr__(self, "pairs", pairs)
        object.__setattr__(self, "missing", tuple(missing))


def _checked(result: float | NoResult) -> float | NoResult:
    if not isinstance(result, NoResult) and not 0 <= result <= 1:
        raise ValueError(f"an accuracy is a fraction between 0 and 1, not {result}")
    return result


def _reason(result: float | NoResult) -> str:
    return result.reason if isinstance(result, NoResult) else ""
