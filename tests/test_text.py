from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from visweep import text


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0.04, "0.0 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (59.6, "1 min"),
        (200, "3 min 20 s"),
        (599.7, "10 min"),
        (1500, "25 min"),
        (3599, "1 h"),
        (3900, "1 h 5 min"),
        (360000, "100 h"),
    ],
)
def test_duration(seconds: float, shown: str) -> None:
    assert text.duration(seconds) == shown


@pytest.mark.parametrize(
    ("number", "shown"),
    [
        (0, "0"),
        (999, "999"),
        (7660, "7.66 K"),
        (317_386, "317 K"),
        (999_950, "1.00 M"),
        (1_250_000, "1.25 M"),
        (25_000_000_000, "25.0 G"),
    ],
)
def test_count(number: float, shown: str) -> None:
    assert text.count(number) == shown


@pytest.mark.parametrize(
    ("size", "shown"), [(12, "12 B"), (512 * 2**20, "512 MiB"), (1.25 * 2**30, "1.25 GiB")]
)
def test_memory(size: float, shown: str) -> None:
    assert text.memory(size) == shown


@pytest.mark.parametrize(
    ("value", "shown"), [(0, "0"), (1e-9, "1e-09"), (12345.6, "12,346"), (0.5, "0.5")]
)
def test_number(value: float, shown: str) -> None:
    assert text.number(value) == shown


@pytest.mark.parametrize(
    ("value", "shown"), [(0.0012345, "0.00123"), (16, "16"), (None, "None"), ("tanh", "tanh")]
)
def test_value(value: object, shown: str) -> None:
    assert text.value(value) == shown


def test_words() -> None:
    assert text.percent(0.85149) == "85.1 %"
    assert text.rate(3124) == "3,120"
    assert text.rate(12.34) == "12.3"
    assert text.plural(1, "trial") == "1 trial"
    assert text.plural(1200, "trial") == "1,200 trials"
    assert text.listing(["a", "b", "c"]) == "a, b and c"
    assert text.listing(["a"]) == "a"


def test_parameters() -> None:
    values = {"drop": 0.123456, "depth": 4, "block": "late_relu", "lr": 1e-5}
    assert text.parameters(values) == "drop=0.123 depth=4 block=late_relu lr=1e-05"


def test_a_line_is_printed_as_it_is_however_long() -> None:
    written = io.StringIO()
    line = "a [bold]line[/bold] " * 20
    text.print_line(Console(file=written, width=40, force_terminal=True), line)
    assert written.getvalue() == line + "\n"


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
