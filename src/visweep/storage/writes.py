"""What is written of trials again and again: as Optuna does it, but in fewer statements.

They run within a transaction, so that others wait for as long as they take.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import sqlalchemy
from optuna.storages._rdb.models import TrialIntermediateValueModel, TrialValueModel
from optuna.trial import TrialState

from visweep.storage.tables import reports, trials, user_attributes, values

# What every trial asks, built once: that takes longer than asking.
_TRIAL: sqlalchemy.BindParameter[int] = sqlalchemy.bindparam("this_trial")
_KEYS: sqlalchemy.BindParameter[Sequence[str]] = sqlalchemy.bindparam("these_keys", expanding=True)
_LOCK_TRIAL = (
    sqlalchemy.select(trials.c.state).where(trials.c.trial_id == _TRIAL).with_for_update()
)
_FORGET_ATTRIBUTES = sqlalchemy.delete(user_attributes).where(
    user_attributes.c.trial_id == _TRIAL, user_attributes.c.key.in_(_KEYS)
)
_FORGET_REPORT = sqlalchemy.delete(reports).where(
    reports.c.trial_id == _TRIAL, reports.c.step == sqlalchemy.bindparam("this_step")
)
_FORGET_VALUES = sqlalchemy.delete(values).where(values.c.trial_id == _TRIAL)
_END = (
    sqlalchemy.update(trials)
    .where(trials.c.trial_id == _TRIAL)
    .values(state=sqlalchemy.bindparam("ends"), datetime_complete=sqlalchemy.bindparam("now"))
)


def lock_trial(connection: sqlalchemy.Connection, trial_id: int) -> TrialState | None:
    """The state of a trial, which nobody else changes from now on; None if there is none."""
    found: TrialState | None = connection.execute(
        _LOCK_TRIAL, {"this_trial": trial_id}
    ).scalar_one_or_none()
    return found


def lock_row(connection: sqlalchemy.Connection, key: sqlalchemy.Column[int], value: int) -> None:
    """Let nobody else change what belongs to a row; on SQLite the write lock does already."""
    connection.execute(sqlalchemy.select(key).where(key == value).with_for_update())


def write_attributes(
    connection: sqlalchemy.Connection, trial_id: int, attributes: Mapping[str, Any]
) -> None:
    """Set user attributes of a trial that is locked."""
    rows = [
        {"trial_id": trial_id, "key": key, "value_json": json.dumps(value)}
        for key, value in attributes.items()
    ]
    connection.execute(_FORGET_ATTRIBUTES, {"this_trial": trial_id, "these_keys": [*attributes]})
    if rows:
        connection.execute(sqlalchemy.insert(user_attributes), rows)


def write_end(
    connection: sqlalchemy.Connection,
    trial_id: int,
    state: TrialState,
    reached: Sequence[float] | None,
) -> None:
    """End a trial that is locked and has not ended."""
    if reached is not None:
        connection.execute(_FORGET_VALUES, {"this_trial": trial_id})
        connection.execute(sqlalchemy.insert(values), _values(trial_id, reached))
    # Optuna stores times as naive UTC.
    now = datetime.now(UTC).replace(tzinfo=None)
    connection.execute(_END, {"this_trial": trial_id, "ends": state, "now": now})


def write_report(
    connection: sqlalchemy.Connection, trial_id: int, step: int, intermediate_value: float
) -> None:
    """Report a value of a trial that is locked."""
    value, kind = TrialIntermediateValueModel.intermediate_value_to_stored_repr(intermediate_value)
    connection.execute(_FORGET_REPORT, {"this_trial": trial_id, "this_step": step})
    row = {"trial_id": trial_id, "step": step, "intermediate_value": value}
    connection.execute(sqlalchemy.insert(reports), {**row, "intermediate_value_type": kind})


def _values(trial_id: int, reached: Sequence[float]) -> list[dict[str, Any]]:
    stored = map(TrialValueModel.value_to_stored_repr, reached)
    return [
        {"trial_id": trial_id, "objective": objective, "value": value, "value_type": kind}
        for objective, (value, kind) in enumerate(stored)
    ]
