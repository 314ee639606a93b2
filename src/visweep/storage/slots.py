"""Slots: which trials a study has room for, and who may run each.

A slot is a trial of the study with a row in `visweep_slots`. A study with budget N has exactly N
slots that have not failed. A worker takes a slot by a lease, writes the trial's parameters and its
RUNNING state in one transaction, and renews the lease while it trains. Trials that other tools
added have no row; they are kept and not counted.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any

import sqlalchemy as sa
from optuna.distributions import BaseDistribution, distribution_to_json
from optuna.trial import TrialState

from visweep.storage import holders
from visweep.storage.budget import is_met, settle
from visweep.storage.clock import seconds_now
from visweep.storage.engine import Storage
from visweep.storage.holders import LEASE_SECONDS
from visweep.storage.lease import (
    HELD,
    SAME_TRIAL,
    UNFINISHED,
    EndedElsewhere,
    Lease,
    LeaseLost,
    Slot,
    lock,
    owner_of,
    read_slots,
    slots_where,
)
from visweep.storage.owner import Owner
from visweep.storage.replicates import find_alike, mark
from visweep.storage.retry import patient, watched
from visweep.storage.schema import new_uuid
from visweep.storage.tables import (
    RUNG,
    params,
    reports,
    slots,
    studies,
    system_attributes,
    trials,
)
from visweep.storage.writes import write_attributes, write_end

# What every trial asks, built once: that takes longer than asking.
_STUDY: sa.BindParameter[int] = sa.bindparam("this_study")
_TRIAL: sa.BindParameter[int] = sa.bindparam("this_trial")
_LEASED = (
    sa.select(slots.c.generation, slots.c.owner, trials.c.state)
    .join(trials, trials.c.trial_id == slots.c.trial_id)
    .where(slots.c.trial_id == _TRIAL, trials.c.study_id == _STUDY)
    .with_for_update()
)
_OWNERS = (
    sa.select(trials.c.number, slots.c.owner)
    .join(trials, SAME_TRIAL)
    .where(trials.c.study_id == _STUDY, UNFINISHED, HELD)
)
_TAKEN = slots_where(UNFINISHED, sa.or_(trials.c.state == TrialState.RUNNING, HELD))
_NEXT = slots_where(trials.c.state == TrialState.WAITING, sa.not_(HELD), most=1)
_UNFINISHED = (
    sa.select(sa.func.count())
    .select_from(trials)
    .join(slots, SAME_TRIAL)
    .where(trials.c.study_id == _STUDY, UNFINISHED)
)
_IDS = sa.select(slots.c.trial_id).where(slots.c.study_id == _STUDY)
_TALLY = sa.select(sa.func.count(), sa.func.sum(slots.c.trial_id)).where(
    slots.c.study_id == _STUDY
)
_LOCK_STUDY = sa.select(studies.c.study_id).where(studies.c.study_id == _STUDY).with_for_update()
_OF_TRIAL = slots.c.trial_id == _TRIAL
_LEASE = (
    sa.update(slots)
    .where(_OF_TRIAL)
    .values(
        owner=sa.bindparam("new_owner"),
        generation=sa.bindparam("new_generation"),
        heartbeat=0,
        renewed=seconds_now(),
        lost=sa.bindparam("new_lost"),
        reached=sa.bindparam("new_reached"),
    )
)
_RENEW = (
    sa.update(slots)
    .where(_OF_TRIAL)
    .values(heartbeat=slots.c.heartbeat + 1, renewed=seconds_now())
)
_RELEASE = (
    sa.update(slots)
    .where(_OF_TRIAL, slots.c.generation == sa.bindparam("this_generation"))
    .values(owner=None, renewed=None)
)
_FORGET_PARAMETERS = sa.delete(params).where(params.c.trial_id == _TRIAL)
_ADD_PARAMETER = sa.insert(params)
_RUN = (
    sa.update(trials)
    .where(trials.c.trial_id == _TRIAL)
    .values(state=TrialState.RUNNING, datetime_start=sa.bindparam("now"))
)
_IDENTIFY = (
    sa.update(slots)
    .where(_OF_TRIAL)
    .values(uuid=sa.func.coalesce(slots.c.uuid, sa.bindparam("new_uuid")))
)


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
        self._of_study = {"this_study": study_id}
        self._owner = owner
        self._owner_text = owner.to_text()
        self.lease_seconds = lease_seconds
        # No clocks of two machines are compared: a heartbeat is timed by who watches it.
        self._seen: dict[int, tuple[tuple[int, int], float]] = {}
        self._trial_ids: frozenset[int] = frozenset()

    @patient
    def set_budget(self, budget: int, first: Mapping[str, Any] | None = None) -> None:
        """Make it exactly `budget` slots, as far as that removes no trial that was started.

        Args:
            budget: how many trials the study is to finish.
            first: the parameters of the first slot that a new study gets.
        """
        with self._storage.reading() as connection:
            # Nearly always; and every worker asks before each trial, so it keeps nobody waiting.
            if is_met(connection, self._study_id, budget):
                return
        with self._storage.transaction() as connection:
            self._lock_study(connection)
            settle(connection, self._study_id, budget, first, self._is_not_held)

    @patient
    def take(self) -> Lease | None:
        """Lease a slot: first of a trial whose worker died, else the next waiting one.

        Returns None when every slot is finished or held by a worker that lives.
        """
        with self._storage.transaction() as connection:
            self._lock_study(connection)
            for slot in self._candidates(connection):
                if self._is_free(slot) and lock(connection, slot):
                    return self._lease(connection, slot)
        return None

    @patient
    def unfinished(self) -> int:
        """How many slots still wait or run, whoever holds them."""
        with self._storage.reading() as connection:
            return int(connection.execute(_UNFINISHED, self._of_study).scalar_one())

    @patient
    def held_by_others(self) -> dict[int, Owner]:
        """Who else holds unfinished slots, by the numbers of their trials."""
        with self._storage.reading() as connection:
            held = connection.execute(_OWNERS, self._of_study).all()
        return {n: owner_of(n, owner) for n, owner in held if owner != self._owner_text}

    @patient
    def working_here(self) -> int:
        """How many workers of this machine hold a trial, of any study in the storage."""
        with self._storage.reading() as connection:
            found = (slot.holder for slot in holders.unfinished(connection))
            return len({h.pid for h in found if h is not None and h.here and not h.gone})

    @patient
    def trial_ids(self) -> frozenset[int]:
        """The trials that have a slot; others were added by other tools."""
        with self._storage.reading() as connection:
            count, total = connection.execute(_TALLY, self._of_study).one()
            # They seldom change, and there may be thousands.
            if (count, total or 0) != (len(self._trial_ids), sum(self._trial_ids)):
                self._trial_ids = frozenset(connection.execute(_IDS, self._of_study).scalars())
        return self._trial_ids

    @patient
    def begin(
        self,
        lease: Lease,
        parameters: Mapping[str, Any],
        space: Mapping[str, BaseDistribution],
        *,
        alike: Collection[int] | None = None,
        attributes: Mapping[str, Any] = MappingProxyType({}),
    ) -> bool:
        """Write a leased trial's parameters and set it RUNNING, in one transaction.

        From then on the trial has an identity of its own, wherever the study is moved.

        Args:
            lease: of the trial.
            parameters: a point of the space.
            space: of the study.
            alike: the trials that are known to have these parameters; None where none matter.
            attributes: what the trial says of being a replicate.

        Returns:
            False, with nothing written, when others than `alike` have these parameters by now.

        Raises:
            LeaseLost: the lease is no longer held.
        """
        own = {"this_trial": lease.trial_id}
        rows = [
            {
                "trial_id": lease.trial_id,
                "param_name": name,
                "param_value": distribution.to_internal_repr(parameters[name]),
                "distribution_json": distribution_to_json(distribution),
            }
            for name, distribution in space.items()
        ]
        with self._leased(lease) as connection:
            if alike is not None:
                # No two trials may begin at once, each without knowing of the other.
                self._lock_study(connection)
                if self._alike(connection, lease, parameters, space) != alike:
                    return False
            connection.execute(_FORGET_PARAMETERS, own)
            if rows:
                connection.execute(_ADD_PARAMETER, rows)
            connection.execute(_RUN, {**own, "now": _utc_now()})
            connection.execute(_IDENTIFY, {**own, "new_uuid": new_uuid()})
            mark(connection, lease.trial_id, attributes)
        return True

    @patient
    def alike(
        self, lease: Lease, parameters: Mapping[str, Any], space: Mapping[str, BaseDistribution]
    ) -> frozenset[int]:
        """The other trials of these parameters that are finished or run; see `find_alike`."""
        with self._storage.reading() as connection:
            return self._alike(connection, lease, parameters, space)

    @patient
    def start_over(self, lease: Lease) -> None:
        """Forget what was reported of a trial that has to be trained from its first epoch again.

        Raises:
            LeaseLost: the lease is no longer held.
        """
        with self._leased(lease) as connection:
            connection.execute(sa.delete(reports).where(reports.c.trial_id == lease.trial_id))
            connection.execute(
                sa.delete(system_attributes).where(
                    system_attributes.c.trial_id == lease.trial_id,
                    system_attributes.c.key.startswith(RUNG, autoescape=True),
                )
            )

    @patient
    def forget(self, lease: Lease, keys: Sequence[str]) -> None:
        """Delete system attributes of a trial.

        Raises:
            LeaseLost: the lease is no longer held.
        """
        with self._leased(lease) as connection:
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
        with self._leased(lease) as connection:
            connection.execute(_RENEW, {"this_trial": lease.trial_id})

    def finish(
        self,
        lease: Lease,
        state: TrialState,
        value: float | None,
        attributes: Mapping[str, Any],
    ) -> None:
        """End a trial, and give its slot back: all that is said of it, in one transaction.

        Args:
            lease: of the trial.
            state: that it ends in.
            value: that it comes to, if any.
            attributes: of the user's kind, that are set.

        Raises:
            LeaseLost: the lease is no longer held.
        """
        values = None if value is None else [value]

        def end() -> bool:
            with self._leased(lease) as connection:
                write_attributes(connection, lease.trial_id, attributes)
                write_end(connection, lease.trial_id, state, values)
                self._release(connection, lease)
            return True

        self._storage.end(end, lease.trial_id, state, values)

    @patient
    def release(self, lease: Lease) -> None:
        """Give the slot back; the trial can be leased again at once."""
        with self._storage.transaction() as connection:
            self._release(connection, lease)

    def _release(self, connection: sa.Connection, lease: Lease) -> None:
        which = {"this_trial": lease.trial_id, "this_generation": lease.generation}
        connection.execute(_RELEASE, which)

    @contextmanager
    def _leased(self, lease: Lease) -> Iterator[sa.Connection]:
        """A writing transaction under a lease; where it is fenced already it is so once."""
        with self.fenced(lease), self._storage.transaction() as connection:
            yield connection

    def _require(self, connection: sa.Connection, lease: Lease) -> None:
        which = {**self._of_study, "this_trial": lease.trial_id}
        held = connection.execute(_LEASED, which).first()
        if held is None:
            raise LeaseLost(f"trial {lease.number} was deleted")
        # Ended before it was given back, where both happened: its generation is still ours.
        ended = held.generation == lease.generation and held.state.is_finished()
        if not ended and (held.generation, held.owner) != (lease.generation, self._owner_text):
            raise LeaseLost(f"trial {lease.number} was adopted by another worker")
        if ended:
            raise EndedElsewhere(f"trial {lease.number} was finished by another tool")

    def _alike(
        self,
        connection: sa.Connection,
        lease: Lease,
        parameters: Mapping[str, Any],
        space: Mapping[str, BaseDistribution],
    ) -> frozenset[int]:
        return find_alike(connection, self._study_id, parameters, space) - {lease.trial_id}

    def _candidates(self, connection: sa.Connection) -> list[Slot]:
        """All slots that are begun or held, and the first of the others.

        Trials that were begun come first, so that they are not left behind.
        """
        taken = read_slots(connection, self._study_id, _TAKEN)
        next_one = read_slots(connection, self._study_id, _NEXT)
        found = [*taken, *next_one]
        return sorted(found, key=lambda s: (s.state != TrialState.RUNNING, s.number))

    def _is_not_held(self, slot: Slot) -> bool:
        return slot.owner != self._owner and self._is_free(slot)

    def _is_free(self, slot: Slot) -> bool:
        if slot.owner is None or slot.owner == self._owner or slot.owner.is_gone():
            return True
        beat = (slot.generation, slot.heartbeat)
        seen, since = self._seen.get(slot.trial_id, (None, 0.0))
        if seen != beat:
            self._seen[slot.trial_id] = (beat, time.monotonic())
            return False
        since = max(since, self.patience.watching_since())
        return time.monotonic() - since > self.lease_seconds

    def _lease(self, connection: sa.Connection, slot: Slot) -> Lease:
        generation = slot.generation + 1
        # Another tool may have taken it: without a generation, its parameters are not ours.
        adopted = slot.state == TrialState.RUNNING and slot.generation > 0
        reached = self._reached(connection, slot) if adopted else 0
        lost = _lost(slot, reached) if adopted else 0
        connection.execute(
            _LEASE,
            {
                "this_trial": slot.trial_id,
                "new_owner": self._owner_text,
                "new_generation": generation,
                "new_lost": lost,
                "new_reached": reached,
            },
        )
        return Lease(slot.trial_id, slot.number, generation, adopted, lost)

    def _reached(self, connection: sa.Connection, slot: Slot) -> int:
        query = sa.select(sa.func.max(reports.c.step)).where(reports.c.trial_id == slot.trial_id)
        return connection.execute(query).scalar_one() or 0

    def _lock_study(self, connection: sa.Connection) -> None:
        """Let no other worker count or lease slots meanwhile; SQLite's write lock does already."""
        connection.execute(_LOCK_STUDY, self._of_study)


def _lost(slot: Slot, reached: int) -> int:
    """How many workers in a row were lost with a trial at this epoch, its last one included."""
    if slot.owner is None:
        return 0  # it was given back
    return slot.lost + 1 if reached <= slot.reached else 1


def _utc_now() -> datetime:
    """Optuna stores times as naive UTC."""
    return datetime.now(UTC).replace(tzinfo=None)
