"""Better, worse, or no difference shown: a table of comparisons judged together.

The p-value adjusted after Holm alone decides, at 0.05; `words.decides` says so on a page. The
intervals are plain ones, each for its row alone: an interval may leave out 0 where no difference
is shown, while every difference shown has an interval that leaves out 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from math import isnan

from visweep.analysis.statistics import holm
from visweep.analysis.statistics.comparison import Comparison, Missing
from visweep.analysis.statistics.paired import paired_test
from visweep.analysis.statistics.power import LEVEL, detectable, seeds_needed


class Verdict(StrEnum):
    """What a row comes to."""

    BETTER = "better"
    WORSE = "worse"
    NO_DIFFERENCE = "no difference shown"
    NO_SCATTER = "no scatter measured"
    """Every pair differs by the same amount, other than 0: a t-test has nothing to compare the
    effect with, and more seeds are needed."""
    NOT_ENOUGH_RUNS = "not enough runs"
    """Fewer than two pairs."""


@dataclass(frozen=True)
class Row:
    """A comparison judged; lengths in points, None where there is too little to tell.

    Attributes:
        change: the name of the comparison.
        seeds: of the pairs that were used, ascending.
        missing: the pairs that were left out, and why.
        effect: mean of changed less baseline; of one pair, its difference.
        scatter: standard deviation of the paired differences; 0 where all are equal.
        interval: plain 95 % interval of the effect over seeds.
        p: of the two-sided paired t-test; 1 where all differences are 0.
        adjusted: the same after Holm, over all rows of the table, judged or not.
        verdict: by `adjusted` alone.
        detectable: smallest effect that this many seeds would have shown with a power of 80 %,
            had the scatter been the one measured.
        needed: how many seeds the effect that the table aims at would need here, by the scatter
            of this row alone.
    """

    change: str
    seeds: tuple[int, ...]
    missing: tuple[Missing, ...]
    effect: float | None
    scatter: float | None
    interval: tuple[float, float] | None
    p: float | None
    adjusted: float | None
    verdict: Verdict
    detectable: float | None
    needed: int | None = None


@dataclass(frozen=True)
class Verdicts:
    """A table of comparisons judged together.

    Changes scatter unlike each other: one that makes training collapse with some seeds may scatter
    ten times as much as the others, and would decide any mean over the rows. So the number of
    seeds is each row's own, and the median row speaks for the table.

    Attributes:
        rows: in the order of the comparisons.
        aim: size of effect that the numbers of seeds are for, in points.
    """

    rows: tuple[Row, ...]
    aim: float

    @property
    def median(self) -> Row | None:
        """The row in the middle by its scatter, of two the one with more; None where no row
        has any.

        Rows without scatter are left out: equal differences say that something was not varied,
        not that seeds do not matter.
        """
        varied = sorted(
            (row for row in self.rows if row.scatter), key=lambda row: row.scatter or 0
        )
        return varied[len(varied) // 2] if varied else None


@dataclass(frozen=True)
class _Measured:
    """A row before its neighbours are looked at; NaN where there is nothing."""

    pairs: int
    effect: float = float("nan")
    scatter: float = float("nan")
    low: float = float("nan")
    high: float = float("nan")
    p: float = float("nan")


def judge(comparisons: Sequence[Comparison], aim: float = 1.0) -> Verdicts:
    """Judge the comparisons of one table.

    Everything that was looked for belongs in one table: dividing it, or leaving rows out once
    their results are known, makes false verdicts likelier than promised.

    Args:
        comparisons: the rows.
        aim: the size of effect, in points, to tell the number of seeds for.

    Raises:
        ValueError: the aim is not above 0.
    """
    if not aim > 0:
        raise ValueError("the effect sought is larger than 0")
    measured = [_measure(comparison) for comparison in comparisons]
    adjusted = holm.adjust([each.p for each in measured]).tolist()
    rows = tuple(
        _row(comparison, each, after, len(measured), aim)
        for comparison, each, after in zip(comparisons, measured, adjusted, strict=True)
    )
    return Verdicts(rows, aim)


def _measure(comparison: Comparison) -> _Measured:
    differences = [100 * (after - before) for before, after in comparison.pairs.values()]
    if not differences:
        return _Measured(0)
    if len(differences) == 1:
        return _Measured(1, effect=differences[0])
    test = paired_test(differences)
    numbers = (test.effect, test.scatter, test.low, test.high, test.p)
    return _Measured(len(differences), *(float(number) for number in numbers))


def _row(
    comparison: Comparison, measured: _Measured, adjusted: float, rows: int, aim: float
) -> Row:
    varied = measured.scatter > 0
    return Row(
        change=comparison.change,
        seeds=tuple(comparison.pairs),
        missing=comparison.missing,
        effect=_known(measured.effect),
        scatter=_known(measured.scatter),
        interval=None if isnan(measured.low) else (measured.low, measured.high),
        p=_known(measured.p),
        adjusted=_known(adjusted),
        verdict=_verdict(measured, adjusted),
        detectable=detectable(measured.scatter, measured.pairs, rows) if varied else None,
        needed=seeds_needed(aim, measured.scatter, rows) if varied else None,
    )


def _verdict(measured: _Measured, adjusted: float) -> Verdict:
    if measured.pairs < 2:
        return Verdict.NOT_ENOUGH_RUNS
    if isnan(adjusted):
        return Verdict.NO_SCATTER
    if adjusted >= LEVEL:
        return Verdict.NO_DIFFERENCE
    return Verdict.BETTER if measured.effect > 0 else Verdict.WORSE


def _known(number: float) -> float | None:
    return None if isnan(number) else number
