"""Numbers are written as far as they mean something."""

from __future__ import annotations

import pytest

from visweep.analysis.measure import GAP, Measure, count, duration, memory, plural, points

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


@pytest.mark.parametrize(
    ("difference", "decimals", "text"),
    [(8.44, 1, "+8.4"), (-0.25, 2, "−0.25"), (-0.04, 1, "0.0"), (-0.04, 2, "−0.04")],
)
def test_points_that_round_to_nothing_have_no_sign(
    difference: float, decimals: int, text: str
) -> None:
    assert points(difference, decimals) == text


def test_other_objectives_are_plain_numbers() -> None:
    assert LOSS.text(0.123456) == "0.1235"
    assert LOSS.difference(0.5, 0.75) == "−0.25"
    assert LOSS.key(0.1) > LOSS.key(0.2)


@pytest.mark.parametrize(
    "written",
    [duration(200), count(12_345), memory(2**30), plural(1200, "trial"), ACCURACY.text(0.5)],
)
def test_no_line_ends_within_a_quantity(written: str) -> None:
    assert GAP in written
    assert " " not in written
