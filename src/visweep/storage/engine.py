"""Optuna's relational storage, made safe for several processes and for a database that goes away.

Optuna reads a trial and then writes it, in transactions that SQLite begins as reads: two workers
can both read WAITING and both start the trial. Here every transaction of a writing method begins
IMMEDIATE, so that read and write are one; transactions that only read do not take the lock.
PostgreSQL has locks of rows, which the statements themselves take.

Every method waits for a database that is away (see `storage.retry`), unless its docstring says
otherwise; what it writes is the same when it is written twice.
"""

from __future__ import annotations

import json
import sqlite3
import tempfile
import threading
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial, wraps
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import sqlalchemy
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.storages import RDBStorage
from optuna.storages._rdb.models import TrialIntermediateValueModel, TrialValueModel
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import event
from sqlalchemy.exc import DBAPIError

from visweep.errors import StorageError, UsageError, VisweepError
from visweep.folders import data_dir
from visweep.storage import schema, server
from visweep.storage.history import History, Wanted, read_trials
from visweep.storage.retry import Patience
from visweep.storage.tables import (
    reports,
    studies,
    study_attributes,
    trials,
    user_attributes,
    values,
)
from visweep.storage.url import (
    check_sqlite_file,
    parse,
    read_only,
    sqlite_path,
    without_password,
)

Method = TypeVar("Method", bound=Callable[..., Any])

DATABASE_ERRORS = (DBAPIError, StorageInternalError)
"""What the driver raises, and what Optuna makes of it."""
LOCK_TIMEOUT = 30
"""Seconds to wait for another process's write before giving up."""
_CREATION = 7_239_001
"""Key of the lock under which tables are created on a server; any number will do."""

# What every trial asks, built once: that takes longer than asking.
_STUDY: sqlalchemy.BindParameter[int] = sqlalchemy.bindparam("this_study")
_TRIAL: sqlalchemy.BindParameter[int] = sqlalchemy.bindparam("this_trial")
_KEYS: sqlalchemy.BindParameter[Sequence[str]] = sqlalchemy.bindparam("these_keys", expanding=True)
_IS_THERE = sqlalchemy.select(studies.c.study_id).where(studies.c.study_id == _STUDY)
_STUDY_ATTRIBUTES = sqlalchemy.select(study_attributes.c.key, study_attributes.c.value_json).where(
    study_attributes.c.study_id == _STUDY
)
_SOME_STUDY_ATTRIBUTES = _STUDY_ATTRIBUTES.where(study_attributes.c.key.in_(_KEYS))
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


class TrialEnded(VisweepError):
    """The trial is finished, so that nothing of it can be written any more."""


def patient(method: Method) -> Method:
    """Repeat a method while the database is away; `self.patience` knows how long.

    It may happen twice, so it must be a transaction that changes nothing the second time.
    """

    @wraps(method)
    def waiting(self: Any, *args: Any, **kwargs: Any) -> Any:
        return self.patience.call(partial(method, self, *args, **kwargs))

    return waiting  # type: ignore[return-value]


def watched(method: Method) -> Method:
    """Do not repeat a method, and remember when the database was away."""

    @wraps(method)
    def once(self: Any, *args: Any, **kwargs: Any) -> Any:
        return self.patience.once(partial(method, self, *args, **kwargs))

    return once  # type: ignore[return-value]


def _locked(method: Method) -> Method:
    @wraps(method)
    def writing(self: Storage, *args: Any, **kwargs: Any) -> Any:
        with self.writing():
            return method(self, *args, **kwargs)

    return writing  # type: ignore[return-value]


