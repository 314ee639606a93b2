"""The version of our own tables beside Optuna's, and how older ones are brought up to date.

Optuna owns the table `alembic_version`; ours is `visweep_version`.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, closing
from functools import cache
from pathlib import Path

import sqlalchemy as sa
from alembic.script import ScriptDirectory
from optuna.storages._rdb import models

from visweep.errors import UsageError
from visweep.storage.specification import STUDY_ID
from visweep.storage.tables import (
    metadata,
    params,
    slots,
    study_attributes,
    trials,
    version,
)
from visweep.storage.url import read_only

VERSION = 3
"""What changed: 2 gave each trial that has begun a UUID, under which it is known everywhere; 3
tells when a lease was renewed, and how many workers were lost with a trial."""

_BEGINNINGS = uuid.UUID("6c5f0a55-2a2c-5d0c-9f5e-0f6f1f0f7b53")
_LOCK = 0x766973
"""An advisory lock of PostgreSQL: held while our tables are made or changed."""


def new_uuid() -> str:
    """The identity of a trial that begins."""
    return uuid.uuid4().hex


def inferred_uuid(study: str, number: int, parameters: Iterable[tuple[str, float | None]]) -> str:
    """The identity of a trial that began without one: the same in every copy of the study.

    Args:
        study: the study attribute `visweep:id`.
        number: of the trial.
        parameters: as they are stored; two copies may have begun a trial with different ones.
    """
    described = json.dumps([study, number, sorted(parameters)])
    return uuid.uuid5(_BEGINNINGS, described).hex


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
    """Create our tables where they are missing; bring those of an older visweep up to date.

    Either happens in one transaction: whole, or not at all.

    Raises:
        UsageError: they were made by a newer visweep.
    """
    with engine.connect() as connection:
        found = _found(connection)
    if found != VERSION:
        with writing(), engine.begin() as connection:
            if connection.dialect.name == "postgresql":
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))
            _bring_up_to_date(connection)


def require_known(engine: sa.Engine) -> None:
    """See that our tables are not those of a newer visweep; nothing is changed.

    Raises:
        UsageError: they are.
    """
    with engine.connect() as connection:
        _found(connection)


def require_up_to_date(connection: sa.Connection) -> None:
    """See that our tables are as this visweep makes them, for what reads all of their columns.

    Raises:
        UsageError: they are not; naming the command that brings them up to date.
    """
    found = _found(connection)
    if found != VERSION:
        made = f"an older visweep (schema {found}, this one is {VERSION})" if found else "Optuna"
        raise UsageError(
            f"--storage: made by {made}; going on with a study in it brings it up to date: "
            "visweep resume STUDY"
        )


def _found(connection: sa.Connection) -> int:
    """The version of our tables; 0 where there are none, or where it was lost.

    Raises:
        UsageError: it is newer than this visweep.
    """
    inspector = sa.inspect(connection)
    if not inspector.has_table(version.name):
        return 0
    found = connection.execute(sa.select(version.c.version)).scalar()
    if found is None:
        return 0
    _require_known(found)
    return int(found)


def _bring_up_to_date(connection: sa.Connection) -> None:
    if sa.inspect(connection).has_table(slots.name):
        _add_columns(connection)
    metadata.create_all(connection)
    connection.execute(sa.delete(version))
    connection.execute(sa.insert(version).values(version=VERSION))


def _add_columns(connection: sa.Connection) -> None:
    """From any older version, also where its number was lost."""
    there = {column["name"] for column in sa.inspect(connection).get_columns(slots.name)}
    for column in (slots.c.uuid, slots.c.renewed, slots.c.lost, slots.c.reached):
        if column.name not in there:
            described = sa.schema.CreateColumn(column).compile(dialect=connection.dialect)
            connection.exec_driver_sql(f"ALTER TABLE {slots.name} ADD COLUMN {described}")
    for index in slots.indexes:
        index.create(connection, checkfirst=True)
    if slots.c.uuid.name not in there:
        _give_uuids(connection)


def _give_uuids(connection: sa.Connection) -> None:
    begun = missing_uuids(connection)
    if begun:
        connection.execute(
            sa.update(slots).where(slots.c.trial_id == sa.bindparam("trial")),
            [{"trial": trial_id, "uuid": identity} for trial_id, identity in begun.items()],
        )


def missing_uuids(connection: sa.Connection) -> dict[int, str]:
    """By trial id, the inferred identities of the trials that have begun and have none."""
    rows = connection.execute(
        sa.select(
            trials.c.trial_id,
            trials.c.number,
            study_attributes.c.value_json,
            params.c.param_name,
            params.c.param_value,
        )
        .select_from(slots)
        .join(
            trials,
            sa.and_(trials.c.trial_id == slots.c.trial_id, trials.c.study_id == slots.c.study_id),
        )
        .join(
            study_attributes,
            sa.and_(
                study_attributes.c.study_id == slots.c.study_id, study_attributes.c.key == STUDY_ID
            ),
        )
        # Parameters are written when a trial begins, so that one without has not.
        .join(params, params.c.trial_id == trials.c.trial_id)
        .where(slots.c.uuid.is_(None))
    )
    begun: dict[tuple[int, int, str], list[tuple[str, float | None]]] = {}
    for trial_id, number, study, name, value in rows:
        begun.setdefault((trial_id, number, json.loads(study)), []).append((name, value))
    return {
        trial_id: inferred_uuid(study, number, values)
        for (trial_id, number, study), values in begun.items()
    }
