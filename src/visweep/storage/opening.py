"""Opening the storage at a URL, be it there, being made by others, or to be made."""

from __future__ import annotations

import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import sqlalchemy

from visweep.errors import StorageError, UsageError
from visweep.storage import schema, server
from visweep.storage.engine import Storage
from visweep.storage.failures import DATABASE_ERRORS, describe
from visweep.storage.tables import studies
from visweep.storage.url import check_sqlite_file, parse, sqlite_path, without_password

_CREATION = 7_239_001
"""Key of the lock under which tables are created on a server; any number will do."""


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
