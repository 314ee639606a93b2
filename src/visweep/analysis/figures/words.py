"""Words that several figures share."""

from __future__ import annotations

from collections.abc import Iterable

from optuna.trial import FrozenTrial

from visweep import text
from visweep.analysis.measure import Measure


def capital(words: str) -> str:
    """The same with a capital letter at the beginning."""
    return words[:1].upper() + words[1:]


def described(trial: FrozenTrial, names: Iterable[str]) -> str:
    """The trial's values of some parameters."""
    return ", ".join(f"{n} {text.value(trial.params[n])}" for n in names if n in trial.params)


def hovered_value(measure: Measure) -> str:
    """The end of a plotly hover template: the value under the pointer, and nothing after it."""
    digits = ".1f" if measure.percent else ".4g"
    return f"%{{y:{digits}}}{measure.unit}<extra></extra>"
