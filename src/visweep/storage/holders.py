"""Who holds the trials of a storage, read without Optuna and without changing anything."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from visweep.storage.clock import seconds_now
from visweep.storage.owner import Owner

_trials = sa.table("trials", *map(sa.column, ("trial_id", "study_id", "number", "state")))
_slots = sa.table("visweep_slots", *map(sa.column, ("trial_id", "study_id", "owner", "renewed")))
_reports = sa.table("trial_intermediate_values", *map(sa.column, ("trial_id", "step")))


LEASE_SECONDS = 60.0
"""A lease from another machine is dead when its heartbeat stood still for this long."""


@dataclass(frozen=True)
class Holder:
    """A worker that holds a trial.

    Attributes:
        host: the name of its machine; empty where the lease's owner cannot be read.
        pid: the number of its process.
        trial: the number of the trial.
        epoch: the last one that it reported; 0 before that.
        lease_age: seconds since the lease was taken or renewed, by the clock of the machine that
            holds the database; None for a lease that an older visweep took.
        here: whether it ran on this machine.
        gone: it did, and surely no longer does.
    """

    host: str
    pid: int
    trial: int
    epoch: int
    lease_age: float | None
    here: bool
    gone: bool

    def __str__(self) -> str:
        return f"process {self.pid}" + ("" if self.here else f" on {self.host}")

    @property
    def silent(self) -> bool:
        """On another machine, and not heard of for longer than a lease holds."""
        return not self.here and self.lease_age is not None and self.lease_age > LEASE_SECONDS


@dataclass(frozen=True)
class Unfinished:
    """A slot that somebody holds, or that was begun and is held by nobody.

    Attributes:
        study_id: the study.
        trial: the number of its trial.
        begun: whether its trial has begun.
        holder: who holds it.
    """

    study_id: int
    trial: int
    begun: bool
    holder: Holder | None

    @property
    def interrupted(self) -> bool:
        """Begun, and in nobody's hands as far as can be told from here."""
        return self.begun and (self.holder is None or self.holder.gone)


def unfinished(connection: sa.Connection) -> list[Unfinished]:
    """The slots of all studies that are held or begun, by the number of their trials."""
    columns = sa.inspect(connection).get_columns(_slots.name)
    dated = any(column["name"] == "renewed" for column in columns)
    return [
        Unfinished(
            study_id=row.study_id,
            trial=row.number,
            begun=row.state == "RUNNING",
            holder=None if row.owner is None else _holder(row),
        )
        for row in connection.execute(_query(dated))
    ]


def working(connection: sa.Connection, study_id: int) -> list[Holder]:
    """Who is at a study, as far as can be told: known, and neither gone nor silent."""
    held = (s.holder for s in unfinished(connection) if s.study_id == study_id)
    return [h for h in held if h is not None and h.host and not h.gone and not h.silent]


def _query(dated: bool) -> sa.Select[Any]:
    """Args:
    dated: whether the storage tells when a lease was renewed.
    """
    same = sa.and_(
        _slots.c.trial_id == _trials.c.trial_id, _slots.c.study_id == _trials.c.study_id
    )
    epoch = (
        sa.select(sa.func.max(_reports.c.step))
        .where(_reports.c.trial_id == _trials.c.trial_id)
        .scalar_subquery()
    )
    # SQLAlchemy would bind the words; a PostgreSQL enumeration takes them only as they stand.
    state = sa.cast(_trials.c.state, sa.Text)
    return (
        sa.select(
            _trials.c.study_id,
            _trials.c.number,
            state.label("state"),
            _slots.c.owner,
            epoch.label("epoch"),
            (seconds_now() - _slots.c.renewed if dated else sa.null()).label("age"),
        )
        .join(_slots, same)
        .where(
            sa.or_(
                state == "RUNNING",
                sa.and_(state == "WAITING", _slots.c.owner.is_not(None)),
            )
        )
        .order_by(_trials.c.study_id, _trials.c.number)
    )


def _holder(row: sa.Row[Any]) -> Holder:
    try:
        owner = Owner.from_text(row.owner)
    except (ValueError, TypeError):
        # `visweep check` says more of it; a glance shall not fail for that.
        owner = Owner(host="", boot="", pid=0, start="")
    return Holder(
        host=owner.machine,
        pid=owner.pid,
        trial=row.number,
        epoch=row.epoch or 0,
        lease_age=None if row.age is None else max(0.0, float(row.age)),
        here=owner.is_here(),
        gone=owner.is_gone(),
    )
