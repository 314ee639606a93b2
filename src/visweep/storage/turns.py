"""Taking turns: what is more than one transaction, and must not happen twice at the same time.

It keeps nobody from reading or writing, but those who wait for their turn. A turn ends with its
process, however that ends.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import sqlalchemy as sa

from visweep.errors import StorageError
from visweep.storage.engine import Storage
from visweep.storage.url import sqlite_path

_ATTACHING = 7_239
"""The first of two keys of PostgreSQL's advisory locks, the second of which is the study's."""


@contextmanager
def turn(storage: Storage, study_id: int) -> Iterator[None]:
    """Attaching to a study, one process at a time: the others wait.

    On SQLite one process at a time attaches to any study of the databases in a folder.

    Raises:
        StorageError: the database cannot be reached, or its folder not be locked.
    """
    path = sqlite_path(storage.engine.url)
    if path is None:
        with _turn_by_server(storage, study_id):
            yield
    else:
        with _turn_by_folder(path.absolute().parent):
            yield


@contextmanager
def _turn_by_server(storage: Storage, study_id: int) -> Iterator[None]:
    with storage.reading() as connection:
        # By default the server ends a transaction that waits for files to be written elsewhere.
        connection.execute(sa.text("SET LOCAL idle_in_transaction_session_timeout = 0"))
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_ATTACHING, study_id)))
        yield


@contextmanager
def _turn_by_folder(folder: Path) -> Iterator[None]:
    """A lock of the folder leaves no file behind, and SQLite's own locks of its files alone."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError as e:
        raise StorageError(f"{folder}: cannot be read ({e.strerror})") from e
    try:
        _lock(handle, folder)
        yield
    finally:
        os.close(handle)


def _lock(handle: int, folder: Path) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
    except OSError as e:
        raise StorageError(f"{folder}: cannot be locked ({e.strerror})") from e
