"""Slots: which trials a study has room for, and who may run each.

A slot is a trial of the study with a row in `visweep_slots`. A study with budget N has exactly N
slots that have not failed. A worker takes a slot by a lease, writes the trial's parameters and its
RUNNING state in one transaction, and renews the lease while it trains. Trials that other tools
added have no row; they are kept and not counted.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
import sqlalchemy.orm
from optuna.distributions import BaseDistribution, distribution_to_json
from optuna.storages._rdb import models
from optuna.trial import FrozenTrial, TrialState, create_trial

from visweep.errors import VisweepError
from visweep.storage.engine import Storage, TrialEnded, patient, watched
from visweep.storage.owner import Owner
from visweep.storage.schema import new_uuid, slots

studies: sa.Table = models.StudyModel.__table__
trials: sa.Table = models.TrialModel.__table__
params: sa.Table = models.TrialParamModel.__table__
reports: sa.Table = models.TrialIntermediateValueModel.__table__
system_attributes: sa.Table = models.TrialSystemAttributeModel.__table__

LEASE_SECONDS = 60.0
"""A lease from another machine is dead when its heartbeat stood still for this long."""

_OF_A_TRIAL: tuple[sa.Table, ...] = tuple(
    table
    for table in models.BaseModel.metadata.tables.values()
    if "trial_id" in table.c and table is not trials
)
_SAME_TRIAL = sa.and_(slots.c.trial_id == trials.c.trial_id, slots.c.study_id == trials.c.study_id)

FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)
_FIXED = "fixed_params"
"""Optuna's key for the parameters of an enqueued trial."""
_RUNG = "completed_rung_"
"""Begins the keys under which Optuna's successive halving keeps what it decided of a trial."""


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
    """

    trial_id: int
    number: int
    generation: int
    adopted: bool


@dataclass(frozen=True)
class _Slot:
    trial_id: int
    number: int
    state: TrialState
    owner: Owner | None
    generation: int
    heartbeat: int


class Slots:
    """The slots of one study, as one worker sees them.

    Args:
        storage: where the study lies.
        study_id: Optuna's id of the study.
        owner: the worker that leases.
        lease_seconds: after how long a silent lease from another machine is dead.
    """

    def __init__(
        self,
        storage: Storage,
        study_id: int,
        owner: Owner,
        lease_seconds: float = LEASE_SECONDS,
    ) -> None:
        self._storage = storage
        self.patience = storage.patience
        self._study_id = study_id
        self._owner = owner
        self.lease_seconds = lease_seconds
        # No clocks of two machines are compared: a heartbeat is timed by who watches it.
        self._seen: dict[int, tuple[tuple[int, int], float]] = {}

    @patient
    def set_budget(self, budget: int, first: Mapping[str, Any] | None = None) -> None:
        """Make it exactly `budget` slots, as far as that removes no trial that was started.

        Args:
            budget: how many trials the study is to finish.
            first: the parameters of the first slot that a new study gets.
        """
        with self._storage.transaction() as connection:
            self._lock_study(connection)
            self._forget_deleted(connection)
            self._enrol_enqueued(connection)
            counted = [s for s in self._slots(connection) if s.state != TrialState.FAIL]
            surplus = len(counted) - budget
            if surplus > 0:
                self._remove_waiting(connection, counted, surplus)
            for _ in range(-surplus):
                self._add(connection, first if not self._has_trials(connection) else None)

    @patient
    def take(self) -> Lease | None:
        """Lease a slot: first of a trial whose worker died, else the next waiting one.

        Returns None when every slot is finished or held by a worker that lives.
        """
        with self._storage.transaction() as connection:
            self._lock_study(connection)
            for slot in self._unfinished(connection):
                if self._is_free(slot) and self._lock(connection, slot):
                    return self._lease(connection, slot)
        return None

    @patient
    def unfinished(self) -> int:
        """How many slots still wait or run, whoever holds them."""
        with self._storage.reading() as connection:
            return len(self._unfinished(connection))

    @patient
    def held_elsewhere(self) -> int:
        """How many unfinished slots are held by workers on other machines."""
        with self._storage.reading() as connection:
            owners = [slot.owner for slot in self._unfinished(connection)]
        return sum(owner is not None and not owner.is_here() for owner in owners)

    @patient
    def trial_ids(self) -> set[int]:
        """The trials that have a slot; others were added by other tools."""
        query = sa.select(slots.c.trial_id).where(slots.c.study_id == self._study_id)
        with self._storage.reading() as connection:
            return set(connection.execute(query).scalars())

    @patient
    def begin(
        self,
        lease: Lease,
        parameters: Mapping[str, Any],
        space: Mapping[str, BaseDistribution],
    ) -> None:
        """Write a leased trial's parameters and set it RUNNING, in one transaction.

        From then on the trial has an identity of its own, wherever the study is moved.

        Raises:
            LeaseLost: the lease is no longer held.
        """
        with self._storage.transaction() as connection:
            self._require(connection, lease)
            connection.execute(sa.delete(params).where(params.c.trial_id == lease.trial_id))
            for name, distribution in space.items():
                connection.execute(
                    sa.insert(params).values(
                        trial_id=lease.trial_id,
                        param_name=name,
                        param_value=distribution.to_internal_repr(parameters[name]),
                        distribution_json=distribution_to_json(distribution),
                    )
                )
            connection.execute(
                sa.update(trials)
                .where(trials.c.trial_id == lease.trial_id)
                .values(state=TrialState.RUNNING, datetime_start=_utc_now())
            )
            connection.execute(
                sa.update(slots)
                .where(slots.c.trial_id == lease.trial_id)
                .values(uuid=sa.func.coalesce(slots.c.uuid, new_uuid()))
            )

    @patient
    def start_over(self, lease: Lease) -> None:
        """Forget what was reported of a trial that has to be trained from its first epoch again.

        Raises:
            LeaseLost: the lease is no longer held.
        """
        with self._storage.transaction() as connection:
            self._require(connection, lease)
            connection.execute(sa.delete(reports).where(reports.c.trial_id == lease.trial_id))
            connection.execute(
                sa.delete(system_attributes).where(
                    system_attributes.c.trial_id == lease.trial_id,
                    system_attributes.c.key.startswith(_RUNG, autoescape=True),
                )
            )

    @patient
    def forget(self, lease: Lease, keys: Sequence[str]) -> None:
        """Delete system attributes of a trial.

        Raises:
            LeaseLost: the lease is no longer held.
        """
        with self._storage.transaction() as connection:
            self._require(connection, lease)
            connection.execute(
                sa.delete(system_attributes).where(
                    system_attributes.c.trial_id == lease.trial_id,
                    system_attributes.c.key.in_(keys),
                )
            )

    def fenced(self, lease: Lease) -> AbstractContextManager[None]:
        """Whatever this thread writes in here raises `LeaseLost`, unless it holds the lease."""
        return self._storage.fenced(lambda connection: self._require(connection, lease))

    @watched
    def renew(self, lease: Lease) -> None:
        """Show that this worker lives; not repeated while the database is away: call it again.

        Raises:
            LeaseLost: the lease is no longer held.
        """
        with self._storage.transaction() as connection:
            self._require(connection, lease)
            connection.execute(
                sa.update(slots)
                .where(slots.c.trial_id == lease.trial_id)
                .values(heartbeat=slots.c.heartbeat + 1)
            )

    @patient
    def release(self, lease: Lease) -> None:
        """Give the slot back; the trial can be leased again at once."""
        with self._storage.transaction() as connection:
            connection.execute(
                sa.update(slots)
                .where(slots.c.trial_id == lease.trial_id, slots.c.generation == lease.generation)
                .values(owner=None)
            )

    def _require(self, connection: sa.Connection, lease: Lease) -> None:
        held = connection.execute(
            sa.select(slots.c.generation, slots.c.owner, trials.c.state)
            .join(trials, trials.c.trial_id == slots.c.trial_id)
            .where(slots.c.trial_id == lease.trial_id, trials.c.study_id == self._study_id)
            .with_for_update()
        ).first()
        if held is None:
            raise LeaseLost(f"trial {lease.number} was deleted")
        if (held.generation, held.owner) != (lease.generation, self._owner.to_text()):
            raise LeaseLost(f"trial {lease.number} was adopted by another worker")
        if held.state.is_finished():
            raise EndedElsewhere(f"trial {lease.number} was finished by another tool")

    def _slots(self, connection: sa.Connection) -> list[_Slot]:
        rows = connection.execute(
            sa.select(
                trials.c.trial_id,
                trials.c.number,
                trials.c.state,
                slots.c.owner,
                slots.c.generation,
                slots.c.heartbeat,
            )
            .join(slots, _SAME_TRIAL)
            .where(trials.c.study_id == self._study_id)
            .order_by(trials.c.number)
        )
        return [
            _Slot(
                trial_id=row.trial_id,
                number=row.number,
                state=row.state,
                owner=None if row.owner is None else Owner.from_text(row.owner),
                generation=row.generation,
                heartbeat=row.heartbeat,
            )
            for row in rows
        ]

    def _unfinished(self, connection: sa.Connection) -> list[_Slot]:
        """Trials that were begun come first, so that they are not left behind."""
        found = [s for s in self._slots(connection) if not s.state.is_finished()]
        return sorted(found, key=lambda s: (s.state != TrialState.RUNNING, s.number))

    def _is_free(self, slot: _Slot) -> bool:
        if slot.owner is None or slot.owner == self._owner or slot.owner.is_gone():
            return True
        beat = (slot.generation, slot.heartbeat)
        seen, since = self._seen.get(slot.trial_id, (None, 0.0))
        if seen != beat:
            self._seen[slot.trial_id] = (beat, time.monotonic())
            return False
        since = max(since, self.patience.watching_since())
        return time.monotonic() - since > self.lease_seconds

    def _lock(self, connection: sa.Connection, slot: _Slot) -> bool:
        """Whether the slot is still as it was seen; if so, it stays so in this transaction.

        Its holder renews, reports and finishes without the lock of the study.
        """
        found = connection.execute(
            sa.select(slots.c.generation, slots.c.heartbeat, trials.c.state)
            .join(trials, trials.c.trial_id == slots.c.trial_id)
            .where(slots.c.trial_id == slot.trial_id)
            .with_for_update()
        ).first()
        return found is not None and tuple(found) == (slot.generation, slot.heartbeat, slot.state)

    def _lease(self, connection: sa.Connection, slot: _Slot) -> Lease:
        generation = slot.generation + 1
        connection.execute(
            sa.update(slots)
            .where(slots.c.trial_id == slot.trial_id)
            .values(owner=self._owner.to_text(), generation=generation, heartbeat=0)
        )
        # Another tool may have taken it: without a generation, its parameters are not ours.
        adopted = slot.state == TrialState.RUNNING and slot.generation > 0
        return Lease(slot.trial_id, slot.number, generation, adopted)

    def _forget_deleted(self, connection: sa.Connection) -> None:
        """Another tool may have deleted a study that had this one's id, and left its slots."""
        there = sa.select(trials.c.trial_id).where(trials.c.study_id == self._study_id)
        connection.execute(
            sa.delete(slots).where(
                slots.c.study_id == self._study_id, slots.c.trial_id.not_in(there)
            )
        )

    def _lock_study(self, connection: sa.Connection) -> None:
        """Let no other worker count or lease slots meanwhile; SQLite's write lock does already."""
        query = sa.select(studies.c.study_id).where(studies.c.study_id == self._study_id)
        connection.execute(query.with_for_update())

    def _enrol_enqueued(self, connection: sa.Connection) -> None:
        """Trials that a user enqueued take slots."""
        enqueued = connection.execute(
            sa.select(trials.c.trial_id)
            .outerjoin(slots, _SAME_TRIAL)
            .where(
                trials.c.study_id == self._study_id,
                trials.c.state == TrialState.WAITING,
                slots.c.trial_id.is_(None),
            )
        ).scalars()
        for trial_id in list(enqueued):
            self._enrol(connection, trial_id)

    def _enrol(self, connection: sa.Connection, trial_id: int) -> None:
        # SQLite may give a new trial the id of one whose study another tool has deleted.
        connection.execute(sa.delete(slots).where(slots.c.trial_id == trial_id))
        connection.execute(sa.insert(slots).values(trial_id=trial_id, study_id=self._study_id))

    def _has_trials(self, connection: sa.Connection) -> bool:
        query = sa.select(trials.c.trial_id).where(trials.c.study_id == self._study_id)
        return connection.execute(query.limit(1)).first() is not None

    def _add(self, connection: sa.Connection, fixed: Mapping[str, Any] | None) -> None:
        attributes = {} if fixed is None else {_FIXED: dict(fixed)}
        template = create_trial(state=TrialState.WAITING, system_attrs=attributes)
        with sqlalchemy.orm.Session(bind=connection) as session:
            trial = self._storage._get_prepared_new_trial(self._study_id, template, session)
            session.flush()
            trial_id = int(trial.trial_id)
        self._enrol(connection, trial_id)

    def _remove_waiting(
        self, connection: sa.Connection, counted: list[_Slot], surplus: int
    ) -> None:
        """Remove up to `surplus` waiting slots, the newest first and enqueued ones last.

        A trial that a user enqueued loses its slot only; a larger budget gives it one again.
        Optuna numbers a new trial by how many there are, so only the study's last trial may
        vanish; a slot in between is closed as a failed trial, which nothing counts.
        """
        enqueued = self._enqueued_ids(connection)
        waiting = [
            s
            for s in counted
            if s.state == TrialState.WAITING and s.owner != self._owner and self._is_free(s)
        ]
        waiting.sort(key=lambda s: (s.trial_id in enqueued, -s.number))
        for slot in waiting[:surplus]:
            if not self._lock(connection, slot):
                continue
            connection.execute(sa.delete(slots).where(slots.c.trial_id == slot.trial_id))
            if slot.trial_id in enqueued:
                continue
            if slot.number == self._last_number(connection):
                for table in (*_OF_A_TRIAL, trials):
                    connection.execute(sa.delete(table).where(table.c.trial_id == slot.trial_id))
            else:
                connection.execute(
                    sa.update(trials)
                    .where(trials.c.trial_id == slot.trial_id)
                    .values(state=TrialState.FAIL)
                )

    def _enqueued_ids(self, connection: sa.Connection) -> set[int]:
        return set(
            connection.execute(
                sa.select(system_attributes.c.trial_id).where(system_attributes.c.key == _FIXED)
            ).scalars()
        )

    def _last_number(self, connection: sa.Connection) -> int | None:
        query = sa.select(sa.func.max(trials.c.number)).where(trials.c.study_id == self._study_id)
        last: int | None = connection.execute(query).scalar_one()
        return last


def fixed_parameters(trial: FrozenTrial) -> dict[str, Any]:
    """The parameters that an enqueued trial asks for; empty when the sampler may choose."""
    return dict(trial.system_attrs.get(_FIXED, {}))


def _utc_now() -> datetime:
    """Optuna stores times as naive UTC."""
    return datetime.now(UTC).replace(tzinfo=None)