class Storage(RDBStorage):
    """An `optuna.storages.RDBStorage` whose writing transactions exclude each other.

    On SQLite it uses the write-ahead log, so that readers (a dashboard) never block the sweep,
    and full synchronisation, so that what is reported finished survives a power cut.

    Args:
        url: of the storage.
        only_read: whether nothing may be changed; then older tables stay as they are, and what
            Optuna writes is refused by the database.

    Attributes:
        patience: with which its methods wait for a database that is away.
    """

    def __init__(self, url: str, *, only_read: bool = False) -> None:
        self._only_read = only_read
        self._intent = threading.local()
        self._history = History()
        self.patience = Patience(without_password(parse(url)))
        # Optuna fills in a template; a brace in a path is none.
        template = url.replace("{", "{{").replace("}", "}}")
        try:
            super().__init__(
                template,
                engine_kwargs=_engine_arguments(url, only_read),
                skip_table_creation=only_read,
            )
            event.listen(self.engine, "begin", self._begin)
            if only_read:
                schema.require_known(self.engine)
            else:
                schema.prepare(self.engine, self.writing)
        except BaseException:
            if hasattr(self, "scoped_session"):
                self.close()
            raise

    def __getstate__(self) -> dict[Any, Any]:
        raise TypeError("open the storage anew in another process: it holds connections")

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Transactions that begin in this thread, in here, take the write lock at once."""
        before = getattr(self._intent, "write", False)
        self._intent.write = True
        try:
            yield
        finally:
            self._intent.write = before

    @contextmanager
    def fenced(self, check: Callable[[sqlalchemy.Connection], None]) -> Iterator[None]:
        """Each writing transaction of this thread, in here, begins with `check`.

        What `check` raises undoes the transaction: nothing of it is ever read.
        """
        before = getattr(self._intent, "check", None)
        self._intent.check = check
        try:
            yield
        finally:
            self._intent.check = before

    @contextmanager
    def transaction(self) -> Iterator[sqlalchemy.Connection]:
        """One writing transaction: all of it happens or nothing does. It is not repeated.

        Raises:
            StorageError: the database is locked for too long, full, damaged or unreachable.
        """
        try:
            with self.writing(), self.engine.begin() as connection:
                yield connection
        except DBAPIError as e:
            raise StorageError(describe(e, self.engine.url)) from e

    @contextmanager
    def reading(self) -> Iterator[sqlalchemy.Connection]:
        """One consistent view of the database, which keeps nobody from writing. Not repeated.

        Raises:
            StorageError: the database is damaged or unreachable.
        """
        # Optuna reads a trial that it may not change, to say so, while it holds the write lock;
        # a second connection that wanted it, too, would wait for itself.
        before = getattr(self._intent, "write", False)
        self._intent.write = False
        try:
            with self.engine.connect() as connection:
                yield connection
        except DBAPIError as e:
            raise StorageError(describe(e, self.engine.url)) from e
        finally:
            self._intent.write = before

    @patient
    def set_study_attributes_once(self, study_id: int, attributes: Mapping[str, Any]) -> bool:
        """Give a study user attributes, all or none: none if it has the first one already.

        Returns whether it had not; where the answer was lost, it has them from the first attempt.
        """
        table = study_attributes
        first = next(iter(attributes))
        with self.transaction() as connection:
            _lock_row(connection, studies.c.study_id, study_id)
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
            connection.execute(_LOCK_TRIAL, {"this_trial": trial_id})
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
        value, kind = TrialIntermediateValueModel.intermediate_value_to_stored_repr(
            intermediate_value
        )
        with self.transaction() as connection:
            own = {"this_trial": trial_id}
            state = connection.execute(_LOCK_TRIAL, own).scalar_one_or_none()
            if state is None:
                raise KeyError(f"no trial has the id {trial_id}")
            self.check_trial_is_updatable(trial_id, state)
            connection.execute(_FORGET_REPORT, {**own, "this_step": step})
            row = {"trial_id": trial_id, "step": step, "intermediate_value": value}
            connection.execute(
                sqlalchemy.insert(reports), {**row, "intermediate_value_type": kind}
            )

    def close(self) -> None:
        """Close all connections; the last process to do so folds the log into the file."""
        self.scoped_session.remove()
        self.engine.dispose()

    def _begin(self, connection: sqlalchemy.Connection) -> None:
        writes = getattr(self._intent, "write", False)
        if self.engine.dialect.name == "sqlite":
            connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
        else:
            server.set_view(connection, lasting=not writes)
            if self._only_read:
                connection.exec_driver_sql("SET TRANSACTION READ ONLY")
        check = getattr(self._intent, "check", None)
        if writes and check is not None:
            check(connection)

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
    _create_new_trial = _locked(RDBStorage._create_new_trial)

    create_new_study = patient(_locked(RDBStorage.create_new_study))
    set_study_user_attr = patient(_locked(RDBStorage.set_study_user_attr))
    set_study_system_attr = patient(_locked(RDBStorage.set_study_system_attr))
    _set_trial_param = patient(_locked(RDBStorage._set_trial_param))
    set_trial_user_attr = patient(_locked(RDBStorage.set_trial_user_attr))
    set_trial_system_attr = patient(_locked(RDBStorage.set_trial_system_attr))

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
            found = read_trials(connection, trials.c.trial_id == trial_id)
        if not found:
            raise KeyError(f"no trial has the id {trial_id}")
        return found[0]

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
    """End a trial that is locked and has not ended, as Optuna does; in fewer steps."""
    if reached is not None:
        connection.execute(_FORGET_VALUES, {"this_trial": trial_id})
        connection.execute(sqlalchemy.insert(values), _values(trial_id, reached))
    # Optuna stores times as naive UTC.
    now = datetime.now(UTC).replace(tzinfo=None)
    connection.execute(_END, {"this_trial": trial_id, "ends": state, "now": now})


def _values(trial_id: int, reached: Sequence[float]) -> list[dict[str, Any]]:
    stored = map(TrialValueModel.value_to_stored_repr, reached)
    return [
        {"trial_id": trial_id, "objective": objective, "value": value, "value_type": kind}
        for objective, (value, kind) in enumerate(stored)
    ]


def _lock_row(connection: sqlalchemy.Connection, key: sqlalchemy.Column[int], value: int) -> None:
    """Let nobody else change what belongs to a row; on SQLite the write lock does already."""
    connection.execute(sqlalchemy.select(key).where(key == value).with_for_update())


def open_storage(url: str, *, must_exist: bool = False) -> Storage:
    """Open the storage at `url`; what is missing is created unless it `must_exist`.

    A server that cannot be reached is not waited for: the URL may be wrong.

    Raises:
        UsageError: the URL is not accepted, or what lies there is not ours to use.
        StorageError: the database cannot be reached or is damaged.
    """
    parsed = parse(url)
    path = sqlite_path(parsed)
    with _opening(parsed, path):
        if path is None:
            return _open_server(parsed, must_exist)
        check_sqlite_file(path, must_exist)
        if path.exists():
            schema.check(path)
        else:
            _create(parsed, path)
        return Storage(url)


@contextmanager
def _opening(parsed: sqlalchemy.URL, path: Path | None) -> Iterator[None]:
    """What goes wrong in here is told in the words of whoever gave the URL."""
    try:
        yield
    except (*DATABASE_ERRORS, sqlite3.Error) as e:
        raise StorageError(describe(e, parsed)) from e
    except OSError as e:
        raise UsageError(f"--storage: {path} cannot be made ({e.strerror})") from e
    except RuntimeError as e:
        # Optuna's own word on a schema of another version of it.
        first_line = str(e).splitlines()[0]
        raise UsageError(f"--storage {without_password(parsed)}: {first_line}") from e


def open_to_read(url: str) -> Storage:
    """Open an existing storage for what only reads: nothing of it is created or changed.

    Tables of an older visweep are read as they are.

    Raises:
        UsageError: there is no such storage, or what lies there is not ours to use.
        StorageError: the database cannot be reached or is damaged.
    """
    parsed = parse(url)
    path = sqlite_path(parsed)
    with _opening(parsed, path):
        if path is not None:
            check_sqlite_file(path, must_exist=True)
            schema.check(path)
        else:
            engine = server.make_engine(parsed, poolclass=sqlalchemy.NullPool)
            with engine.connect() as connection:
                _require_studies(connection)
        return Storage(parsed.render_as_string(hide_password=False), only_read=True)


def _open_server(url: sqlalchemy.URL, must_exist: bool) -> Storage:
    """Open a database of a server; one process at a time, since creating a table twice fails."""
    engine = server.make_engine(url, poolclass=sqlalchemy.NullPool)
    with engine.begin() as connection:
        connection.execute(sqlalchemy.select(sqlalchemy.func.pg_advisory_xact_lock(_CREATION)))
        if must_exist:
            _require_studies(connection)
        return Storage(url.render_as_string(hide_password=False))


def _require_studies(connection: sqlalchemy.Connection) -> None:
    if not sqlalchemy.inspect(connection).has_table(studies.name):
        raise UsageError(f"--storage: {without_password(connection.engine.url)} holds no studies")


def _create(url: sqlalchemy.URL, path: Path) -> None:
    """Make a new file, which others see whole or not at all; they may be making it, too."""
    with tempfile.TemporaryDirectory(prefix=f".{path.name}-", dir=path.parent) as folder:
        made = Path(folder) / path.name
        Storage(url.set(database=str(made)).render_as_string(hide_password=False)).close()
        try:
            path.hardlink_to(made)
        except FileExistsError:
            pass
        except OSError:  # a file system without links
            if not path.exists():
                made.replace(path)


def describe(error: BaseException, url: sqlalchemy.URL) -> str:
    """One line that says what is wrong with the storage, from the driver's own words."""
    return f"storage {without_password(url)}: {server.reason(error)}"


