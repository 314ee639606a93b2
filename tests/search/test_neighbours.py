"""The values on either side of one, in every kind of range."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import (
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from visweep.search.neighbours import neighbours


def test_of_choices() -> None:
    widths = CategoricalDistribution([64, 32, 96])
    assert neighbours(widths, 64) == [32, 96]
    assert neighbours(widths, 96) == [64]
    blocks = CategoricalDistribution(["basic", "late_relu", "preadd_relu"])
    assert neighbours(blocks, "late_relu") == ["basic", "preadd_relu"]
    assert neighbours(CategoricalDistribution([8]), 8) == []


def test_of_whole_numbers() -> None:
    assert neighbours(IntDistribution(2, 6), 4) == [3, 5]
    assert neighbours(IntDistribution(2, 6), 6) == [5]
    assert neighbours(IntDistribution(2, 10, step=4), 2) == [6]


def test_of_ranges() -> None:
    assert neighbours(FloatDistribution(0.0, 0.3), 0.1) == pytest.approx([0.07, 0.13])
    assert neighbours(FloatDistribution(0.0, 0.3), 0.0) == pytest.approx([0.03])
    assert neighbours(FloatDistribution(0.0, 0.3), 0.29) == pytest.approx([0.26, 0.3])
    assert neighbours(FloatDistribution(0.0, 0.3, step=0.1), 0.1) == pytest.approx([0.0, 0.2])
    assert neighbours(FloatDistribution(1e-4, 1.0, log=True), 1e-2) == pytest.approx(
        [10**-2.4, 10**-1.6]
    )


@given(st.floats(0.0, 1.0), st.booleans())
def test_they_lie_in_the_range_and_differ(share: float, log: bool) -> None:
    distribution = FloatDistribution(0.5, 2.0, log=log)
    value = 0.5 + 1.5 * share
    found = neighbours(distribution, value)
    assert 1 <= len(found) <= 2
    assert all(0.5 <= v <= 2.0 and v != value for v in found)
