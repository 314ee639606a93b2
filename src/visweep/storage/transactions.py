"""Transactions that only read, and writing ones that exclude each other.

Optuna reads a trial and then writes it, in transactions that SQLite begins as reads: two workers
can both read WAITING and both start the trial. Here every transaction of a writing method begins
IMMEDIATE, so that read and write are one; transactions that only read do not take the lock.
PostgreSQL has locks of rows, which the statements themselves take.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial, wraps
from typing import Any

import sqlalchemy
from optuna.storages import RDBStorage
from sqlalchemy import event
from sqlalchemy.exc import DBAPIError

from visweep.errors import StorageError
from visweep.storage import schema, server
from visweep.storage.failures import describe
from visweep.storage.retry import Method, Patience
from visweep.storage.url import parse, read_only, sqlite_path, without_password

LOCK_TIMEOUT = 30
"""Seconds to wait for another process's write before giving up."""


class Transactions(RDBStorage):
    """An `optuna.storages.RDBStorage` whose transactions read, or exclude each other.

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


def locked(method: Method) -> Method:
    """Let the transactions of a method take the write lock at once."""

    @wraps(method)
    def writing(self: Transactions, *args: Any, **kwargs: Any) -> Any:
        with self.writing():
            return method(self, *args, **kwargs)

    return writing  # type: ignore[return-value]


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
