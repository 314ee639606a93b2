"""The parameters of a study as axes: where each trial's value lies, and what to write there."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import FrozenTrial

from visweep import text
from visweep.analysis.measure import Measure
from visweep.analysis.overview import parameter_names, shown_value, value_of


@dataclass(frozen=True)
class Axis:
    """One parameter's values, placed on a line from 0 to 1.

    Attributes:
        name: the parameter.
        ticks: positions and labels.
        place: the position of a trial, or None when it lacks the parameter.
        label: the trial's value as text.
        values: the ticks' numbers; none when the parameter is a choice.
        stepped: only the ticks' values occur.
        log: the values lie evenly on a logarithmic scale.
    """

    name: str
    ticks: tuple[tuple[float, str], ...]
    place: Callable[[FrozenTrial], float | None]
    label: Callable[[FrozenTrial], str]
    values: tuple[float, ...] = ()
    stepped: bool = False
    log: bool = False


def parameter_axes(trials: Sequence[FrozenTrial]) -> list[Axis]:
    """An axis for each parameter that can take more than one value."""
    axes = []
    for name in parameter_names(trials):
        found = [t.distributions[name] for t in trials if name in t.distributions]
        if not all(distribution.single() for distribution in found):
            axes.append(_axis(name, found))
    return axes


def _axis(name: str, distributions: Sequence[BaseDistribution]) -> Axis:
    first = distributions[0]
    if isinstance(first, CategoricalDistribution):
        return _choice_axis(name, first)
    return _number_axis(name, [d for d in distributions if isinstance(d, _NUMERIC)])


_NUMERIC = (IntDistribution, FloatDistribution)


def _choice_axis(name: str, distribution: CategoricalDistribution) -> Axis:
    last = len(distribution.choices) - 1

    def place(trial: FrozenTrial) -> float | None:
        if name not in trial.params:
            return None
        return distribution.to_internal_repr(trial.params[name]) / last

    return Axis(
        name,
        tuple((i / last, text.value(choice)) for i, choice in enumerate(distribution.choices)),
        place,
        lambda trial: text.value(trial.params[name]),
        stepped=True,
    )


def _number_axis(name: str, distributions: Sequence[IntDistribution | FloatDistribution]) -> Axis:
    low = min(distribution.low for distribution in distributions)
    high = max(distribution.high for distribution in distributions)
    log = all(distribution.log for distribution in distributions)
    scale: Callable[[float], float] = math.log if log else float

    def position(value: float) -> float:
        return (scale(value) - scale(low)) / (scale(high) - scale(low))

    def place(trial: FrozenTrial) -> float | None:
        return position(trial.params[name]) if name in trial.params else None

    values, stepped = _tick_values(low, high, distributions[0].step, log)
    return Axis(
        name,
        tuple((position(value), text.value(value)) for value in values),
        place,
        lambda trial: text.value(trial.params[name]),
        values=tuple(values),
        stepped=stepped,
        log=log,
    )


def _tick_values(
    low: float, high: float, step: float | None, log: bool
) -> tuple[list[float], bool]:
    """The values to label, and whether they are all that there are."""
    if step and not log and (high - low) / step < 8:
        count = round((high - low) / step)
        return [low + index * step for index in range(count + 1)], True
    middle = math.sqrt(low * high) if log else (low + high) / 2
    return [low, middle, high], False


def value_axis(trials: Sequence[FrozenTrial], measure: Measure) -> Axis:
    values = [value_of(trial) for trial in trials]
    low, high = min(values), max(values)
    extent = (high - low) or 1.0

    def place(trial: FrozenTrial) -> float | None:
        value = shown_value(trial)
        return None if value is None else (value - low) / extent

    middle = (low + high) / 2
    marked = [low, middle, high] if high > low else [low]
    return Axis(
        measure.name,
        tuple(((value - low) / extent, measure.text(value)) for value in marked),
        place,
        lambda trial: measure.text(value_of(trial)),
    )
