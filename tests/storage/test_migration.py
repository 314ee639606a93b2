"""Databases of older versions are brought up to date in one transaction."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy as sa
from optuna.trial import create_trial

from postgres import everywhere
from visweep.errors import StorageError, UsageError
from visweep.storage import rows, schema
from visweep.storage.backup import file_url, frozen_copy
from visweep.storage.check import check
from visweep.storage.engine import Storage
from visweep.storage.failures import storage_errors
from visweep.storage.holders import unfinished
from visweep.storage.opening import open_storage, open_to_read
from visweep.storage.overview import overview
from visweep.storage.rows import StudyRows
from visweep.storage.tables import slots

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


class TestOnlyReading:
    """What only reads leaves a storage as it is, and reads older ones as they are."""

    @pytest.fixture
    def looked_at(self) -> Iterator[Callable[[str], Storage]]:
        storages: list[Storage] = []

        def look(url: str) -> Storage:
            storages.append(open_to_read(url))
            return storages[-1]

        yield look
        for storage in storages:
            storage.close()

    def test_an_older_file(self, old: Path, looked_at: Any) -> None:
        before = old.read_bytes()
        storage = looked_at(file_url(old))
        study = optuna.load_study(study_name=NAME, storage=storage)
        states = [t.state.name for t in study.get_trials(deepcopy=False)]
        assert states == ["COMPLETE", "COMPLETE", "RUNNING", "WAITING"]
        with storage.reading() as connection:
            (left,) = unfinished(connection)
        assert (left.trial, left.interrupted) == (2, True)
        storage.close()
        assert old.read_bytes() == before
        assert version(old) == 1

    def test_a_file_of_optunas_own(self, tmp_path: Path, looked_at: Any) -> None:
        path = tmp_path / "plain.db"
        plain = optuna.storages.RDBStorage(file_url(path))
        optuna.create_study(study_name="theirs", storage=plain).add_trial(create_trial(value=0.5))
        plain.remove_session()
        plain.engine.dispose()
        before = path.read_bytes()
        study = optuna.load_study(study_name="theirs", storage=looked_at(file_url(path)))
        assert [t.value for t in study.get_trials(deepcopy=False)] == [0.5]
        assert path.read_bytes() == before, "neither tables nor the log mode are ours"

    @everywhere
    def test_nothing_can_be_written(self, url: str, sweep: Any, looked_at: Any) -> None:
        one = sweep(url)
        one.want(2)
        study = optuna.load_study(study_name=NAME, storage=looked_at(url))
        storage = study._storage._backend
        with pytest.raises(StorageError, match=r"read-?only"), storage_errors(storage):
            study.set_user_attr("mine", 1)
        with pytest.raises(StorageError, match=r"read-?only"), storage.transaction() as connection:
            connection.execute(sa.delete(slots))
        assert "mine" not in one.study.user_attrs
        # It is not kept waiting by who writes, nor does it keep anybody waiting.
        with one.storage.transaction() as connection:
            connection.execute(sa.update(slots).values(lost=1))
            assert len(study.get_trials(deepcopy=False)) == 2

    def test_what_is_not_there_is_not_made(self, tmp_path: Path, empty_postgres: str) -> None:
        with pytest.raises(UsageError, match=r"there is no file .*missing\.db"):
            open_to_read(file_url(tmp_path / "missing.db"))
        assert list(tmp_path.iterdir()) == []
        with pytest.raises(UsageError, match="holds no studies"):
            open_to_read(empty_postgres)

    def test_an_old_server_is_read_and_checked_by_none_that_would_change_it(
        self, postgres_url: str, sweep: Any, looked_at: Any
    ) -> None:
        one = sweep(postgres_url)
        one.want(2)
        one.run()
        with one.storage.transaction() as connection:
            for statement in DOWNGRADE:
                connection.exec_driver_sql(statement)
        one.close()
        assert overview(postgres_url)[0].finished == 1
        study = optuna.load_study(study_name=NAME, storage=looked_at(postgres_url))
        assert [t.state.name for t in study.trials] == ["COMPLETE", "WAITING"]
        with pytest.raises(UsageError) as refused:
            check(postgres_url)
        assert str(refused.value) == (
            "--storage: made by an older visweep (schema 1, this one is 3); going on with a study "
            "in it brings it up to date: visweep resume STUDY"
        )
        with looked_at(postgres_url).reading() as connection:
            found = connection.execute(sa.select(schema.version.c.version)).scalar_one()
        assert found == 1
        open_storage(postgres_url).close()
        assert check(postgres_url) == []
