"""Storage URLs: what is accepted, and what must hold before anything is written."""

from __future__ import annotations

import os
import re
import sqlite3
from pathlib import Path

from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from visweep.errors import UsageError
from visweep.storage.filesystem import refuse_network

SCHEMES = ("sqlite", "postgresql", "postgresql+psycopg")
_POSTGRESQL = "postgresql+psycopg"
_SAME = {"postgresql": _POSTGRESQL, "postgres": _POSTGRESQL}
"""Other spellings; `postgres` is libpq's own."""
_CREDENTIALS = re.compile(r"(\w:/+[^\s:/@]*:)\S*(?=@)")
_SECRET_QUERY = re.compile(r"([?&]\w*password=)[^&\s'\"]+", re.IGNORECASE)
_HEADER = b"SQLite format 3\x00"


def parse(url: str) -> URL:
    """The parsed storage URL; a relative SQLite path is taken from the current folder.

    Raises:
        UsageError: it is no URL, its scheme is unknown, or it names no SQLite file.
    """
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        # Without a grammar there is no telling where a password begins.
        shown = f"***@{url.rpartition('@')[2]}" if "@" in url else url
        raise UsageError(
            f"--storage: {shown!r} is not a URL; accepted: sqlite:///FILE or "
            "postgresql://USER@HOST/DATABASE"
        ) from None
    parsed = parsed.set(drivername=_SAME.get(parsed.drivername, parsed.drivername))
    if parsed.drivername not in SCHEMES:
        raise UsageError(
            f"--storage: unknown scheme {parsed.drivername!r}; accepted: {', '.join(SCHEMES)}"
        )
    if parsed.drivername == "sqlite" and parsed.host is not None:
        # SQLAlchemy takes what follows two slashes for a host, and drops it.
        raise UsageError(
            f"--storage: {without_password(parsed)!r} has two slashes; accepted: sqlite:///FILE, "
            "with three"
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
    hidden = {name: "***" for name in url.query if _is_secret(name)}
    return url.update_query_dict(hidden).render_as_string(hide_password=True)


def apart(url: URL) -> tuple[str, dict[str, str]]:
    """A URL that holds no password, and the environment that supplies it.

    The first may stand in the arguments of a command, which everyone on the machine can read;
    the second is for the child processes of this one.
    """
    password = url.query.get("password", url.password)
    bare = url._replace(password=None)
    bare = bare.difference_update_query([name for name in url.query if _is_secret(name)])
    environment = {} if password is None else {"PGPASSWORD": str(password)}
    return bare.render_as_string(hide_password=False), environment


def bare(argument: str) -> str:
    """An argument of a command line as it may be shown: a URL loses its password.

    The command still works where the password is in PGPASSWORD or in a password file.
    """
    option, equals, value = argument.partition("=")
    if equals and option.startswith("--"):
        return f"{option}={bare(value)}"
    if mask(argument) == argument:
        return argument
    try:
        return apart(make_url(argument))[0]
    except (ArgumentError, ValueError):
        return mask(argument)


def mask(text: str) -> str:
    """A text in which no URL shows its password."""
    return _SECRET_QUERY.sub(r"\g<1>***", _CREDENTIALS.sub(r"\g<1>***", text))


def _is_secret(name: str) -> bool:
    return "password" in name.lower()


def check_sqlite_file(path: Path, must_exist: bool) -> None:
    """See that `path` is an intact SQLite file, or that one can be made there.

    Raises:
        UsageError: it is something else, or its folder is missing or cannot be written.
    """
    refuse_network(path)
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
        raise UsageError(f"--storage: {path} is empty (0 bytes); {_why_empty(path)}")
    if header != _HEADER:
        raise UsageError(f"--storage: {path} is not an SQLite file")
    if not must_exist:
        check_folder(path.parent)
        if not os.access(path, os.W_OK):
            raise UsageError(f"--storage: {path} cannot be written")


def _why_empty(path: Path) -> str:
    log, artifacts = path.with_name(f"{path.name}-wal"), path.parent / "artifacts"
    held = next((p for p in (log, artifacts) if p.exists() and os.access(p, os.R_OK)), None)
    if held is None:
        return "delete it if it never held a study"
    return f"it held studies, since {held} is there: put back a copy of it, or unpack a pack"


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
