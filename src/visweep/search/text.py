"""Numbers and parameters as a person reads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_BARS = "▁▂▃▄▅▆▇█"
_MOST_BARS = 16


def percent(fraction: float) -> str:
    """0.8514 as 85.1 %."""
    return f"{100 * fraction:.1f} %"


def duration(seconds: float) -> str:
    """Seconds as 9 s, 4 min 05 s or 2 h 10 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def count(number: float) -> str:
    """317386 as 317 K, 1201546 as 1.2 M."""
    for size, sign in ((1e9, "G"), (1e6, "M"), (1e3, "K")):
        if number >= 0.9995 * size:
            scaled = number / size
            return f"{scaled:.0f} {sign}" if scaled >= 100 else f"{scaled:.3g} {sign}"
    return f"{number:.0f}"


def value(number: Any) -> str:
    """A parameter's value; floats to three digits."""
    return f"{number:.3g}" if isinstance(number, float) else str(number)


def parameters(values: Mapping[str, Any]) -> str:
    """`drop=0.1 depth=4 …` in the order of the space."""
    return " ".join(f"{name}={value(number)}" for name, number in values.items())


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
