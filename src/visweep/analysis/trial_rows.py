"""All trials of a study as a sheet: for `visweep trials --csv`, and beside a report."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from optuna.trial import FrozenTrial

from visweep.analysis.overview import Overview, mapping, parameter_names
from visweep.analysis.sheet import Sheet, Value, sheet_of
from visweep.storage.replicates import SEEDS, originals

VAL_ACCURACY, _VALUE = "val_accuracy", "value"

_ATTRIBUTES = (
    "val_accuracy_per_seed", "val_error_points", "val_loss", "train_accuracy", "epochs", "seconds",
    "images_per_second", "peak_memory_bytes", "num_params", "replicas_at_once", "micro_batch",
    "ended", "device",
)  # fmt: skip
_PROVENANCE = ("host", "commit")
_OURS = frozenset(
    {"trial", "state", VAL_ACCURACY, _VALUE, "begun_utc", "ended_utc", "replicate_of", SEEDS}
    | {*_ATTRIBUTES, *_PROVENANCE}
)


def objective(overview: Overview) -> str:
    """What the column of a study's objective is called; its own name may be anything."""
    return VAL_ACCURACY if overview.specification else _VALUE


def trials_sheet(trials: Sequence[FrozenTrial], name: str = VAL_ACCURACY) -> Sheet:
    """One row per trial, by number: its parameters, and what was measured of it.

    Accuracies are fractions, losses nats, times UTC. Where a parameter is called like one of the
    other columns, `param_` precedes its name. A list is written with spaces between its values.

    Args:
        trials: of one study.
        name: what the column of the objective is called.
    """
    original = originals(trials)
    found = parameter_names(trials)
    names = {each: f"param_{each}" if each in _OURS else each for each in found}
    return sheet_of([_record(trial, name, names, original) for trial in trials])


def _record(
    trial: FrozenTrial, value: str, names: Mapping[str, str], original: Mapping[int, int]
) -> dict[str, Value]:
    provenance = mapping(trial.user_attrs, "provenance")
    return {
        "trial": trial.number,
        "state": trial.state.name,
        value: trial.values[0] if trial.values else None,
        **{column: _value(trial.params.get(name)) for name, column in names.items()},
        **{name: _value(trial.user_attrs.get(name)) for name in _ATTRIBUTES},
        **{name: _value(provenance.get(name)) for name in _PROVENANCE},
        "begun_utc": _moment(trial.datetime_start),
        "ended_utc": _moment(trial.datetime_complete),
        "replicate_of": original.get(trial.number),
        SEEDS: _value(trial.user_attrs.get(SEEDS)),
    }


def _value(found: Any) -> Value:
    if found is None or isinstance(found, str | int | float):
        return found
    if isinstance(found, list | tuple):
        return " ".join(str(each) for each in found)
    return json.dumps(found, default=str)


def _moment(time: datetime | None) -> str | None:
    return None if time is None else time.isoformat()
