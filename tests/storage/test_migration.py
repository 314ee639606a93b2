"""Databases of older versions are brought up to date in one transaction."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from visweep.errors import UsageError
from visweep.storage import rows, schema
from visweep.storage.backup import file_url, frozen_copy
from visweep.storage.check import check
from visweep.storage.engine import open_storage
from visweep.storage.overview import overview
from visweep.storage.rows import StudyRows

NAME = "night-run"
NEWER_THAN_2 = tuple(
    f"ALTER TABLE visweep_slots DROP COLUMN {name}" for name in ("renewed", "lost", "reached")
)
DOWNGRADE = (
    "DROP INDEX ix_visweep_slots_study_id_uuid",
    "ALTER TABLE visweep_slots DROP COLUMN uuid",
    *NEWER_THAN_2,
    "UPDATE visweep_version SET version = 1",
)


@pytest.fixture
def old(tmp_path: Path, sweep: Any) -> Path:
    """A file as version 1 left it: two trials finished, one running, one waiting."""
    one = sweep(tmp_path / "studies.db")
    one.want(4)
    one.run(drop=0.1)
    one.run(drop=0.2)
    lease = one.begin(0.3)
    one.train(lease, 2)
    one.slots.release(lease)
    one.close()
    with closing(sqlite3.connect(tmp_path / "studies.db")) as connection:
        for statement in DOWNGRADE:
            connection.execute(statement)
        connection.commit()
    return tmp_path / "studies.db"


def read(path: Path) -> StudyRows:
    with frozen_copy(file_url(path)) as connection:
        return rows.read(connection, NAME)


def version(path: Path) -> int:
    with closing(sqlite3.connect(path)) as connection:
        return int(connection.execute("SELECT version FROM visweep_version").fetchone()[0])


def identities(path: Path) -> list[str | None]:
    with closing(sqlite3.connect(path)) as connection:
        query = "SELECT uuid FROM visweep_slots ORDER BY trial_id"
        return [row[0] for row in connection.execute(query)]


def test_trials_that_have_begun_get_an_identity(old: Path, sweep: Any) -> None:
    one = sweep(old)
    assert version(old) == schema.VERSION
    found = identities(old)
    assert len({i for i in found[:3] if i}) == 3
    assert found[3] is None
    lease = one.begin()
    assert (lease.number, lease.adopted) == (2, True)
    one.train(lease, 4)
    one.finish(lease)
    assert one.run() == 3
    assert identities(old)[:3] == found[:3]
    assert identities(old)[3] is not None
    assert check(file_url(old)) == []


def test_two_copies_of_an_old_file_agree(old: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = tmp_path / "other" / "studies.db"
    shutil.copyfile(old, other)
    for path in (old, other):
        open_storage(file_url(path)).close()
    assert identities(old) == identities(other)


def test_reading_leaves_an_old_file_as_it_is(old: Path) -> None:
    before = old.read_bytes()
    migrated = read(old)
    assert check(file_url(old)) == []
    assert overview(file_url(old))[0].finished == 2
    assert old.read_bytes() == before
    open_storage(file_url(old)).close()
    assert [t.uuid for t in migrated.trials] == identities(old)


def test_a_migration_that_fails_changes_nothing(
    old: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: sa.Connection) -> dict[int, str]:
        raise RuntimeError("a power cut, say")

    with monkeypatch.context() as patched:
        patched.setattr(schema, "missing_uuids", broken)
        with pytest.raises(UsageError, match="a power cut"):
            open_storage(file_url(old))
    assert version(old) == 1
    with closing(sqlite3.connect(old)) as connection:
        columns = [row[1] for row in connection.execute("PRAGMA table_info(visweep_slots)")]
    assert "uuid" not in columns
    open_storage(file_url(old)).close()
    assert version(old) == schema.VERSION


def test_version_2_told_less_of_leases(old: Path, sweep: Any) -> None:
    sweep(old).close()
    before = identities(old)
    with closing(sqlite3.connect(old)) as connection:
        for statement in NEWER_THAN_2:
            connection.execute(statement)
        connection.execute("UPDATE visweep_version SET version = 2")
        connection.commit()
    assert overview(file_url(old))[0].finished == 2
    one = sweep(old)
    assert version(old) == schema.VERSION
    assert identities(old) == before
    assert one.begin().number == 2
    (worker,) = overview(file_url(old))[0].workers
    assert (worker.trial, worker.epoch) == (2, 2)
    assert worker.lease_age is not None


def test_a_version_that_was_lost_is_found_out(old: Path) -> None:
    with closing(sqlite3.connect(old)) as connection:
        connection.execute("DROP TABLE visweep_version")
        connection.commit()
    open_storage(file_url(old)).close()
    assert version(old) == schema.VERSION
    assert len({i for i in identities(old)[:3] if i}) == 3


def test_a_newer_file_is_refused_and_not_touched(old: Path) -> None:
    with closing(sqlite3.connect(old)) as connection:
        connection.execute("UPDATE visweep_version SET version = 99")
        connection.commit()
    before = old.read_bytes()
    for call in (lambda: open_storage(file_url(old)), lambda: check(file_url(old))):
        with pytest.raises(UsageError, match=r"made by a newer visweep \(schema 99"):
            call()
    assert old.read_bytes() == before


def test_an_older_visweep_may_go_on_beside_us(old: Path, sweep: Any) -> None:
    """It began before the file was brought up to date, and begins trials without identities."""
    one = sweep(old)
    one.slots.release(one.take())
    with one.storage.transaction() as connection:
        connection.execute(sa.text("UPDATE visweep_slots SET uuid = NULL"))
    one.close()
    (found,) = check(file_url(old))
    assert "3 trials begun without an identity" in found.what
    assert len({t.uuid for t in read(old).trials}) == 4


def test_an_old_server_is_brought_up_to_date(postgres_url: str, sweep: Any) -> None:
    one = sweep(postgres_url)
    one.want(2)
    one.run()
    with one.storage.transaction() as connection:
        for statement in DOWNGRADE:
            connection.exec_driver_sql(statement)
    one.close()
    again = sweep(postgres_url)
    with again.storage.reading() as connection:
        study = rows.read(connection, NAME)
        found = connection.execute(sa.select(schema.version.c.version)).scalar_one()
    assert found == schema.VERSION
    assert [t.uuid is not None for t in study.trials] == [True, False]
    assert again.run() == 1
