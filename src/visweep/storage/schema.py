"""Our own tables beside Optuna's, under a version number of their own.

Optuna owns the table `alembic_version`; ours is `visweep_version`.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, closing
from functools import cache
from pathlib import Path

import sqlalchemy as sa
from alembic.script import ScriptDirectory
from optuna.storages._rdb import models

from visweep.errors import UsageError
from visweep.storage.url import read_only

VERSION = 1

metadata = sa.MetaData()

version = sa.Table("visweep_version", metadata, sa.Column("version", sa.Integer, nullable=False))

slots = sa.Table(
    "visweep_slots",
    metadata,
    sa.Column("trial_id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("study_id", sa.Integer, nullable=False, index=True),
    # Who holds the lease, as JSON (see storage.owner.Owner); null when nobody does.
    sa.Column("owner", sa.Text, nullable=True),
    # Raised by every lease; a write under an older generation is refused.
    sa.Column("generation", sa.Integer, nullable=False, server_default="0"),
    # Raised by the holder while it lives.
    sa.Column("heartbeat", sa.Integer, nullable=False, server_default="0"),
)


def check(path: Path) -> None:
    """See that an SQLite file can be used, before anything is written to it.

    Raises:
        UsageError: it is another program's, or was made by a newer visweep or another Optuna.
    """
    with closing(read_only(path)) as connection:
        listed = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        tables = {row[0] for row in listed}
        if tables and tables.isdisjoint(models.BaseModel.metadata.tables):
            raise UsageError(f"--storage: {path} is another program's database")
        if version.name in tables:
            _require_known(connection.execute(f"SELECT version FROM {version.name}").fetchone()[0])
        if "alembic_version" in tables:
            found = connection.execute("SELECT version_num FROM alembic_version").fetchone()
            if found is not None:
                _require_current(path, found[0])


def _require_known(found: int) -> None:
    if found > VERSION:
        raise UsageError(
            f"--storage: made by a newer visweep (schema {found}, this one knows {VERSION}); "
            "upgrade visweep"
        )


def _require_current(path: Path, found: str) -> None:
    current, *older = _revisions()
    if found == current:
        return
    if found in older:
        raise UsageError(
            f"--storage: {path} was made by an older Optuna (schema {found}); run: "
            f"optuna storage upgrade --storage sqlite:///{path}"
        )
    raise UsageError(
        f"--storage: {path} was made by a newer Optuna (schema {found}); upgrade optuna"
    )


@cache
def _revisions() -> tuple[str, ...]:
    """The schemas that the installed Optuna knows, newest first."""
    scripts = ScriptDirectory(str(Path(models.__file__).parent / "alembic"))
    return tuple(script.revision for script in scripts.walk_revisions())


def prepare(engine: sa.Engine, writing: Callable[[], AbstractContextManager[None]]) -> None:
    """Create our tables where they are missing.

    Raises:
        UsageError: they were made by a newer visweep.
    """
    if not sa.inspect(engine).has_table(version.name):
        with writing(), engine.begin() as connection:
            metadata.create_all(connection)
            if connection.execute(sa.select(version)).first() is None:
                connection.execute(sa.insert(version).values(version=VERSION))
    with engine.connect() as connection:
        _require_known(connection.execute(sa.select(version.c.version)).scalar_one())
