"""What a study optimises, and how its numbers are written: rounded as far as they mean something.

Numbers and units are joined by a no-break space, so that no line ends between them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

GAP = "\N{NO-BREAK SPACE}"


@dataclass(frozen=True)
class Measure:
    """The objective of a study.

    Attributes:
        name: what it is called in a sentence.
        percent: it is a fraction, and is written in per cent.
        maximize: larger is better.
        step: what its intermediate values are numbered by.
    """

    name: str
    percent: bool
    maximize: bool
    step: str = "epoch"

    @property
    def unit(self) -> str:
        """What follows a number on an axis."""
        return f"{GAP}%" if self.percent else ""

    def plotted(self, value: float) -> float:
        """The value in the units of `unit`, no finer than a figure can show."""
        return round(100 * value, 2) if self.percent else float(f"{value:.6g}")

    def text(self, value: float) -> str:
        """The value with its unit: `91.2 %`."""
        return f"{100 * value:.1f}{self.unit}" if self.percent else number(value)

    def difference(self, value: float, reference: float) -> str:
        """How far the value lies above (+) or below (−) the reference: `+8.4 points`."""
        difference = value - reference
        if not self.percent:
            return _signed(difference, number(abs(difference)))
        points = f"{100 * abs(difference):.1f}"
        return _signed(difference if float(points) else 0.0, f"{points}{GAP}points")

    def key(self, value: float) -> float:
        """A sorting key: larger is better whichever way the study goes."""
        return value if self.maximize else -value


def _signed(difference: float, text: str) -> str:
    if difference == 0:
        return text
    return f"{'+' if difference > 0 else '−'}{text}"


def number(value: float) -> str:
    """A plain number to four significant digits, without an exponent where that is readable."""
    if value == 0 or 1e-3 <= abs(value) < 1e6:
        return f"{value:.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
    return f"{value:.3g}"


def parameter(value: Any) -> str:
    """A parameter's value: floats to three significant digits, everything else as it is."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def plural(count: int, noun: str) -> str:
    """`1 trial`, `2 trials`."""
    return f"{count:,}{GAP}{noun}{'' if count == 1 else 's'}"


def listing(words: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def duration(seconds: float) -> str:
    """`4.1 s`, `41 s`, `3 min 20 s`, `25 min`, `1 h 5 min`."""
    if seconds < 9.95:
        return f"{seconds:.1f}{GAP}s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}{GAP}s"
    minutes, rest = divmod(whole, 60)
    if minutes < 10:
        return f"{minutes}{GAP}min" + (f" {rest}{GAP}s" if rest else "")
    hours, minutes = divmod(round(seconds / 60), 60)
    if hours == 0:
        return f"{minutes}{GAP}min"
    return f"{hours:,}{GAP}h" + (f" {minutes}{GAP}min" if minutes else "")


def quantity(count: float) -> str:
    """A large count: `950`, `12.3 K`, `1.25 M`."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "K")):
        # 999,950 would round to 1000 K.
        if abs(count) >= size * 0.9995:
            return f"{_three_digits(count / size)}{GAP}{letter}"
    return f"{count:.0f}"


def rate(per_second: float) -> str:
    """A number per second, to three significant digits: `3,120`."""
    rounded = float(f"{per_second:.3g}")
    return f"{rounded:,.0f}" if rounded >= 100 else f"{rounded:g}"


def memory(count: float) -> str:
    """A size in memory: `512 MiB`, `1.25 GiB`."""
    for exponent, unit in ((3, "GiB"), (2, "MiB"), (1, "KiB")):
        if count >= 0.9995 * 1024**exponent:
            return f"{_three_digits(count / 1024**exponent)}{GAP}{unit}"
    return f"{count:.0f}{GAP}B"


def _three_digits(value: float) -> str:
    decimals = max(0, 2 - math.floor(math.log10(max(abs(value), 1.0))))
    return f"{value:.{decimals}f}"
