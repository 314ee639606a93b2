"""Our own tables beside Optuna's, under a version number of their own.

Optuna owns the table `alembic_version`; ours is `visweep_version`.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import sqlalchemy as sa

from visweep.errors import UsageError

VERSION = 1

metadata = sa.MetaData()

version = sa.Table("visweep_version", metadata, sa.Column("version", sa.Integer, nullable=False))

slots = sa.Table(
    "visweep_slots",
    metadata,
    sa.Column("trial_id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("study_id", sa.Integer, nullable=False, index=True),
    # Who holds the lease, as JSON (see leases.Owner); null when nobody does.
    sa.Column("owner", sa.Text, nullable=True),
    # Raised by every lease; a write under an older generation is refused.
    sa.Column("generation", sa.Integer, nullable=False, server_default="0"),
    # Raised by the holder while it lives.
    sa.Column("heartbeat", sa.Integer, nullable=False, server_default="0"),
)


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
        found = connection.execute(sa.select(version.c.version)).scalar_one()
    if found > VERSION:
        raise UsageError(
            f"--storage: made by a newer visweep (schema {found}, this one knows {VERSION}); "
            "upgrade visweep"
        )
