from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from visweep.search import grid
from visweep.storage.replicates import configuration

steps = st.tuples(st.integers(-3, 3), st.integers(0, 3), st.integers(1, 3))
finite: st.SearchStrategy[BaseDistribution] = st.one_of(
    st.lists(st.sampled_from(["a", 2, 2.5, None]), min_size=1, unique=True).map(
        CategoricalDistribution
    ),
    steps.map(lambda t: IntDistribution(t[0], t[0] + t[1] * t[2], step=t[2])),
    steps.map(lambda t: FloatDistribution(t[0], t[0] + t[1] * t[2] / 4, step=t[2] / 4)),
    st.floats(-1, 1).map(lambda value: FloatDistribution(value, value)),
    st.integers(1, 4).map(lambda high: IntDistribution(1, high, log=True)),
)
spaces = st.dictionaries(st.sampled_from("abcd"), finite, max_size=4)


@given(spaces)
def test_every_index_is_a_point_of_its_own(space: dict[str, BaseDistribution]) -> None:
    size = grid.size(space)
    assert size is not None
    points = [grid.point(space, index) for index in range(size)]
    assert len({configuration(point, space) for point in points}) == size
    for point in points:
        assert point.keys() == space.keys()
        for name, value in point.items():
            assert space[name]._contains(space[name].to_internal_repr(value))


@given(spaces, st.integers(0, 2**32), st.data())
def test_an_untried_point_is_found_as_long_as_there_is_one(
    space: dict[str, BaseDistribution], start: int, data: Any
) -> None:
    size = grid.size(space) or 0
    every = {configuration(grid.point(space, index), space) for index in range(size)}
    tried = data.draw(st.sets(st.sampled_from(sorted(every))))
    found = grid.untried(space, tried, start)
    if tried == every:
        assert found is None
    else:
        assert found is not None
        assert configuration(found, space) in every - tried


def test_a_continuous_space_has_no_size() -> None:
    space = {"drop": FloatDistribution(0.0, 0.3), "heads": CategoricalDistribution([1, 2])}
    assert grid.size(space) is None
    with pytest.raises(ValueError, match="continuous"):
        grid.untried(space, set(), 0)


def test_allowed_points_are_found_wherever_they_lie_in_a_large_space() -> None:
    space = {f"p{i}": IntDistribution(0, 19) for i in range(5)}

    def allowed(point: Any) -> bool:
        return bool(point["p3"] == point["p4"] == 19)

    found = grid.untried(space, set(), 0, allowed)
    assert found is not None
    assert allowed(found)
    again = grid.untried(space, {configuration(found, space)}, 0, allowed)
    assert again not in (None, found)
    assert again == grid.untried(space, {configuration(found, space)}, 0, allowed)


def test_a_large_space_is_not_walked_through() -> None:
    space = {f"p{i}": IntDistribution(0, 999_999) for i in range(5)}
    first = grid.point(space, 7)
    found = grid.untried(space, {configuration(first, space)}, 7)
    assert found == grid.point(space, 8)
