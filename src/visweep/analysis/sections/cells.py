"""What trials are compared by, as the cells of a table."""

from __future__ import annotations

from collections.abc import Callable

from optuna.trial import FrozenTrial, TrialState

from visweep import text
from visweep.analysis.measure import GAP, count, duration, memory
from visweep.analysis.overview import Overview, attribute, epochs, shown_value

MISSING = "–"

Cell = Callable[[FrozenTrial], str]


def setting(trial: FrozenTrial, name: str) -> str:
    """The trial's value of a parameter."""
    return text.value(trial.params[name]) if name in trial.params else MISSING


def measurements(overview: Overview) -> list[tuple[str, Cell]]:
    """What trials are measured by: a heading, and the trial's number as text."""
    measure = overview.measure

    def recorded(name: str, write: Callable[[float], str]) -> Cell:
        def cell(trial: FrozenTrial) -> str:
            value = attribute(trial, name)
            return MISSING if value is None else write(value)

        return cell

    return [
        (measure.name, lambda trial: _final(overview, trial)),
        ("per seed", _seed_range),
        ("validation loss", recorded("val_loss", lambda value: f"{value:.3f}")),
        ("training accuracy", recorded("train_accuracy", _percent)),
        (f"{measure.step}s run", lambda trial: str(epochs(trial)) if epochs(trial) else MISSING),
        ("time", recorded("seconds", duration)),
        ("model parameters", recorded("num_params", count)),
        ("images per second", recorded("images_per_second", text.rate)),
        ("peak memory", recorded("peak_memory_bytes", memory)),
    ]


def _final(overview: Overview, trial: FrozenTrial) -> str:
    value = shown_value(trial)
    if value is None:
        return MISSING
    shown = overview.measure.text(value)
    return shown if trial.state == TrialState.COMPLETE else f"{shown} when it was stopped"


def per_seed(trial: FrozenTrial) -> list[float]:
    """The accuracy of each of the trial's replicas; none where it is not recorded."""
    values = trial.user_attrs.get("val_accuracy_per_seed")
    if not isinstance(values, list):
        return []
    return [float(value) for value in values if isinstance(value, int | float)]


def _seed_range(trial: FrozenTrial) -> str:
    values = per_seed(trial)
    if len(values) < 2:
        return MISSING
    return f"{_percent(min(values))} to {_percent(max(values))} over {len(values)} seeds"


def _percent(value: float) -> str:
    return f"{100 * value:.1f}{GAP}%"
