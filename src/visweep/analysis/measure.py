"""What a study optimises, and how a page writes its numbers.

Numbers and units are joined by a no-break space, so that no line ends between them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import ParamSpec

from visweep import text

Given = ParamSpec("Given")
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
        return f"{100 * value:.1f}{self.unit}" if self.percent else text.number(value)

    def difference(self, value: float, reference: float) -> str:
        """How far the value lies above (+) or below (−) the reference: `+8.4 points`."""
        difference = value - reference
        if not self.percent:
            return _signed(difference, text.number(abs(difference)))
        return f"{points(100 * difference)}{GAP}points"

    def key(self, value: float) -> float:
        """A sorting key: larger is better whichever way the study goes."""
        return value if self.maximize else -value


def points(difference: float, decimals: int = 1) -> str:
    """A difference in percentage points, without the unit: `+8.4`, `−0.2`, `0.0`."""
    size = f"{abs(difference):.{decimals}f}"
    return _signed(difference if float(size) else 0.0, size)


def _signed(difference: float, size: str) -> str:
    if difference == 0:
        return size
    return f"{'+' if difference > 0 else '−'}{size}"


def _unbroken(write: Callable[Given, str]) -> Callable[Given, str]:
    @wraps(write)
    def written(*args: Given.args, **kwargs: Given.kwargs) -> str:
        return write(*args, **kwargs).replace(" ", GAP)

    return written


duration = _unbroken(text.duration)
count = _unbroken(text.count)
memory = _unbroken(text.memory)
plural = _unbroken(text.plural)
