"""The points of a finite space, numbered, so that one that nobody has tried can be found."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from typing import Any

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from visweep.search.spaces import spread
from visweep.storage.replicates import configuration
from visweep.storage.specification import Space

MOST_STEPS = 20_000
"""So many points are looked at where not all are allowed."""


def size(space: Space) -> int | None:
    """How many points a space has; None where one of its ranges is continuous."""
    counts = [_count(distribution) for distribution in space.values()]
    known = [count for count in counts if count is not None]
    return math.prod(known) if len(known) == len(counts) else None


def point(space: Space, index: int) -> dict[str, Any]:
    """One point of a finite space; every index below `size(space)` gives another one."""
    found = {}
    for name, distribution in space.items():
        index, place = divmod(index, _count(distribution) or 1)
        found[name] = _value(distribution, place)
    return found


def untried(
    space: Space,
    tried: Collection[str],
    start: int,
    allowed: Callable[[Mapping[str, Any]], bool] | None = None,
) -> dict[str, Any] | None:
    """A point that was not tried: the first one at or after an index, or else from the beginning.

    Args:
        space: a finite one.
        tried: configurations, see `visweep.storage.replicates.configuration`.
        start: any number; the index where to begin is what remains of it.
        allowed: tells which points may be tried; all of them by default.

    Returns:
        None when every point was tried that may be. Where not all may be, in a space of more than
        `MOST_STEPS` points, also when there is none among that many that are drawn at random.
    """
    points = size(space)
    if points is None:
        raise ValueError("a continuous space cannot be searched point by point")
    # One step more than there are tried points is enough where all may be tried.
    every = range(min(points, len(tried) + 1))
    numbers = ((start + step) % points for step in every)
    for number in numbers if allowed is None else spread(points, MOST_STEPS, start):
        found = point(space, number)
        if configuration(found, space) in tried:
            continue
        if allowed is None or allowed(found):
            return found
    return None


def _count(distribution: BaseDistribution) -> int | None:
    if isinstance(distribution, CategoricalDistribution):
        return len(distribution.choices)
    if isinstance(distribution, IntDistribution):
        return (distribution.high - distribution.low) // distribution.step + 1
    if isinstance(distribution, FloatDistribution) and distribution.step is not None:
        return round((distribution.high - distribution.low) / distribution.step) + 1
    return 1 if distribution.single() else None


def _value(distribution: BaseDistribution, place: int) -> Any:
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices[place]
    if isinstance(distribution, IntDistribution):
        return distribution.low + place * distribution.step
    if isinstance(distribution, FloatDistribution):
        step = distribution.step or 0.0
        return min(distribution.low + place * step, distribution.high)
    raise ValueError(f"unknown kind of distribution {distribution!r}")
