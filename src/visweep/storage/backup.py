"""Copies of a database that is in use: each holds one moment, and nobody is kept waiting."""

from __future__ import annotations

import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.engine import URL

from visweep.errors import StorageError, UsageError, unknown_name
from visweep.storage import rows, schema
from visweep.storage.engine import Storage
from visweep.storage.failures import describe
from visweep.storage.opening import open_storage, open_to_read
from visweep.storage.rows import StudyRows
from visweep.storage.url import check_sqlite_file, parse, read_only, sqlite_path


def file_url(path: Path) -> str:
    """The storage URL of an SQLite file."""
    return URL.create("sqlite", database=str(path)).render_as_string()


def copy_database(path: Path, target: Path) -> None:
    """Copy an SQLite database, while others may write to it.

    Raises:
        StorageError: it is damaged, or the copy cannot be written.
    """
    try:
        with closing(read_only(path)) as source, closing(sqlite3.connect(target)) as copy:
            source.backup(copy)
    except sqlite3.Error as e:
        raise StorageError(describe(e, parse(file_url(path)))) from e
    except OSError as e:
        raise StorageError(f"{target}: the copy cannot be written ({e.strerror})") from e


def copy_beside(path: Path) -> Path:
    """Copy an SQLite database into a new file beside it, and return that.

    Raises:
        StorageError: it is damaged, or the copy cannot be written.
    """
    count = 1
    while (target := path.with_name(f"{path.name}.backup-{count}")).exists():
        count += 1
    with tempfile.TemporaryDirectory(prefix=f".{path.name}-", dir=path.parent) as folder:
        made = Path(folder) / path.name
        copy_database(path, made)
        made.rename(target)
    return target


@contextmanager
def frozen_copy(url: str) -> Iterator[sa.Connection]:
    """One moment of a storage, to be read; the storage itself is not written to.

    Tables of an older visweep are shown as this one makes them, in the copy of a file; a server's
    are refused.

    Raises:
        UsageError: there is no such storage, or it is not ours to use.
        StorageError: it cannot be reached or is damaged.
    """
    path = sqlite_path(parse(url))
    if path is None:
        storage = open_to_read(url)
        try:
            with storage.reading() as connection:
                schema.require_up_to_date(connection)
                yield connection
        finally:
            storage.close()
        return
    check_sqlite_file(path, must_exist=True)
    try:
        schema.check(path)
    except sqlite3.Error as e:
        raise StorageError(describe(e, parse(url))) from e
    with tempfile.TemporaryDirectory(prefix="visweep-") as folder:
        copy = Path(folder) / "copy.db"
        copy_database(path, copy)
        with opened_file(copy) as storage, storage.reading() as connection:
            yield connection


@contextmanager
def opened_file(path: Path) -> Iterator[Storage]:
    """An SQLite file of our own that nobody else uses; closed again afterwards."""
    storage = open_storage(file_url(path))
    try:
        yield storage
    finally:
        storage.close()


def read_study(connection: sa.Connection, name: str) -> StudyRows:
    """A study.

    Raises:
        UsageError: there is none of this name; the nearest is suggested.
    """
    found = rows.names(connection)
    if name not in found:
        if not found:
            raise UsageError(f"STUDY: {name!r} is not here: the storage holds no studies")
        raise unknown_name("STUDY", name, found)
    return rows.read(connection, name)
