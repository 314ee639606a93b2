"""The values next to a parameter's value in its range."""

from __future__ import annotations

import math
from typing import Any

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

SHARE = 0.1
"""How far a neighbour lies in a range without steps, as a share of the range."""


def neighbours(distribution: BaseDistribution, value: Any) -> list[Any]:
    """The values on either side, as far as there are any: the lower one first.

    Of choices that are numbers these are the next smaller and larger ones, of others all that are
    listed; of whole numbers and stepped ranges one step away; of a range without steps `SHARE` of
    it, or what is left of it, on the logarithmic scale where it has one.
    """
    if isinstance(distribution, CategoricalDistribution):
        return _of_choices(list(distribution.choices), value)
    if not isinstance(distribution, IntDistribution | FloatDistribution):
        raise ValueError(f"unknown kind of distribution {distribution!r}")
    step = distribution.step
    if step is not None and not distribution.log:
        found = [value - step, value + step]
    elif isinstance(distribution, IntDistribution):
        found = [value - 1, value + 1]
    else:
        found = _of_range(distribution, value)
    inside = (v for v in found if distribution.low <= v <= distribution.high)
    return [v for v in inside if v != value]


def _of_choices(choices: list[Any], value: Any) -> list[Any]:
    others = [choice for choice in choices if choice != value]
    if not all(isinstance(choice, int | float) for choice in choices):
        return others
    below = [choice for choice in others if choice < value]
    above = [choice for choice in others if choice > value]
    return [*([max(below)] if below else []), *([min(above)] if above else [])]


def _of_range(distribution: FloatDistribution, value: float) -> list[float]:
    low, high = distribution.low, distribution.high
    if distribution.log:
        factor = math.exp(SHARE * math.log(high / low))
        return [max(low, value / factor), min(high, value * factor)]
    distance = SHARE * (high - low)
    return [max(low, value - distance), min(high, value + distance)]
