"""The budget of a study: as many slots as trials were asked for, no fewer and no more."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import sqlalchemy as sa
from optuna.trial import FrozenTrial, TrialState

from visweep.storage.lease import SAME_TRIAL, Slot, lock, read_slots
from visweep.storage.tables import FIXED, OF_A_TRIAL, slots, system_attributes, trials

_COUNTED = sa.and_(slots.c.trial_id.is_not(None), trials.c.state != TrialState.FAIL)
_ENQUEUED = sa.and_(slots.c.trial_id.is_(None), trials.c.state == TrialState.WAITING)
# Built once, since every trial asks.
_COUNT = (
    sa.select(sa.func.count(sa.case((_COUNTED, 1))), sa.func.count(sa.case((_ENQUEUED, 1))))
    .select_from(trials)
    .outerjoin(slots, SAME_TRIAL)
    .where(trials.c.study_id == sa.bindparam("this_study"))
)


def is_met(connection: sa.Connection, study_id: int, budget: int) -> bool:
    """Whether there are exactly as many slots as there are to be, and nothing lacks one."""
    found = connection.execute(_COUNT, {"this_study": study_id}).one()
    return tuple(found) == (budget, 0)


def settle(
    connection: sa.Connection,
    study_id: int,
    budget: int,
    first: Mapping[str, Any] | None,
    is_free: Callable[[Slot], bool],
) -> None:
    """Make it exactly `budget` slots; see `Slots.set_budget`. The study must be locked.

    Args:
        connection: in a writing transaction.
        study_id: of the study.
        budget: how many slots are wanted that have not failed.
        first: the parameters of the first trial of the study.
        is_free: whether nobody holds a slot.
    """
    _forget_deleted(connection, study_id)
    _enrol_enqueued(connection, study_id)
    counted = [s for s in read_slots(connection, study_id) if s.state != TrialState.FAIL]
    surplus = len(counted) - budget
    if surplus > 0:
        free = [s for s in counted if s.state == TrialState.WAITING and is_free(s)]
        _remove_waiting(connection, study_id, free, surplus)
    elif surplus < 0:
        _add(connection, study_id, -surplus, first)


def fixed_parameters(trial: FrozenTrial) -> dict[str, Any]:
    """The parameters that an enqueued trial asks for; empty when the sampler may choose."""
    return dict(trial.system_attrs.get(FIXED, {}))


def _forget_deleted(connection: sa.Connection, study_id: int) -> None:
    """Another tool may have deleted a study that had this one's id, and left its slots."""
    there = sa.select(trials.c.trial_id).where(trials.c.study_id == study_id)
    connection.execute(
        sa.delete(slots).where(slots.c.study_id == study_id, slots.c.trial_id.not_in(there))
    )


def _enrol_enqueued(connection: sa.Connection, study_id: int) -> None:
    """Trials that a user enqueued take slots."""
    enqueued = connection.execute(
        sa.select(trials.c.trial_id)
        .outerjoin(slots, SAME_TRIAL)
        .where(
            trials.c.study_id == study_id,
            trials.c.state == TrialState.WAITING,
            slots.c.trial_id.is_(None),
        )
    ).scalars()
    for trial_id in list(enqueued):
        _enrol(connection, study_id, trial_id)


def _enrol(connection: sa.Connection, study_id: int, trial_id: int) -> None:
    # SQLite may give a new trial the id of one whose study another tool has deleted.
    connection.execute(sa.delete(slots).where(slots.c.trial_id == trial_id))
    connection.execute(sa.insert(slots).values(trial_id=trial_id, study_id=study_id))


def _add(
    connection: sa.Connection, study_id: int, count: int, first: Mapping[str, Any] | None
) -> None:
    """Add waiting trials with slots; `first` is for the first trial of the study."""
    query = sa.select(sa.func.count()).where(trials.c.study_id == study_id)
    # Optuna numbers a new trial by how many there are.
    there = int(connection.execute(query).scalar_one())
    own = {"study_id": study_id}
    new = [{**own, "number": there + index, "state": TrialState.WAITING} for index in range(count)]
    insert = sa.insert(trials).returning(trials.c.trial_id, sort_by_parameter_order=True)
    ids = list(connection.execute(insert, new).scalars())
    # SQLite may give a new trial the id of one whose study another tool has deleted.
    stale = sa.delete(slots).where(slots.c.trial_id == sa.bindparam("stale"))
    connection.execute(stale, [{"stale": trial_id} for trial_id in ids])
    connection.execute(sa.insert(slots), [{**own, "trial_id": trial_id} for trial_id in ids])
    if first is not None and not there:
        row = {"trial_id": ids[0], "key": FIXED, "value_json": json.dumps(dict(first))}
        connection.execute(sa.insert(system_attributes).values(row))


def _remove_waiting(
    connection: sa.Connection, study_id: int, free: list[Slot], surplus: int
) -> None:
    """Remove up to `surplus` waiting slots, the newest first and enqueued ones last.

    A trial that a user enqueued loses its slot only; a larger budget gives it one again.
    Optuna numbers a new trial by how many there are, so only the study's last trial may
    vanish; a slot in between is closed as a failed trial, which nothing counts.
    """
    enqueued = _enqueued_ids(connection)
    waiting = sorted(free, key=lambda s: (s.trial_id in enqueued, -s.number))
    for slot in waiting[:surplus]:
        if not lock(connection, slot):
            continue
        connection.execute(sa.delete(slots).where(slots.c.trial_id == slot.trial_id))
        if slot.trial_id in enqueued:
            continue
        if slot.number == _last_number(connection, study_id):
            for table in (*OF_A_TRIAL, trials):
                connection.execute(sa.delete(table).where(table.c.trial_id == slot.trial_id))
        else:
            connection.execute(
                sa.update(trials)
                .where(trials.c.trial_id == slot.trial_id)
                .values(state=TrialState.FAIL)
            )


def _enqueued_ids(connection: sa.Connection) -> set[int]:
    return set(
        connection.execute(
            sa.select(system_attributes.c.trial_id).where(system_attributes.c.key == FIXED)
        ).scalars()
    )


def _last_number(connection: sa.Connection, study_id: int) -> int | None:
    query = sa.select(sa.func.max(trials.c.number)).where(trials.c.study_id == study_id)
    last: int | None = connection.execute(query).scalar_one()
    return last
