"""Holm's adjustment, against tables worked by hand and against the procedure as he states it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from visweep.analysis.statistics.holm import adjust

NAN = float("nan")
P_VALUES = st.lists(st.floats(0.0, 1.0), min_size=1, max_size=12)


@pytest.mark.parametrize(
    ("p_values", "adjusted"),
    [
        ([], []),
        ([0.03], [0.03]),
        # 0.01 × 2 = 0.02; 0.04 × 1 = 0.04.
        ([0.04, 0.01], [0.04, 0.02]),
        # 0.005 × 4 = 0.02; 0.01 × 3 = 0.03; 0.03 × 2 = 0.06; 0.04 × 1 is raised to 0.06.
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),
        # 0.5 × 3 is cut to 1, and so is what follows.
        ([0.9, 0.5, 0.6], [1.0, 1.0, 1.0]),
        # Ties share the first one's factor.
        ([0.02, 0.02, 0.02], [0.06, 0.06, 0.06]),
        # The row that could not be tested counts: without it these would be 0.02 and 0.03.
        ([0.01, NAN, 0.03], [0.03, NAN, 0.06]),
    ],
)
def test_by_hand(p_values: list[float], adjusted: list[float]) -> None:
    np.testing.assert_allclose(adjust(p_values), adjusted, rtol=1e-12)


def test_tables_side_by_side_do_not_mix() -> None:
    tables = np.random.default_rng(0).random((3, 4, 5))
    together = adjust(tables)
    for place in np.ndindex(3, 4):
        np.testing.assert_array_equal(together[place], adjust(tables[place]))


@given(P_VALUES)
def test_lies_between_the_p_value_and_one(p_values: list[float]) -> None:
    adjusted = adjust(p_values)
    assert (adjusted >= p_values).all()
    assert (adjusted <= 1).all()


@given(P_VALUES)
def test_keeps_the_order(p_values: list[float]) -> None:
    adjusted = adjust(p_values)
    assert (np.diff(adjusted[np.argsort(p_values)]) >= 0).all()
    for one, after in zip(p_values, adjusted, strict=True):
        assert {a for p, a in zip(p_values, adjusted, strict=True) if p == one} == {after}


@given(P_VALUES, st.randoms(use_true_random=False))
def test_the_order_of_the_rows_does_not_matter(p_values: list[float], random) -> None:
    order = random.sample(range(len(p_values)), len(p_values))
    shuffled = adjust([p_values[i] for i in order])
    np.testing.assert_array_equal(shuffled, adjust(p_values)[order])


@given(P_VALUES, st.sampled_from([0.01, 0.05, 0.2]))
def test_rejects_what_the_procedure_rejects(p_values: list[float], level: float) -> None:
    """Step by step: compare the smallest with level / rows, and stop at the first that fails."""
    rejected = set()
    for step, row in enumerate(np.argsort(p_values, kind="stable")):
        if p_values[row] * (len(p_values) - step) >= level:
            break
        rejected.add(int(row))
    assert set(np.flatnonzero(adjust(p_values) < level).tolist()) == rejected
