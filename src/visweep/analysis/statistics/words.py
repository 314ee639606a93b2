"""Verdicts as sentences, numbers in points and unbroken."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from visweep import text
from visweep.analysis.measure import GAP, plural, points
from visweep.analysis.statistics.comparison import Missing
from visweep.analysis.statistics.verdicts import Row, Verdict, Verdicts

FINE = 0.1
"""Points: what lies nearer together than this is written with a second decimal."""

MOST = 100.0
"""Points by which accuracies can differ."""

FAR = 4
"""A row that needs so many times the seeds of the median row is named: its scatter is about twice
as large, which between rows that are alike a few runs seldom make it seem."""


def judged(row: Row) -> str:
    """`−0.8 points (−2.1 to +0.5): no difference shown; 5 seeds could have shown 1.9`.

    The pairs that were left out follow, with the reasons.
    """
    parts = [_found(row)]
    if row.verdict is Verdict.NO_DIFFERENCE and row.detectable is not None:
        parts.append(f"{plural(len(row.seeds), 'seed')} {_could_have_shown(row, row.detectable)}")
    if row.missing:
        verb = "is" if len(row.missing) == 1 else "are"
        parts.append(f"{text.listing([_missing(each) for each in row.missing])} {verb} left out")
    return "; ".join(parts)


def decides(verdicts: Verdicts) -> str:
    """Which of the two numbers of a row its verdict goes by, as a sentence for the page."""
    return (
        "The p-value alone decides a verdict: below 0.05 after Holm's adjustment for "
        f"{_all(len(verdicts.rows))}; an interval is a plain 95{GAP}% one for its row alone, so "
        "that it may leave out 0 where no difference is shown."
    )


def aim(verdicts: Verdicts) -> str:
    """The size of effect that the numbers of seeds are for: `1 point`."""
    return f"{verdicts.aim:.3g}{GAP}point{'' if verdicts.aim == 1 else 's'}"


def needed(verdicts: Verdicts) -> str:
    """How many seeds the effect that was asked for would need: in the median row, in the others,
    and by name in rows that need far more. Sentences; empty where no row can tell."""
    median = verdicts.median
    if median is None or median.needed is None or median.scatter is None:
        return ""
    numbers = [row.needed for row in verdicts.rows if row.needed is not None]
    near = [seeds for seeds in numbers if seeds < FAR * median.needed]
    where = ": the" if len(numbers) == 1 else " in the median row, whose"
    among = "" if min(near) == max(near) else f"; by the row, {min(near)} to {max(near)}"
    sentence = (
        f"To show an effect of {aim(verdicts)} in 4 of 5 studies would take about "
        f"{plural(median.needed, 'seed')}{where} paired differences scatter by "
        f"{median.scatter:.2g}{GAP}points{among}"
    )
    return f"{sentence}{_far_more(verdicts.rows, FAR * median.needed)}."


def _far_more(rows: Sequence[Row], least: int) -> str:
    """The rows that need so many seeds, or more."""
    named = [
        f"{row.needed:,} for {row.change} (scatter {row.scatter:.2g}{GAP}points)"
        for row in rows
        if row.needed is not None and row.needed >= least
    ]
    return f"; but {text.listing(named)}" if named else ""


def could_have_shown(rows: Sequence[Row]) -> str:
    """The smallest effects that these seeds could have shown, as a sentence; empty if unknown."""
    known = [row for row in rows if row.detectable is not None]
    effects = [row.detectable for row in rows if row.detectable is not None]
    shown = [effect for effect in effects if effect <= MOST]
    if not known:
        return ""
    seeds = sorted({len(row.seeds) for row in known})
    number = plural(seeds[0], "seed") if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]} seeds"
    if not shown:
        return f"With {number}, no effect would have been shown in 4 of 5 studies."
    least, most = (f"{each:.1f}" for each in (min(shown), max(shown)))
    size = f"{least}{GAP}points" if least == most else f"{least} to {most}{GAP}points, by the row,"
    none = len(known) - len(shown)
    beside = f"; in {plural(none, 'row')} none would" if none else ""
    return f"With {number}, an effect of {size} would have been shown in 4 of 5 studies{beside}."


def of_other_images(errors: Sequence[float], rows: int) -> str:
    """What the choice of validation images adds, as a sentence; empty if that is not known.

    Args:
        errors: standard errors of accuracies by that choice, in points.
        rows: how many comparisons the table has, each of two accuracies on the same images.
    """
    if not errors:
        return ""
    moved = (
        f"Other validation images would move an accuracy by about ±{fmean(errors):.1f}{GAP}points "
        "(one standard error)"
    )
    if not rows:
        return f"{moved}."
    return (
        f"{moved}, both sides of a row mostly alike; the intervals here are about training again "
        "on the same images."
    )


def _found(row: Row) -> str:
    pairs = plural(len(row.seeds), "pair")
    if row.effect is None:
        return f"{row.verdict}: no pair"
    effect = f"{points(row.effect, _decimals(row))}{GAP}points"
    if row.interval is None:
        where = f"in each of {pairs}" if len(row.seeds) > 1 else f"from {pairs}"
        return f"{effect} {where}: {row.verdict}"
    low, high = (points(end, _decimals(row)) for end in row.interval)
    return f"{effect} ({low} to {high}): {row.verdict}"


def _could_have_shown(row: Row, detectable: float) -> str:
    if detectable > MOST:
        return "cannot show any"
    return f"could have shown {detectable:.{_decimals(row)}f}"


def _decimals(row: Row) -> int:
    return 2 if row.interval and row.interval[1] - row.interval[0] < FINE else 1


def _missing(missing: Missing) -> str:
    sides = (("baseline", missing.baseline), ("changed", missing.changed))
    return f"seed{GAP}{missing.seed} ({', '.join(f'{side} {why}' for side, why in sides if why)})"


def _all(rows: int) -> str:
    return "the one row" if rows == 1 else f"all {rows} rows"
