"""What reads and what writes at the same time, and what undoes a write."""

from __future__ import annotations

import pickle
import sqlite3
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from optuna.study import StudyDirection
from optuna.trial import TrialState, create_trial

from postgres import everywhere
from visweep.errors import StorageError
from visweep.storage import retry, transactions
from visweep.storage.engine import Storage
from visweep.storage.failures import storage_errors

Plain = Callable[[Path], AbstractContextManager[sqlite3.Connection]]
WAITING = create_trial(state=TrialState.WAITING)
MAXIMIZE = [StudyDirection.MAXIMIZE]


def test_every_connection_is_configured(storage: Storage) -> None:
    connections = [storage.engine.connect() for _ in range(4)]
    try:
        for connection in connections:
            pragmas = {
                name: connection.exec_driver_sql(f"PRAGMA {name}").scalar()
                for name in ("journal_mode", "synchronous", "busy_timeout")
            }
            assert pragmas == {
                "journal_mode": "wal",
                "synchronous": 2,  # FULL
                "busy_timeout": transactions.LOCK_TIMEOUT * 1000,
            }
    finally:
        for connection in connections:
            connection.close()


def test_reading_takes_no_lock(storage: Storage, trial_id: int, file: Path, plain: Plain) -> None:
    with storage.reading() as reading, plain(file) as other:
        reading.execute(sa.text("SELECT COUNT(*) FROM trials"))
        other.execute("BEGIN IMMEDIATE")
        other.execute("UPDATE trials SET number = 7")
        # Uncommitted: readers see what was there before.
        assert storage.get_trial(trial_id).number == 0
        other.execute("COMMIT")
        # Committed: one reading transaction keeps its view, the next one sees it.
        assert reading.execute(sa.text("SELECT number FROM trials")).scalar() == 0
        assert storage.get_trial(trial_id).number == 7


def test_a_writing_transaction_excludes_other_writers(
    storage: Storage, file: Path, plain: Plain
) -> None:
    with plain(file) as other:
        with storage.transaction(), pytest.raises(sqlite3.OperationalError, match="locked"):
            other.execute("BEGIN IMMEDIATE")
        other.execute("BEGIN IMMEDIATE")


class _Refused(Exception):
    pass


@everywhere
def test_a_failed_check_undoes_the_write_of_its_thread_alone(
    storage: Storage, trial_id: int
) -> None:
    def refuse(_: sa.Connection) -> None:
        raise _Refused

    with storage.fenced(refuse):
        with pytest.raises(_Refused):
            storage.set_trial_intermediate_value(trial_id, 1, 0.5)
        with pytest.raises(_Refused):
            storage.set_trial_attributes(trial_id, {"k": 1})
        assert storage.get_trial(trial_id).intermediate_values == {}  # reading goes on
        thread = threading.Thread(target=storage.set_trial_user_attr, args=(trial_id, "k", 2))
        thread.start()
        thread.join()
    storage.set_trial_user_attr(trial_id, "after", 3)
    assert storage.get_trial(trial_id).user_attrs == {"k": 2, "after": 3}


@everywhere
def test_checks_nest(storage: Storage, trial_id: int) -> None:
    asked: list[str] = []
    with storage.fenced(lambda _: asked.append("outer")):
        with storage.fenced(lambda _: asked.append("inner")):
            storage.set_trial_user_attr(trial_id, "k", 1)
        storage.set_trial_user_attr(trial_id, "k", 2)
    storage.set_trial_user_attr(trial_id, "k", 3)
    assert asked == ["inner", "outer"]


def test_a_lock_that_is_never_released_is_named(
    file: Path, open_file: Any, monkeypatch: pytest.MonkeyPatch, plain: Plain
) -> None:
    monkeypatch.setattr(transactions, "LOCK_TIMEOUT", 0.2)
    monkeypatch.setattr(retry, "LIMIT", 0.5)
    storage = open_file(file)
    study_id = storage.create_new_study(MAXIMIZE, "study")
    with plain(file) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StorageError, match=r"studies\.db: database is locked$"):
            storage.set_study_attributes_once(study_id, {"k": 1})
        with (
            pytest.raises(StorageError, match=r"studies\.db: database is locked$"),
            storage_errors(storage),
        ):
            storage.set_study_user_attr(study_id, "k", 1)
    storage.set_study_user_attr(study_id, "k", 1)  # it is usable again


DISK_FULL = """
import optuna, resource, signal, sys
from visweep.errors import StorageError
from visweep.storage.failures import storage_errors
from visweep.storage.opening import open_storage
from optuna.study import StudyDirection

optuna.logging.set_verbosity(optuna.logging.ERROR)
storage = open_storage(sys.argv[1])
study = storage.create_new_study([StudyDirection.MAXIMIZE], "study")
trial = storage.create_new_trial(study)
storage.set_trial_user_attr(trial, "before", "kept")
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
try:
    with storage_errors(storage):
        for index in range(100):
            storage.set_trial_user_attr(trial, f"attribute {index}", "x" * 20_000)
except StorageError as e:
    print(e)
storage.close()
"""


def test_a_full_disk_is_named_and_what_was_written_is_kept(
    file: Path, launcher: Any, tmp_path: Path, open_file: Any
) -> None:
    script = tmp_path / "fill.py"
    script.write_text(DISK_FULL)
    filling = launcher.run(script, f"sqlite:///{file}")
    assert filling.stderr == ""
    assert filling.stdout.startswith(f"storage sqlite:///{file}: ")
    assert "disk" in filling.stdout
    kept = open_file(file).get_trial(1).user_attrs
    assert kept["before"] == "kept"
    assert 1 < len(kept) < 100


def test_closing_folds_the_log_into_the_file(
    storage: Storage, trial_id: int, file: Path, tmp_path: Path, open_file: Any
) -> None:
    storage.set_trial_user_attr(trial_id, "note", "durable")
    assert file.with_name(f"{file.name}-wal").stat().st_size > 0
    storage.close()
    assert [path.name for path in file.parent.iterdir()] == [file.name]
    copy = tmp_path / "copy.db"
    copy.write_bytes(file.read_bytes())
    assert open_file(copy).get_trial(trial_id).user_attrs == {"note": "durable"}


@everywhere
def test_it_is_not_carried_to_another_process(storage: Storage) -> None:
    with pytest.raises(TypeError, match="open the storage anew"):
        pickle.dumps(storage)
