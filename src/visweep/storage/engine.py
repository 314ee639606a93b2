"""Optuna's relational storage, made safe for several processes and for a database that goes away.

Every method waits for a database that is away (see `storage.retry`), unless its docstring says
otherwise; what it writes is the same when it is written twice.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Container, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import sqlalchemy
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState

from visweep.storage.failures import TrialEnded
from visweep.storage.history import History, Wanted, read_trial
from visweep.storage.retry import patient
from visweep.storage.tables import studies, study_attributes
from visweep.storage.transactions import Transactions, locked
from visweep.storage.writes import lock_row, lock_trial, write_attributes, write_report

# What every trial asks, built once: that takes longer than asking.
_STUDY: sqlalchemy.BindParameter[int] = sqlalchemy.bindparam("this_study")
_KEYS: sqlalchemy.BindParameter[Sequence[str]] = sqlalchemy.bindparam("these_keys", expanding=True)
_IS_THERE = sqlalchemy.select(studies.c.study_id).where(studies.c.study_id == _STUDY)
_STUDY_ATTRIBUTES = sqlalchemy.select(study_attributes.c.key, study_attributes.c.value_json).where(
    study_attributes.c.study_id == _STUDY
)
_SOME_STUDY_ATTRIBUTES = _STUDY_ATTRIBUTES.where(study_attributes.c.key.in_(_KEYS))


class Storage(Transactions):
    """An `optuna.storages.RDBStorage` for workers that share it.

    Args:
        url, only_read: see `Transactions`.
    """

    def __init__(self, url: str, *, only_read: bool = False) -> None:
        self._history = History()
        super().__init__(url, only_read=only_read)

    @patient
    def set_study_attributes_once(self, study_id: int, attributes: Mapping[str, Any]) -> bool:
        """Give a study user attributes, all or none: none if it has the first one already.

        Returns whether it had not; where the answer was lost, it has them from the first attempt.
        """
        table = study_attributes
        first = next(iter(attributes))
        with self.transaction() as connection:
            lock_row(connection, studies.c.study_id, study_id)
            there = sqlalchemy.select(table.c.key).where(
                table.c.study_id == study_id, table.c.key == first
            )
            if connection.execute(there).first() is not None:
                return False
            connection.execute(
                sqlalchemy.insert(table),
                [
                    {"study_id": study_id, "key": key, "value_json": json.dumps(value)}
                    for key, value in attributes.items()
                ],
            )
            return True

    @patient
    def set_trial_attributes(self, trial_id: int, attributes: Mapping[str, Any]) -> None:
        """Set several user attributes of a trial in one transaction."""
        with self.transaction() as connection:
            lock_trial(connection, trial_id)
            write_attributes(connection, trial_id, attributes)

    @patient
    def set_trial_intermediate_value(
        self, trial_id: int, step: int, intermediate_value: float
    ) -> None:
        """Report a value, as Optuna does; in fewer steps, since the lock is held meanwhile.

        Raises:
            KeyError: there is no such trial.
            UpdateFinishedTrialError: it is finished.
        """
        with self.transaction() as connection:
            state = lock_trial(connection, trial_id)
            if state is None:
                raise KeyError(f"no trial has the id {trial_id}")
            self.check_trial_is_updatable(trial_id, state)
            write_report(connection, trial_id, step, intermediate_value)

    def set_trial_state_values(
        self, trial_id: int, state: TrialState, values: Sequence[float] | None = None
    ) -> bool:
        """Change a trial's state, as Optuna does; not repeated where it claims a trial."""

        def change() -> bool:
            with self.writing():
                return RDBStorage.set_trial_state_values(self, trial_id, state, values)

        # The second attempt to claim a trial could not tell the first one from another worker.
        claims = state == TrialState.RUNNING
        return change() if claims else self.end(change, trial_id, state, values)

    def end(
        self,
        change: Callable[[], bool],
        trial_id: int,
        state: TrialState,
        values: Sequence[float] | None,
    ) -> bool:
        """What `change` returns, a transaction that ends a trial; it is repeated where needed.

        An attempt that finds the trial ended just so was not the first to succeed.

        Raises:
            TrialEnded, UpdateFinishedTrialError: the trial had ended before.
        """
        attempts = 0

        def attempt() -> bool:
            nonlocal attempts
            attempts += 1
            try:
                return change()
            except (TrialEnded, UpdateFinishedTrialError):
                # Only the answer to the attempt before may have been lost.
                if attempts == 1 or not self._ended_as(trial_id, state, values):
                    raise
                return True

        return self.patience.call(attempt)

    def _ended_as(self, trial_id: int, state: TrialState, values: Sequence[float] | None) -> bool:
        found = RDBStorage.get_trial(self, trial_id)
        return found.state == state and found.values == (values and list(values))

    def delete_study(self, study_id: int) -> None:
        """Delete a study and everything in it."""
        attempts = 0

        def delete() -> None:
            nonlocal attempts
            attempts += 1
            try:
                with self.writing():
                    RDBStorage.delete_study(self, study_id)
            except KeyError:
                if attempts == 1:
                    raise

        self.patience.call(delete)

    # Optuna repeats this by itself, and a repeated one may leave a trial that nobody runs.
    # Optuna's cache calls it and some others by their private names.
    _create_new_trial = locked(RDBStorage._create_new_trial)

    create_new_study = patient(locked(RDBStorage.create_new_study))
    set_study_user_attr = patient(locked(RDBStorage.set_study_user_attr))
    set_study_system_attr = patient(locked(RDBStorage.set_study_system_attr))
    _set_trial_param = patient(locked(RDBStorage._set_trial_param))
    set_trial_user_attr = patient(locked(RDBStorage.set_trial_user_attr))
    set_trial_system_attr = patient(locked(RDBStorage.set_trial_system_attr))

    get_study_id_from_name = patient(RDBStorage.get_study_id_from_name)
    get_study_name_from_id = patient(RDBStorage.get_study_name_from_id)
    get_study_directions = patient(RDBStorage.get_study_directions)
    get_study_system_attrs = patient(RDBStorage.get_study_system_attrs)
    get_all_studies = patient(RDBStorage.get_all_studies)
    get_trial_user_attrs = patient(RDBStorage.get_trial_user_attrs)
    get_trial_system_attrs = patient(RDBStorage.get_trial_system_attrs)
    get_trial_param = patient(RDBStorage.get_trial_param)
    get_trial_id_from_study_id_trial_number = patient(
        RDBStorage.get_trial_id_from_study_id_trial_number
    )
    get_all_trials = patient(RDBStorage.get_all_trials)
    get_best_trial = patient(RDBStorage.get_best_trial)

    @patient
    def get_study_user_attrs(self, study_id: int) -> dict[str, Any]:
        """The user attributes of a study.

        Raises:
            KeyError: there is no such study.
        """
        return self._study_attributes(study_id, _STUDY_ATTRIBUTES)

    @patient
    def get_study_attributes(self, study_id: int, *keys: str) -> dict[str, Any]:
        """Some user attributes of a study, those that it has; the others may be long to read.

        Raises:
            KeyError: there is no such study.
        """
        return self._study_attributes(study_id, _SOME_STUDY_ATTRIBUTES, {"these_keys": keys})

    def _study_attributes(
        self,
        study_id: int,
        query: sqlalchemy.Select[str, str],
        keys: Mapping[str, Any] = MappingProxyType({}),
    ) -> dict[str, Any]:
        own = {"this_study": study_id}
        with self.reading() as connection:
            found = connection.execute(query, {**own, **keys}).all()
            if not found and connection.execute(_IS_THERE, own).first() is None:
                raise KeyError(f"no study has the id {study_id}")
        return {key: json.loads(text) for key, text in found}

    @patient
    def get_trial(self, trial_id: int) -> FrozenTrial:
        """A trial as it is now.

        Raises:
            KeyError: there is no such trial.
        """
        with self.reading() as connection:
            found = read_trial(connection, trial_id)
        if found is None:
            raise KeyError(f"no trial has the id {trial_id}")
        return found

    @patient
    def _get_trials(
        self,
        study_id: int,
        states: Container[TrialState] | None,
        included_trial_ids: set[int],
        trial_id_greater_than: int,
    ) -> list[FrozenTrial]:
        wanted = Wanted(study_id, trial_id_greater_than, included_trial_ids, states)
        with self.reading() as connection:
            return self._history.read(connection, wanted)
