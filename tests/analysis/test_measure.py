"""Numbers are written as far as they mean something."""

from __future__ import annotations

import pytest

from visweep.analysis.measure import (
    Measure,
    duration,
    listing,
    memory,
    number,
    parameter,
    plural,
    quantity,
    rate,
)

ACCURACY = Measure("validation accuracy", percent=True, maximize=True)
LOSS = Measure("loss", percent=False, maximize=False)


def plain(text: str) -> str:
    return text.replace("\N{NO-BREAK SPACE}", " ")


@pytest.mark.parametrize(("value", "text"), [(0.9124, "91.2 %"), (1.0, "100.0 %"), (0.0, "0.0 %")])
def test_accuracy_is_in_tenths_of_a_per_cent(value: float, text: str) -> None:
    assert plain(ACCURACY.text(value)) == text


@pytest.mark.parametrize(
    ("value", "reference", "text"),
    [
        (0.912, 0.828, "+8.4 points"),
        (0.5, 0.6, "−10.0 points"),
        (0.9, 0.9, "0.0 points"),
        (0.90001, 0.9, "0.0 points"),
    ],
)
def test_differences_are_signed_points(value: float, reference: float, text: str) -> None:
    assert plain(ACCURACY.difference(value, reference)) == text


def test_other_objectives_are_plain_numbers() -> None:
    assert LOSS.text(0.123456) == "0.1235"
    assert LOSS.difference(0.5, 0.75) == "−0.25"
    assert LOSS.key(0.1) > LOSS.key(0.2)


@pytest.mark.parametrize(
    ("seconds", "text"),
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
def test_duration(seconds: float, text: str) -> None:
    assert plain(duration(seconds)) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [(950, "950"), (12345, "12.3 K"), (999_950, "1.00 M"), (1_250_000, "1.25 M"), (0, "0")],
)
def test_quantity(count: float, text: str) -> None:
    assert plain(quantity(count)) == text


def test_other_units() -> None:
    assert plain(memory(512 * 2**20)) == "512 MiB"
    assert plain(memory(1.25 * 2**30)) == "1.25 GiB"
    assert plain(memory(12)) == "12 B"
    assert rate(3124) == "3,120"
    assert rate(12.34) == "12.3"
    assert plain(plural(1, "trial")) == "1 trial"
    assert plain(plural(1200, "trial")) == "1,200 trials"
    assert listing(["a", "b", "c"]) == "a, b and c"
    assert listing(["a"]) == "a"


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (1e-9, "1e-09"), (12345.6, "12,346"), (0.5, "0.5")]
)
def test_number(value: float, text: str) -> None:
    assert number(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0.0012345, "0.00123"), (16, "16"), (None, "None"), ("tanh", "tanh")]
)
def test_parameter(value: object, text: str) -> None:
    assert parameter(value) == text
