"""Storage URLs: what is accepted, and what must hold before anything is written."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from visweep.errors import UsageError

SCHEMES = ("sqlite", "postgresql", "postgresql+psycopg")
_HEADER = b"SQLite format 3\x00"


def parse(url: str) -> URL:
    """The parsed storage URL; a relative SQLite path is taken from the current folder.

    Raises:
        UsageError: it is no URL, its scheme is unknown, or it names no SQLite file.
    """
    try:
        parsed = make_url(url)
    except ArgumentError:
        raise UsageError(
            f"--storage: {url!r} is not a URL; accepted: sqlite:///FILE or "
            "postgresql+psycopg://USER@HOST/DATABASE"
        ) from None
    if parsed.drivername not in SCHEMES:
        raise UsageError(
            f"--storage: unknown scheme {parsed.drivername!r}; accepted: {', '.join(SCHEMES)}"
        )
    if parsed.drivername == "sqlite" and parsed.database in (None, "", ":memory:"):
        raise UsageError("--storage: a study must outlive the command; accepted: sqlite:///FILE")
    return parsed


def sqlite_path(url: URL) -> Path | None:
    """The file of a SQLite URL; None for a server."""
    if url.drivername != "sqlite" or url.database is None:
        return None
    return Path(url.database)


def without_password(url: URL) -> str:
    """The URL as it may be shown."""
    return url.render_as_string(hide_password=True)


def check_sqlite_file(path: Path, must_exist: bool) -> None:
    """See that `path` is an intact SQLite file, or that one can be made there.

    Raises:
        UsageError: it is something else, or its folder is missing or cannot be written.
    """
    if not path.exists():
        if must_exist:
            raise UsageError(f"--storage: there is no file {path}")
        check_folder(path.parent)
        return
    if not path.is_file():
        raise UsageError(f"--storage: {path} is not a file")
    if not os.access(path, os.R_OK):
        raise UsageError(f"--storage: {path} cannot be read")
    with path.open("rb") as file:
        header = file.read(len(_HEADER))
    # SQLite itself takes an empty file for a new database, and a truncated study for an empty one.
    if not header:
        raise UsageError(
            f"--storage: {path} is empty (0 bytes); delete it if it never held a study"
        )
    if header != _HEADER:
        raise UsageError(f"--storage: {path} is not an SQLite file")
    if not must_exist:
        check_folder(path.parent)
        if not os.access(path, os.W_OK):
            raise UsageError(f"--storage: {path} cannot be written")


def check_folder(folder: Path) -> None:
    """See that a file can be made in a folder.

    Raises:
        UsageError: it is missing or cannot be written.
    """
    if not folder.is_dir():
        raise UsageError(f"--storage: there is no folder {folder}; create it first")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UsageError(f"--storage: the folder {folder} cannot be written")


def read_only(path: Path) -> sqlite3.Connection:
    """A connection that cannot change the data, and leaves no log behind when it is closed."""
    log = path.with_name(f"{path.name}-wal")
    # SQLite keeps its log in files beside the database, and only who may write can remove them.
    if os.access(path, os.W_OK) and os.access(path.parent, os.W_OK):
        mode = "mode=rw"
    else:
        mode = "mode=ro" if log.exists() else "immutable=1"
    connection = sqlite3.connect(f"{path.resolve().as_uri()}?{mode}", uri=True, timeout=30)
    connection.execute("PRAGMA query_only = ON")
    return connection
