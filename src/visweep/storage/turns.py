"""Taking turns: what is more than one transaction, and must not happen twice at the same time.

It keeps nobody from reading or writing, but those who wait for their turn. A turn ends with its
process, however that ends.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import sqlalchemy as sa

from visweep.errors import StorageError
from visweep.storage.engine import Storage
from visweep.storage.retry import LIMIT, NOTICE
from visweep.storage.url import sqlite_path, without_password

_ATTACHING = 7_239
"""The first of two keys of PostgreSQL's advisory locks, the second of which is the study's."""
_PAUSE = 0.1
"""Seconds between two attempts to get a turn."""

_log = logging.getLogger(__name__)


@contextmanager
def turn(storage: Storage, study_id: int) -> Iterator[None]:
    """Attaching to a study, one process at a time: the others wait, and say so.

    On SQLite one process at a time attaches to any study of the databases in a folder. The turn is
    a lock of that folder, where the file really lies; a system that has no such locks (Windows)
    has no turns, and nothing is attached there.

    On PostgreSQL it is a lock of the study that a connection holds, outside of any transaction, so
    that no limit of idle transactions ends it. It goes with that connection, however that ends:
    where the server restarts, the link breaks or a limit of idle sessions is reached in the midst
    of a turn, the turn goes on, but another process may begin its own, and what both attach may
    be mixed.

    Raises:
        StorageError: another process has its turn for longer than `LIMIT`; the database cannot be
            reached, or its folder not be locked.
    """
    url = storage.engine.url
    path = sqlite_path(url)
    if path is None:
        with _turn_by_server(storage, study_id, f"this study in {without_password(url)}"):
            yield
    else:
        with _turn_by_folder(path.resolve().parent):
            yield


@contextmanager
def _turn_by_server(storage: Storage, study_id: int, where: str) -> Iterator[None]:
    lock = sa.select(sa.func.pg_try_advisory_lock(_ATTACHING, study_id))
    with storage.reading() as connection:

        def taken() -> bool:
            held: bool = connection.execute(lock).scalar_one()
            connection.rollback()
            return held

        try:
            _wait(taken, where)
            yield
        finally:
            # In the pool it would keep the lock; and it may have been lost, which is no failure.
            connection.invalidate()


@contextmanager
def _turn_by_folder(folder: Path) -> Iterator[None]:
    """A lock of the folder leaves no file behind, and SQLite's own locks of its files alone."""
    try:
        # Here, since commands that attach nothing are to work where there is none.
        from fcntl import LOCK_EX, LOCK_NB, flock
    except ImportError as e:
        raise StorageError(f"{folder}: cannot be locked (this system has no flock)") from e

    def taken() -> bool:
        try:
            flock(handle, LOCK_EX | LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as e:
            raise StorageError(f"{folder}: cannot be locked ({e.strerror})") from e
        return True

    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError as e:
        raise StorageError(f"{folder}: cannot be read ({e.strerror})") from e
    try:
        _wait(taken, f"a study in {folder}")
        yield
    finally:
        os.close(handle)


def _wait(taken: Callable[[], bool], where: str) -> None:
    began, told = time.monotonic(), False
    while not taken():
        waited = time.monotonic() - began
        if waited >= LIMIT:
            raise StorageError(
                f"another process that attaches to {where} did not end within {waited:.0f} s: it "
                "may be suspended; let it go on or end it, then attach again"
            )
        if waited >= NOTICE and not told:
            _log.warning("waiting for another process that attaches to %s", where)
            told = True
        time.sleep(_PAUSE)
