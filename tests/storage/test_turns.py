"""One turn at a time: who waits says so, and does not wait for ever. With real databases."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest
from optuna.study import StudyDirection

from postgres import PASSWORD, Server, everywhere
from proxy import Proxy
from visweep.errors import StorageError
from visweep.storage import turns
from visweep.storage.engine import Storage
from visweep.storage.turns import turn


def is_free(storage: Storage, study_id: int) -> bool:
    """Whether a turn begins without waiting."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(turns, "LIMIT", 0.0)
        try:
            with turn(storage, study_id):
                return True
        except StorageError as e:
            if "another process that attaches to" not in str(e):
                raise
            return False


def becomes_free(storage: Storage, study_id: int) -> bool:
    """The server notices a moment later that a connection has ended."""
    with turn(storage, study_id):
        return True


@everywhere
def test_who_waits_says_so_and_gives_up(
    storage: Storage,
    study_id: int,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(turns, "NOTICE", 0.1)
    monkeypatch.setattr(turns, "LIMIT", 0.5)
    with (
        turn(storage, study_id),
        pytest.raises(StorageError, match=r"did not end within .* may be suspended; .* end it"),
        turn(storage, study_id),
    ):
        pytest.fail("two turns at once")
    (said,) = [record.getMessage() for record in caplog.records]
    assert said.startswith("waiting for another process that attaches to ")
    assert PASSWORD not in said
    assert becomes_free(storage, study_id)


@everywhere
def test_a_short_wait_is_not_told(
    storage: Storage, study_id: int, caplog: pytest.LogCaptureFixture
) -> None:
    begun, ended = threading.Event(), threading.Event()

    def other() -> None:
        with turn(storage, study_id):
            begun.set()
            ended.wait()

    caplog.set_level(logging.INFO, turns.__name__)
    thread = threading.Thread(target=other)
    thread.start()
    begun.wait()
    assert not is_free(storage, study_id)
    threading.Timer(0.2, ended.set).start()
    assert becomes_free(storage, study_id)
    thread.join()
    assert [r for r in caplog.records if r.name == turns.__name__] == []


@everywhere
def test_what_fails_in_a_turn_ends_it(storage: Storage, study_id: int) -> None:
    with pytest.raises(ZeroDivisionError), turn(storage, study_id):
        raise ZeroDivisionError
    assert becomes_free(storage, study_id)


@pytest.mark.parametrize("backend", ["postgresql"], indirect=True)
def test_another_study_of_a_server_has_its_own_turns(storage: Storage, study_id: int) -> None:
    other = storage.create_new_study([StudyDirection.MAXIMIZE], "other")
    with turn(storage, study_id):
        assert is_free(storage, other)
        assert not is_free(storage, study_id)


@pytest.mark.parametrize("backend", ["postgresql"], indirect=True)
def test_a_turn_may_take_longer_than_an_idle_transaction(
    url: str, storage: Storage, study_id: int, open_url: Callable[[str], Storage]
) -> None:
    """What the user says of transactions stays as it is."""
    mine = open_url(f"{url}?options=-c%20idle_in_transaction_session_timeout%3D100")
    with turn(mine, study_id):
        time.sleep(0.5)
        assert not is_free(storage, study_id)


@pytest.mark.parametrize("backend", ["postgresql"], indirect=True)
def test_a_turn_outlives_its_connection(
    url: str,
    storage: Storage,
    study_id: int,
    proxy: Proxy,
    postgres: Server,
    open_url: Callable[[str], Storage],
) -> None:
    """But no longer alone."""
    through = open_url(url.replace(f":{postgres.port}/", f":{proxy.port}/"))
    with turn(through, study_id):
        assert not is_free(storage, study_id)
        proxy.cut()
        assert becomes_free(storage, study_id)
        proxy.restore()
    with turn(through, study_id):
        assert not is_free(storage, study_id)


def test_a_linked_database_is_locked_where_it_lies(
    file: Path,
    storage: Storage,
    study_id: int,
    tmp_path: Path,
    open_file: Callable[[Path], Storage],
) -> None:
    link = tmp_path / "elsewhere" / "linked.db"
    link.parent.mkdir()
    link.symlink_to(file)
    linked = open_file(link)
    with turn(storage, study_id):
        assert not is_free(linked, study_id)
    with turn(linked, study_id):
        assert not is_free(storage, study_id)


def test_a_folder_that_is_gone(file: Path, storage: Storage, study_id: int) -> None:
    file.parent.rename(file.parent.with_name("moved"))
    with pytest.raises(StorageError, match=f"{file.parent}: cannot be read"):
        becomes_free(storage, study_id)


@everywhere
def test_a_system_without_locks_of_folders(
    storage: Storage, study_id: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "fcntl", None)
    folders = storage.engine.dialect.name == "sqlite"
    refused = pytest.raises(StorageError, match="cannot be locked") if folders else nullcontext()
    with refused:
        assert becomes_free(storage, study_id)


def test_such_a_system_runs_what_attaches_nothing() -> None:
    code = "import sys; sys.modules['fcntl'] = None; import visweep.storage.attached"
    subprocess.run([sys.executable, "-c", code], check=True)
