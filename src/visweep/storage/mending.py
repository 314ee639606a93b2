"""What a repair does to the rows of one trial, each within the repair's transaction."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa
from optuna.trial import TrialState

from visweep.storage import tables
from visweep.storage.schema import missing_uuids
from visweep.storage.tables import params, reports, slots, trials, user_attributes


def delete_where(
    connection: sa.Connection, table: sa.Table, condition: sa.ColumnElement[bool]
) -> None:
    """Delete rows."""
    connection.execute(sa.delete(table).where(condition))


def give_uuids(connection: sa.Connection) -> None:
    """Give every trial that has begun an identity of its own."""
    for trial_id, identity in missing_uuids(connection).items():
        connection.execute(
            sa.update(slots).where(slots.c.trial_id == trial_id).values(uuid=identity)
        )


def give_slot(connection: sa.Connection, trial_id: int, generation: int, identity: str) -> None:
    """Give a trial that has begun its slot again."""
    study_id = connection.execute(
        sa.select(trials.c.study_id).where(trials.c.trial_id == trial_id)
    ).scalar_one()
    connection.execute(sa.delete(slots).where(slots.c.trial_id == trial_id))
    connection.execute(
        sa.insert(slots).values(
            trial_id=trial_id, study_id=study_id, generation=generation, uuid=identity
        )
    )


def release(connection: sa.Connection, trial_id: int) -> None:
    """Take a lease from its owner, who does not hold it any more."""
    held = sa.update(slots).where(slots.c.trial_id == trial_id)
    connection.execute(held.values(owner=None, renewed=None))


def set_waiting(connection: sa.Connection, trial_id: int) -> None:
    """Make a trial one that has not begun."""
    for table in (params, reports, tables.values):
        connection.execute(sa.delete(table).where(table.c.trial_id == trial_id))
    connection.execute(
        sa.update(trials)
        .where(trials.c.trial_id == trial_id)
        .values(state=TrialState.WAITING, datetime_start=None, datetime_complete=None)
    )
    connection.execute(
        sa.update(slots)
        .where(slots.c.trial_id == trial_id)
        .values(owner=None, renewed=None, generation=slots.c.generation + 1, uuid=None)
    )


def delete_reports_after(connection: sa.Connection, trial_id: int, epoch: int) -> None:
    """Forget what was reported of this epoch and later ones; whoever goes on reports it again."""
    connection.execute(
        sa.delete(reports).where(reports.c.trial_id == trial_id, reports.c.step >= epoch)
    )


def close_as_failed(connection: sa.Connection, trial_id: int, cause: str) -> None:
    """Close a trial whose result cannot be trusted; its other rows stay."""
    connection.execute(sa.delete(tables.values).where(tables.values.c.trial_id == trial_id))
    connection.execute(
        sa.update(trials).where(trials.c.trial_id == trial_id).values(state=TrialState.FAIL)
    )
    set_attributes(connection, trial_id, {"ended": f"failed: {cause}"})


def set_value(connection: sa.Connection, trial_id: int, value: float) -> None:
    """Set a finished trial's value."""
    connection.execute(
        sa.insert(tables.values).values(
            trial_id=trial_id,
            objective=0,
            value=value,
            value_type=tables.FINITE,
        )
    )


def set_attributes(connection: sa.Connection, trial_id: int, values: Mapping[str, Any]) -> None:
    """Set user attributes of a trial."""
    connection.execute(
        sa.delete(user_attributes).where(
            user_attributes.c.trial_id == trial_id, user_attributes.c.key.in_(list(values))
        )
    )
    connection.execute(
        sa.insert(user_attributes),
        [
            {"trial_id": trial_id, "key": key, "value_json": json.dumps(value)}
            for key, value in values.items()
        ],
    )
