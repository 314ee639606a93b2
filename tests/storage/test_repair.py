"""A repair keeps nobody waiting, and takes nothing from a worker that comes meanwhile."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import OperationalError

from postgres import everywhere
from visweep.errors import UsageError
from visweep.storage import check as check_module
from visweep.storage import examine
from visweep.storage.artifacts import Checkpoints
from visweep.storage.backup import copy_beside, file_url
from visweep.storage.check import check, repair
from visweep.storage.folder import Folder
from visweep.storage.specification import ARTIFACTS


def interrupted(one: Any) -> Path:
    """Trial 0 lost its value, 1 waits to go on; returns the folder of their states."""
    one.want(3)
    one.run()
    lease = one.begin()
    one.train(lease, 2)
    one.slots.release(lease)
    with one.storage.transaction() as connection:
        assert connection.exec_driver_sql("DELETE FROM trial_values").rowcount == 1
    folder: Path = one.folder
    return folder


def slowly(monkeypatch: pytest.MonkeyPatch, wait: Callable[[], None]) -> list[str]:
    """Checkpoints are read as from a disk that takes its time; the names that were read."""
    read, names = Folder.read, []

    def slow(self: Folder, name: str) -> bytes:
        wait()
        names.append(name)
        return read(self, name)

    monkeypatch.setattr(Folder, "read", slow)
    return names


def test_a_worker_writes_while_checkpoints_are_read(
    tmp_path: Path, sweep: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "studies.db"
    one = sweep(path)
    states = Checkpoints(Folder(interrupted(one))).all()
    one.close()

    def write() -> None:
        with closing(sqlite3.connect(path, timeout=0)) as connection:
            connection.execute("BEGIN IMMEDIATE")

    names = slowly(monkeypatch, write)
    assert len(repair(file_url(path))) == 1
    assert names == [name for _, _, name in states]
    assert check(file_url(path)) == []


def test_a_server_ends_no_transaction_while_checkpoints_are_read(
    postgres_url: str, sweep: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    interrupted(sweep(postgres_url))
    impatient = sa.make_url(postgres_url).update_query_dict(
        {"options": "-c idle_in_transaction_session_timeout=1000"}
    )
    url = impatient.render_as_string(hide_password=False)
    names = slowly(monkeypatch, lambda: time.sleep(1.5))
    assert len(repair(url)) == 1
    assert len(names) == 2
    monkeypatch.undo()
    assert check(postgres_url) == []


def test_a_worker_that_comes_while_the_backup_is_made_keeps_its_trial(
    tmp_path: Path, sweep: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "studies.db"
    one = sweep(path)
    state = Checkpoints(Folder(interrupted(one))).latest(1)
    assert state is not None
    state.write_bytes(b"junk")
    found = [f.what for f in check(file_url(path))]
    assert len(found) == 2

    def meanwhile(copied: Path) -> Path:
        one.begin()
        return copy_beside(copied)

    monkeypatch.setattr(check_module, "copy_beside", meanwhile)
    with pytest.raises(UsageError, match=r"--repair: study 'night-run' is being worked on"):
        repair(file_url(path))
    assert [f.what for f in check(file_url(path))] == found
    assert state.exists()


def test_no_worker_comes_to_a_server_while_rows_are_mended(
    postgres_url: str, sweep: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    one = sweep(postgres_url)
    interrupted(one)
    mend, refused = examine.set_value, []

    def meanwhile(connection: sa.Connection, trial_id: int, value: float) -> None:
        with one.storage.engine.begin() as other:
            with pytest.raises(OperationalError, match="could not obtain lock"):
                other.exec_driver_sql("SELECT * FROM studies FOR UPDATE NOWAIT")
            other.rollback()
        refused.append(trial_id)
        mend(connection, trial_id, value)

    monkeypatch.setattr(examine, "set_value", meanwhile)
    assert len(repair(postgres_url)) == 1
    assert len(refused) == 1
    one.begin()


@everywhere
def test_a_study_that_cannot_be_read_keeps_no_other_from_being_mended(
    new_url: str, sweep: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    one, lost = sweep(new_url), sweep(new_url, name="lost")
    interrupted(one)
    with one.storage.transaction() as connection:
        connection.exec_driver_sql(
            f"UPDATE study_user_attributes SET value_json = 'junk' "
            f"WHERE study_id = {lost.study._study_id}"
        )
    one.close()
    lost.close()
    assert len(repair(new_url)) == 1
    (left,) = check(new_url)
    assert "study 'lost'" in left.what
    assert not left.can_be_mended


def test_checkpoints_that_cannot_be_reached_are_no_fault(tmp_path: Path, sweep: Any) -> None:
    path = tmp_path / "studies.db"
    one = sweep(path)
    one.want(1)
    one.run()
    away = tmp_path / "unmounted"
    one.study.set_user_attr(ARTIFACTS, str(away))
    (found,) = check(file_url(path))
    assert not found.wrong
    assert found.what.startswith("study 'night-run': its checkpoints were not checked: ")
    assert str(away) in found.what
    assert repair(file_url(path)) == []


def test_a_folder_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[tuple[str, bool]] = []
    place = Folder(tmp_path / "study")
    fsync = os.fsync

    def noted(handle: int) -> None:
        name = Path(f"/proc/self/fd/{handle}").readlink().name
        synced.append((name, place.folder.exists()))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", noted)
    with place.filling() as made:
        (made / "one").write_text("1")
    assert sorted(synced[:-1]) == [("one", False), ("study", False)]
    assert synced[-1] == (tmp_path.name, True)
