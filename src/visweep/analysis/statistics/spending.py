"""A paired t-test that may look after every seed, and spends its error over the looks.

Looking again and again at a plain test finds a difference sooner or later where there is none.
Here the level is spent as runs come in (K. Lan and D. DeMets 1983, Discrete sequential boundaries
for clinical trials, Biometrika 70, 659-663), by the power function of K. Kim and D. DeMets 1987
(Biometrika 74, 149-154): after n of N pairs, level · (n / N)^1.5. Whatever is not spent on a look
is there for later ones.

What is left for each look follows from the joint distribution of the t statistics, as in
C. Jennison and B. Turnbull 1991 (Exact calculations for sequential t, χ² and F tests, Biometrika
78, 133-141), in one dimension: with S and Q the sums of n differences and of their squares,
u = S / √Q tells the t statistic, t = u √((n - 1) / (n - u²)). Where there is no effect, the next
difference x gives u' = (u + r) / √(1 + r²) with r = x / √Q, and r √n has Student's t distribution
with n degrees of freedom whatever u is. So the levels are exact for normal differences, at three
pairs as at twenty, and need no scatter to be known.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

import numpy as np
from scipy.optimize import brentq
from scipy.special import stdtr, stdtrit

from visweep.analysis.statistics.paired import Floats

_POWER = 1.5
"""Spends about evenly. Early looks have little to see with: two degrees of freedom show nothing
but what is plain; but what is plain should not wait."""
_CELLS = 300
"""Of the distribution of |u|. Five times as many change a level by less than half a per cent."""


@cache
def levels(level: float, first: int, last: int) -> Mapping[int, float]:
    """The level of each look, by the number of pairs that it has.

    A two-sided paired t-test at each of these numbers of pairs, at the level that it has here,
    rejects anywhere with a chance of `level` where there is no effect; with looks left out, less.

    Args:
        level: to spend, above 0 and below 1.
        first: pairs at the first look, two at least.
        last: pairs at the last look.

    Raises:
        ValueError: an argument is outside its range.
    """
    if not 0 < level < 1:
        raise ValueError(f"a level is a chance between 0 and 1, not {level}")
    if not 2 <= first <= last:
        raise ValueError(f"looks are at two pairs or more, ascending, not {first} to {last}")
    spent = [level * (pairs / last) ** _POWER for pairs in range(first, last + 1)]
    found = {first: spent[0]}
    bound = _u(-float(stdtrit(first - 1, spent[0] / 2)), first)
    edges = _edges(bound)
    below = 2 * stdtr(first - 1, _t(edges, first)) - 1
    for pairs in range(first + 1, last + 1):
        middle, mass = (edges[1:] + edges[:-1]) / 2, np.diff(below)
        to_spend = spent[pairs - first] - spent[pairs - first - 1]
        bound = _bound(middle, mass, pairs, to_spend)
        found[pairs] = float(2 * stdtr(pairs - 1, -_t(np.array(bound), pairs)))
        edges = _edges(bound)
        below = mass @ _within(edges, middle[:, None], pairs)
    return found


def _edges(bound: float) -> Floats:
    """Of cells of |u|, the finer the nearer to the bound: from there most of the rest comes."""
    return bound * (1 - np.linspace(1.0, 0.0, _CELLS + 1) ** 3)


def _bound(middle: Floats, mass: Floats, pairs: int, to_spend: float) -> float:
    """The |u| that is exceeded at this look, and at none before, with the chance to spend."""

    def too_often(bound: float) -> float:
        return float(mass @ (1 - _within(np.array(bound), middle, pairs))) - to_spend

    # From √pairs on there is nothing; just below, the t statistic is beyond all numbers.
    return float(brentq(too_often, 0.0, np.sqrt(pairs) * (1 - 1e-15), xtol=1e-13))


def _within(bound: Floats, before: Floats, pairs: int) -> Floats:
    """The chance that |u| of so many pairs is within a bound, given u of one pair fewer.

    With r = tan φ, u' = √(1 + u²) sin(φ + atan u): |u'| is within the bound where φ is within an
    arc around -atan u, of the circle on which φ and φ + π are one.
    """
    reach = np.arcsin(np.minimum(bound / np.sqrt(1 + before**2), 1.0))
    centre = -np.arctan(before)
    scale = np.sqrt(pairs - 1)
    low, high = (
        stdtr(pairs - 1, scale * np.tan(centre + side * np.minimum(reach, np.pi / 2 - 1e-12)))
        for side in (-1, 1)
    )
    around = centre - reach < -np.pi / 2
    found: Floats = np.where(reach >= np.pi / 2, 1.0, high - low + around)
    return found


def _t(u: Floats, pairs: int) -> Floats:
    found: Floats = u * np.sqrt((pairs - 1) / (pairs - u**2))
    return found


def _u(t: float, pairs: int) -> float:
    return t * float(np.sqrt(pairs / (pairs - 1 + t**2)))