@contextmanager
def storage_errors(storage: Storage) -> Iterator[None]:
    """Turn what Optuna and the driver raise into a `StorageError` that names the cause."""
    try:
        yield
    except DATABASE_ERRORS as e:
        raise StorageError(describe(e, storage.engine.url)) from e


def _engine_arguments(url: str, only_read: bool) -> dict[str, Any]:
    path = sqlite_path(parse(url))
    if path is None:
        return {"pool_pre_ping": True, "connect_args": server.connect_arguments(parse(url))}
    if only_read:
        return {"creator": partial(read_only, path)}
    return {
        "connect_args": {"timeout": LOCK_TIMEOUT},
        "pool_events": [(_configure_sqlite, "connect")],
    }


def _configure_sqlite(connection: Any, _: Any) -> None:
    # The driver must not begin transactions by itself: the `begin` event above does.
    connection.isolation_level = None
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout = {LOCK_TIMEOUT * 1000}")
    cursor.execute("PRAGMA journal_mode = WAL")
    cursor.execute("PRAGMA synchronous = FULL")
    cursor.close()


def artifact_folder(url: str) -> Path:
    """Where artifacts of this storage's studies lie unless they say otherwise.

    Beside an SQLite file; for a server, in a folder of the user's on this machine.
    """
    path = sqlite_path(parse(url))
    return (data_dir() if path is None else path.parent) / "artifacts"
