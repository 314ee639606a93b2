"""What a number of seeds can show: the power of the two-sided paired t-test.

J. Cohen (1988), Statistical Power Analysis for the Behavioral Sciences, chapter 2. Both functions
take a scatter that was itself measured, mostly from few runs: from 5 seeds it is known to within a
factor of about two, and so is what they return.
"""

from __future__ import annotations

from functools import cache
from itertools import count
from math import ceil, sqrt

from scipy.optimize import brentq
from scipy.special import chdtri, nctdtr, ndtri, stdtrit

LEVEL = 0.05
"""The chance of any false verdict in a table without effects."""
POWER = 0.8
"""How often an effect of the size in question would be shown."""

_FAR = 1e3
"""Beyond such critical values (two pairs, a hundred rows) scipy's noncentral t is slow, and fails
further out. The scatter of the mean no longer matters there beside that of its measured error."""


def detectable(scatter: float, pairs: int, rows: int) -> float:
    """The smallest effect, in points, that would be shown in 80 % of studies like this one.

    It is for the first step of Holm's procedure, level 0.05 / rows (Bonferroni), which is where a
    table's only effect is tested; where others are shown first, less suffices.

    Args:
        scatter: standard deviation of the paired differences, in points.
        pairs: seeds, two at least.
        rows: comparisons in the table.

    Raises:
        ValueError: there are fewer than two pairs, no rows, or no scatter.
    """
    _check(scatter, rows)
    if pairs < 2:
        raise ValueError("a paired test needs two pairs at least")
    return _noncentrality(pairs - 1, rows) * scatter / sqrt(pairs)


def seeds_needed(effect: float, scatter: float, rows: int) -> int:
    """The fewest seeds with which such an effect is `detectable`, two at least.

    Args:
        effect: its size in points, above 0.
        scatter: standard deviation of the paired differences, in points.
        rows: comparisons in the table.

    Raises:
        ValueError: the effect is not above 0, or there are no rows, or no scatter.
    """
    _check(scatter, rows)
    if not effect > 0:
        raise ValueError("the effect sought is larger than 0")
    # Were the scatter known and not estimated, fewer would do: the count begins there.
    known = float(ndtri(1 - LEVEL / rows / 2) + ndtri(POWER)) * scatter / effect
    least = max(2, ceil(known**2))
    return next(seeds for seeds in count(least) if detectable(scatter, seeds, rows) <= effect)


@cache
def _noncentrality(freedom: int, rows: int) -> float:
    """Effect in standard errors at which the t statistic exceeds its critical value often enough.

    A verdict the wrong way round is not counted as having shown the effect.
    """
    critical = float(stdtrit(freedom, 1 - LEVEL / rows / 2))
    if critical > _FAR:
        return critical * float(sqrt(chdtri(freedom, 1 - POWER) / freedom))

    def missed(noncentrality: float) -> float:
        return float(nctdtr(freedom, noncentrality, critical)) - (1 - POWER)

    return float(brentq(missed, critical, 2 * critical + 1))


def _check(scatter: float, rows: int) -> None:
    if not scatter > 0:
        raise ValueError("without scatter nothing can be said of power")
    if rows < 1:
        raise ValueError("a table has one row at least")
