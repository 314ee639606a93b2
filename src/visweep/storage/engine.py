"""Optuna's relational storage, made safe for several processes on one SQLite file.

Optuna reads a trial and then writes it, in transactions that SQLite begins as reads: two workers
can both read WAITING and both start the trial. Here every transaction of a writing method begins
IMMEDIATE, so that read and write are one; transactions that only read do not take the lock.
"""

from __future__ import annotations

import json
import sqlite3
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy
from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
from optuna.storages._rdb import models
from sqlalchemy import event
from sqlalchemy.exc import DBAPIError

from visweep.errors import StorageError, UsageError
from visweep.storage import schema
from visweep.storage.url import check_sqlite_file, parse, sqlite_path, without_password

Method = TypeVar("Method", bound=Callable[..., Any])

user_attributes: sqlalchemy.Table = models.TrialUserAttributeModel.__table__

study_attributes: sqlalchemy.Table = models.StudyUserAttributeModel.__table__

DATABASE_ERRORS = (DBAPIError, StorageInternalError)
"""What the driver raises, and what Optuna makes of it."""
LOCK_TIMEOUT = 30
"""Seconds to wait for another process's write before giving up."""


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
    """

    def __init__(self, url: str) -> None:
        self._intent = threading.local()
        # Optuna fills in a template; a brace in a path is none.
        template = url.replace("{", "{{").replace("}", "}}")
        try:
            super().__init__(template, engine_kwargs=_engine_arguments(url))
            event.listen(self.engine, "begin", self._begin)
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
        """One writing transaction: all of it happens or nothing does.

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
        """One consistent view of the database, which keeps nobody from writing.

        Raises:
            StorageError: the database is damaged or unreachable.
        """
        try:
            with self.engine.connect() as connection:
                yield connection
        except DBAPIError as e:
            raise StorageError(describe(e, self.engine.url)) from e

    def set_study_attributes_once(self, study_id: int, attributes: Mapping[str, Any]) -> bool:
        """Give a study user attributes, all or none: none if it has the first one already."""
        table = study_attributes
        first = next(iter(attributes))
        with self.transaction() as connection:
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

    def set_trial_attributes(self, trial_id: int, attributes: Mapping[str, Any]) -> None:
        """Set several user attributes of a trial in one transaction."""
        with self.transaction() as connection:
            keys = sqlalchemy.and_(
                user_attributes.c.trial_id == trial_id,
                user_attributes.c.key.in_(list(attributes)),
            )
            connection.execute(sqlalchemy.delete(user_attributes).where(keys))
            connection.execute(
                sqlalchemy.insert(user_attributes),
                [
                    {"trial_id": trial_id, "key": key, "value_json": json.dumps(value)}
                    for key, value in attributes.items()
                ],
            )

    def close(self) -> None:
        """Close all connections; the last process to do so folds the log into the file."""
        self.scoped_session.remove()
        self.engine.dispose()

    def _begin(self, connection: sqlalchemy.Connection) -> None:
        writes = getattr(self._intent, "write", False)
        if self.engine.dialect.name == "sqlite":
            connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
        check = getattr(self._intent, "check", None)
        if writes and check is not None:
            check(connection)

    create_new_study = _locked(RDBStorage.create_new_study)
    delete_study = _locked(RDBStorage.delete_study)
    set_study_user_attr = _locked(RDBStorage.set_study_user_attr)
    set_study_system_attr = _locked(RDBStorage.set_study_system_attr)
    # Optuna's cache calls these two by their private names.
    _create_new_trial = _locked(RDBStorage._create_new_trial)
    _set_trial_param = _locked(RDBStorage._set_trial_param)
    set_trial_state_values = _locked(RDBStorage.set_trial_state_values)
    set_trial_intermediate_value = _locked(RDBStorage.set_trial_intermediate_value)
    set_trial_user_attr = _locked(RDBStorage.set_trial_user_attr)
    set_trial_system_attr = _locked(RDBStorage.set_trial_system_attr)


def open_storage(url: str, *, must_exist: bool = False) -> Storage:
    """Open the storage at `url`; a missing SQLite file is created unless it `must_exist`.

    Raises:
        UsageError: the URL is not accepted, or what lies there is not ours to use.
        StorageError: the database cannot be reached or is damaged.
    """
    parsed = parse(url)
    path = sqlite_path(parsed)
    try:
        if path is not None:
            check_sqlite_file(path, must_exist)
            if path.exists():
                schema.check(path)
            else:
                _create(parsed, path)
        return Storage(url)
    except ImportError as e:
        raise UsageError(
            f"--storage: the driver for {parsed.drivername!r} is not installed ({e.__cause__})"
        ) from e
    except (*DATABASE_ERRORS, sqlite3.Error) as e:
        raise StorageError(describe(e, parsed)) from e
    except OSError as e:
        raise UsageError(f"--storage: {path} cannot be made ({e.strerror})") from e
    except RuntimeError as e:
        # Optuna's own word on a schema of another version of it.
        first_line = str(e).splitlines()[0]
        raise UsageError(f"--storage {without_password(parsed)}: {first_line}") from e


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
            made.replace(path)


def describe(error: BaseException, url: sqlalchemy.URL) -> str:
    """One line that says what is wrong with the storage, from the driver's own words."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, DBAPIError):
        cause = cause.__cause__ or cause.__context__
    reason = str(cause.orig) if isinstance(cause, DBAPIError) else str(error)
    return f"storage {without_password(url)}: {reason.strip().splitlines()[0]}"


@contextmanager
def storage_errors(storage: Storage) -> Iterator[None]:
    """Turn what Optuna and the driver raise into a `StorageError` that names the cause."""
    try:
        yield
    except DATABASE_ERRORS as e:
        raise StorageError(describe(e, storage.engine.url)) from e


def _engine_arguments(url: str) -> dict[str, Any]:
    path = sqlite_path(parse(url))
    if path is None:
        return {"pool_pre_ping": True}
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
    """Where checkpoints and artifacts of this storage's studies lie: beside an SQLite file."""
    path = sqlite_path(parse(url))
    return (path.parent if path is not None else Path.cwd() / "storage") / "artifacts"
