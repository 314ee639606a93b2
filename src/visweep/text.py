"""Numbers and parameters as a person reads them: rounded as far as they mean something."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console

_BARS = "▁▂▃▄▅▆▇█"
_MOST_BARS = 16


def print_line(console: Console, line: str) -> None:
    """Print as it is: on one line however long, without markup or colours."""
    console.print(line, soft_wrap=True, markup=False, highlight=False)


def percent(fraction: float) -> str:
    """0.8514 as 85.1 %."""
    return f"{100 * fraction:.1f} %"


def duration(seconds: float) -> str:
    """`4.1 s`, `41 s`, `3 min 20 s`, `25 min`, `1 h 5 min`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 10:
        return f"{minutes} min" + (f" {rest} s" if rest else "")
    hours, minutes = divmod(round(seconds / 60), 60)
    if hours == 0:
        return f"{minutes} min"
    return f"{hours:,} h" + (f" {minutes} min" if minutes else "")


def count(number: float) -> str:
    """A large count: `950`, `12.3 K`, `1.25 M`."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "K")):
        # 999,950 would round to 1000 K.
        if abs(number) >= size * 0.9995:
            return f"{_three_digits(number / size)} {letter}"
    return f"{number:.0f}"


def memory(size: float) -> str:
    """Bytes as `512 MiB`, `1.25 GiB`."""
    for exponent, unit in ((3, "GiB"), (2, "MiB"), (1, "KiB")):
        if size >= 0.9995 * 1024**exponent:
            return f"{_three_digits(size / 1024**exponent)} {unit}"
    return f"{size:.0f} B"


def rate(per_second: float) -> str:
    """A number per second, to three significant digits: `3,120`."""
    rounded = float(f"{per_second:.3g}")
    return f"{rounded:,.0f}" if rounded >= 100 else f"{rounded:g}"


def number(value: float) -> str:
    """A plain number to four significant digits, without an exponent where that is readable."""
    if value == 0 or 1e-3 <= abs(value) < 1e6:
        return f"{value:.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
    return f"{value:.3g}"


def value(parameter: Any) -> str:
    """A parameter's value: floats to three significant digits, everything else as it is."""
    return f"{parameter:.3g}" if isinstance(parameter, float) else str(parameter)


def parameters(values: Mapping[str, Any]) -> str:
    """`drop=0.1 depth=4 …` in the order of the space."""
    return " ".join(f"{name}={value(number)}" for name, number in values.items())


def plural(number: int, noun: str) -> str:
    """`1 trial`, `2 trials`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def listing(words: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def sparkline(curve: Sequence[float], length: int) -> str:
    """A curve of accuracies as little bars, padded to `length` epochs.

    Where there are too many epochs, each bar shows the last of several.
    """
    width = min(length, _MOST_BARS)
    last = [-(-length * (i + 1) // width) for i in range(width)]
    bars = [_bar(curve[epoch - 1]) for epoch in last if epoch <= len(curve)]
    return "".join(bars).ljust(width, "·")


def _bar(accuracy: float) -> str:
    return _BARS[min(len(_BARS) - 1, int(min(max(0.0, accuracy), 1.0) * len(_BARS)))]


def _three_digits(value: float) -> str:
    decimals = max(0, 2 - math.floor(math.log10(max(abs(value), 1.0))))
    return f"{value:.{decimals}f}"
