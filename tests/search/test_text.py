from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from visweep.search import text


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (245, "4 min 05 s"),
        (3599.7, "1 h 00 min"),
        (7800, "2 h 10 min"),
    ],
)
def test_durations(seconds: float, shown: str) -> None:
    assert text.duration(seconds) == shown


@pytest.mark.parametrize(
    ("number", "shown"),
    [
        (0, "0"),
        (999, "999"),
        (7660, "7.66 K"),
        (317_386, "317 K"),
        (999_999, "1 M"),
        (1_201_546, "1.2 M"),
        (25_000_000_000, "25 G"),
    ],
)
def test_counts(number: float, shown: str) -> None:
    assert text.count(number) == shown


def test_parameters() -> None:
    values = {"drop": 0.123456, "depth": 4, "block": "late_relu", "lr": 1e-5}
    assert text.parameters(values) == "drop=0.123 depth=4 block=late_relu lr=1e-05"
    assert text.percent(0.85149) == "85.1 %"


@given(st.lists(st.floats(), max_size=60), st.integers(0, 60))
def test_a_curve_is_one_sign_per_epoch_as_far_as_there_is_room(
    curve: list[float], more: int
) -> None:
    epochs = len(curve) + more
    drawn = text.sparkline(curve, epochs)
    assert len(drawn) == min(epochs, 16)
    done = drawn.rstrip("·")
    assert set(done) <= set("▁▂▃▄▅▆▇█")
    if epochs <= 16:
        assert len(done) == len(curve)
    if curve and not more:
        assert done == drawn


def test_a_long_curve_is_thinned_out() -> None:
    assert text.sparkline([0.0] * 50 + [1.0] * 50, 100) == "▁" * 8 + "█" * 8
    assert text.sparkline([0.0, 0.5, 1.0], 5) == "▁▅█··"
