"""What a lease is, and slots as they are read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from optuna.trial import TrialState

from visweep.errors import StorageError, VisweepError
from visweep.storage.failures import TrialEnded
from visweep.storage.owner import Owner
from visweep.storage.tables import slots, trials

SAME_TRIAL = sa.and_(slots.c.trial_id == trials.c.trial_id, slots.c.study_id == trials.c.study_id)
"""Joins slots to their trials; another tool may have deleted a study and left its slots."""
UNFINISHED = trials.c.state.in_([TrialState.WAITING, TrialState.RUNNING])
HELD = slots.c.owner.is_not(None)


class LeaseLost(VisweepError):
    """Another worker has adopted the trial; whatever this one still does would not count."""


class EndedElsewhere(LeaseLost, TrialEnded):
    """Another tool has finished the trial, or this worker in an attempt before."""


@dataclass(frozen=True)
class Lease:
    """The right to run one trial.

    Attributes:
        trial_id: Optuna's id of the trial.
        number: its number in the study.
        generation: how often the slot has been leased, this time included.
        adopted: the trial was begun under an earlier lease; its parameters stand.
        lost: how many workers in a row were lost with it, without an epoch in between.
    """

    trial_id: int
    number: int
    generation: int
    adopted: bool
    lost: int = 0


@dataclass(frozen=True)
class Slot:
    """A slot as it was seen; see the table `visweep_slots`."""

    trial_id: int
    number: int
    state: TrialState
    owner: Owner | None
    generation: int
    heartbeat: int
    lost: int
    reached: int


def owner_of(number: int, text: str) -> Owner:
    """Who holds a trial's lease.

    Raises:
        StorageError: that cannot be read.
    """
    try:
        return Owner.from_text(text)
    except (ValueError, TypeError) as e:
        raise StorageError(
            f"trial {number}: its lease has an owner that cannot be read; repair with: visweep "
            "check --repair"
        ) from e


def slots_where(*which: sa.ColumnElement[bool], most: int | None = None) -> sa.Select[Any]:
    """A query for slots of `this_study`, by the number of their trials.

    Args:
        which: conditions that they meet.
        most: how many at most.
    """
    return (
        sa.select(
            trials.c.trial_id,
            trials.c.number,
            trials.c.state,
            slots.c.owner,
            slots.c.generation,
            slots.c.heartbeat,
            slots.c.lost,
            slots.c.reached,
        )
        .join(slots, SAME_TRIAL)
        .where(trials.c.study_id == sa.bindparam("this_study"), *which)
        .order_by(trials.c.number)
        .limit(most)
    )


ALL_SLOTS = slots_where()
_LOCKED = (
    sa.select(slots.c.generation, slots.c.heartbeat, trials.c.state)
    .join(trials, trials.c.trial_id == slots.c.trial_id)
    .where(slots.c.trial_id == sa.bindparam("this_trial"))
    .with_for_update()
)
"""Statements are made once: making one takes as long as it does to execute it."""


def read_slots(
    connection: sa.Connection, study_id: int, query: sa.Select[Any] = ALL_SLOTS
) -> list[Slot]:
    """The slots of a study that a query of `slots_where` is for."""
    rows = connection.execute(query, {"this_study": study_id})
    return [
        Slot(
            trial_id=row.trial_id,
            number=row.number,
            state=row.state,
            owner=None if row.owner is None else owner_of(row.number, row.owner),
            generation=row.generation,
            heartbeat=row.heartbeat,
            lost=row.lost,
            reached=row.reached,
        )
        for row in rows
    ]


def lock(connection: sa.Connection, slot: Slot) -> bool:
    """Whether the slot is still as it was seen; if so, it stays so in this transaction.

    Its holder renews, reports and finishes without the lock of the study.
    """
    found = connection.execute(_LOCKED, {"this_trial": slot.trial_id}).first()
    return found is not None and tuple(found) == (slot.generation, slot.heartbeat, slot.state)
