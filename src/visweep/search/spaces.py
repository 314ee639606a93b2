"""Checking a space before the first trial: no point of it may be invalid.

A space is data: parameter names to Optuna distributions. A parameter is named after the field of
the model's or the training configuration that it replaces; `widths.0` is a tuple field's entry.
"""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from random import Random
from typing import Any

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from visweep.config import ModelConfig, TrainConfig, with_parameters
from visweep.errors import UsageError
from visweep.storage.specification import Space

MIN_TOKENS, MAX_TOKENS = 4, 256
_FEW_POINTS, _MOST_POINTS = 2_000, 20_000
MOST_CORNERS = 20_000
"""So many corners of a space are looked at."""


def patch_sizes(image_size: int, candidates: Sequence[int]) -> CategoricalDistribution:
    """The candidates that divide the image and leave 4 to 256 tokens.

    Raises:
        UsageError: none does.
    """
    fitting = [
        patch
        for patch in candidates
        if image_size % patch == 0 and MIN_TOKENS <= (image_size // patch) ** 2 <= MAX_TOKENS
    ]
    if not fitting:
        listed = " ".join(map(str, candidates))
        largest = max(candidates)
        across = min(
            max(round(image_size / largest), math.isqrt(MIN_TOKENS)), math.isqrt(MAX_TOKENS)
        )
        raise UsageError(
            f"--image-size: {image_size} suits no patch_size of {listed} "
            f"(it must divide the image and leave 4 to 256 tokens); try {across * largest}"
        )
    return CategoricalDistribution(fitting)


def check_space(space: Space, model: ModelConfig, train: TrainConfig) -> None:
    """See that every point of a space is a valid configuration.

    Every choice and whole number is tried, with the ends of the other ranges; in a large space
    only the ends of all ranges, and of very many such points some from all over it.

    Raises:
        UsageError: naming the first invalid point.
    """
    values = [_values(distribution, middle=False, every=True) for distribution in space.values()]
    if math.prod(map(len, values)) > _FEW_POINTS:
        values = [_values(distribution, middle=False) for distribution in space.values()]
    for point in _combinations(space, values, _MOST_POINTS):
        try:
            with_parameters(model, train, point)
        except UsageError as e:
            shown = ", ".join(f"{name}={value}" for name, value in point.items())
            raise UsageError(f"--space: the point {shown} is invalid: {e}") from e


def into_space(
    model: ModelConfig, train: TrainConfig, fields: Mapping[str, Any], space: Space
) -> tuple[ModelConfig, TrainConfig]:
    """The configurations with `fields` replaced, as a point of the space.

    Each value that falls outside the space is set to the nearest one inside, or else the first.
    """
    changes = dict(fields)
    for name, distribution in space.items():
        value = _current(model, train, name)
        if value is not None and not _contains(distribution, value):
            changes[name] = _nearest(value, _values(distribution, middle=False))
    return with_parameters(model, train, changes)


def _current(model: ModelConfig, train: TrainConfig, name: str) -> Any:
    """None if there is no such field or entry; `check_space` says so."""
    field, dot, index = name.partition(".")
    value: Any = getattr(model, field, getattr(train, field, None))
    if not dot:
        return value
    known = isinstance(value, tuple) and index.isdecimal() and int(index) < len(value)
    return value[int(index)] if known else None


def _nearest(value: Any, choices: list[Any]) -> Any:
    if all(isinstance(v, int | float) for v in (value, *choices)):
        return min(choices, key=lambda choice: abs(choice - value))
    return choices[0]


def check_point(point: Mapping[str, Any], space: Space) -> None:
    """See that a point that someone enqueued lies in the space.

    Raises:
        UsageError: a name is not in the space, or a value not in its range.
    """
    for name, value in point.items():
        if name not in space:
            raise UsageError(f"enqueued parameter {name!r} is not in the space: {sorted(space)}")
        if not _contains(space[name], value):
            raise UsageError(f"enqueued {name}={value!r} is not in {space[name]}")


def lies_in(point: Mapping[str, Any], space: Space) -> bool:
    """Whether it has all parameters of a space, and no others, each in its range."""
    return point.keys() == space.keys() and all(
        _contains(space[name], value) for name, value in point.items()
    )


def _contains(distribution: BaseDistribution, value: Any) -> bool:
    try:
        return distribution._contains(distribution.to_internal_repr(value))
    except (ValueError, TypeError):
        return False


def corners(space: Space, middle: bool = False) -> Iterator[dict[str, Any]]:
    """Combinations of choices and range ends (with `middle`, of range middles too).

    All of them, as long as there are no more than `MOST_CORNERS`; else so many, each once: the
    first and the last, and between them some that are drawn at random, always the same.
    """
    values = [_values(distribution, middle) for distribution in space.values()]
    return _combinations(space, values, MOST_CORNERS)


def centre(space: Space) -> dict[str, Any]:
    """The point of middle choices and range middles."""
    found = {}
    for name, distribution in space.items():
        values = _values(distribution, middle=True)
        found[name] = values[len(values) // 2]
    return found


def has_few_corners(space: Space) -> bool:
    """Whether `corners` gives them all."""
    return math.prod(len(ends(distribution)) for distribution in space.values()) <= MOST_CORNERS


def ends(distribution: BaseDistribution) -> list[Any]:
    """A parameter's values at the corners of a space: its choices, or the ends of its range."""
    return _values(distribution, middle=False)


def spread(count: int, most: int, start: int = 0) -> Iterator[int]:
    """The numbers below `count`, each once, one after the other from `start` on.

    Where there are more than `most`, so many of them, drawn at random with `start` for a seed.
    """
    if count <= most:
        return ((start + step) % count for step in range(count))
    generator = Random(start)
    if count <= sys.maxsize:
        return iter(generator.sample(range(count), most))
    # Of so many, no two are the same.
    return (generator.randrange(count) for _ in range(most))


def _combinations(
    space: Space, values: Sequence[Sequence[Any]], most: int
) -> Iterator[dict[str, Any]]:
    """Points of these values, the last parameter's changing fastest where all are given."""
    count = math.prod(map(len, values))
    if count <= most:
        chosen: Iterator[Sequence[Any]] = itertools.product(*values)
    else:
        between = (1 + number for number in spread(count - 2, most - 2))
        numbers = itertools.chain([0], between, [count - 1])
        chosen = (_combination(values, number) for number in numbers)
    for combination in chosen:
        yield dict(zip(space, combination, strict=True))


def _combination(values: Sequence[Sequence[Any]], number: int) -> list[Any]:
    """The one of this number in the order of `itertools.product`."""
    found = []
    for choices in reversed(values):
        number, place = divmod(number, len(choices))
        found.append(choices[place])
    return found[::-1]


def _values(distribution: BaseDistribution, middle: bool, every: bool = False) -> list[Any]:
    if isinstance(distribution, CategoricalDistribution):
        return list(distribution.choices)
    if isinstance(distribution, IntDistribution) and every:
        return list(range(distribution.low, distribution.high + 1, distribution.step or 1))
    if isinstance(distribution, IntDistribution):
        centre = [(distribution.low + distribution.high) // 2] if middle else []
        return sorted({distribution.low, distribution.high, *centre})
    if isinstance(distribution, FloatDistribution):
        return sorted({distribution.low, distribution.high})
    raise UsageError(f"--space: unknown kind of distribution {distribution!r}")
