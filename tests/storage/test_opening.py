"""A storage that is opened: be it new, raced for, locked, damaged or another tool's."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.study import StudyDirection
from optuna.trial import TrialState, create_trial

from postgres import everywhere
from visweep.errors import StorageError
from visweep.storage import transactions
from visweep.storage.engine import Storage
from visweep.storage.failures import storage_errors
from visweep.storage.opening import open_storage

Plain = Callable[[Path], AbstractContextManager[sqlite3.Connection]]
WAITING = create_trial(state=TrialState.WAITING)
MAXIMIZE = [StudyDirection.MAXIMIZE]


ASKER = """
import sys, time
import optuna
from visweep.storage.opening import open_storage

optuna.logging.set_verbosity(optuna.logging.ERROR)
url, start = sys.argv[1], float(sys.argv[2])
time.sleep(max(0.0, start - time.time()))
storage = open_storage(url)
study = optuna.create_study(study_name="raced", storage=storage, load_if_exists=True)
for _ in range(8):
    trial = study.ask({"x": optuna.distributions.FloatDistribution(0, 1)})
    print(trial.number, flush=True)
storage.close()
"""


@everywhere
def test_processes_that_make_one_storage_at_once_share_it(
    new_url: str, launcher: Any, tmp_path: Path, open_url: Any
) -> None:

    script = tmp_path / "ask.py"
    script.write_text(ASKER)
    start = time.time() + 1.0
    askers = [launcher.start(script, new_url, start) for _ in range(4)]
    asked = [int(line) for a in askers for line in a.wait().stdout.split()]
    assert [a.stderr for a in askers] == [""] * 4
    assert sorted(asked) == list(range(32))
    if new_url.startswith("sqlite:///"):
        file = Path(new_url.removeprefix("sqlite:///"))
        assert [path.name for path in file.parent.iterdir()] == [file.name]
    # Trials of several processes; each has its parameter, none was lost.
    study = optuna.load_study(study_name="raced", storage=open_url(new_url))
    assert all(t.params.keys() == {"x"} for t in study.trials)


def test_a_file_that_stays_locked_while_it_is_opened_is_named(
    storage: Storage, file: Path, monkeypatch: pytest.MonkeyPatch, plain: Plain
) -> None:
    monkeypatch.setattr(transactions, "LOCK_TIMEOUT", 0.2)
    with plain(file) as other:
        # Another visweep is upgrading, say: our table is missing, and the lock is taken.
        other.execute("DROP TABLE visweep_version")
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StorageError, match=r"studies\.db: database is locked$"):
            open_storage(f"sqlite:///{file}")


def test_a_damaged_page_is_named(file: Path, open_file: Any) -> None:
    storage = open_file(file)
    study_id = storage.create_new_study(MAXIMIZE, "study")
    for _ in range(50):
        storage.create_new_trial(study_id, WAITING)
    storage.close()
    content = bytearray(file.read_bytes())
    content[4096:] = b"\xa5" * (len(content) - 4096)
    file.write_bytes(content)
    with pytest.raises(StorageError, match=r"studies\.db: database disk image is malformed"):
        open_storage(f"sqlite:///{file}")


def test_a_page_damaged_while_it_is_open_is_named(file: Path, open_file: Any) -> None:
    storage = open_file(file)
    study_id = storage.create_new_study(MAXIMIZE, "study")
    storage.create_new_trial(study_id, create_trial(value=1.0, user_attrs={"long": "x" * 90_000}))
    storage.close()
    again = open_file(file)
    with file.open("r+b") as damaged:
        damaged.seek(4096 * 3)
        damaged.write(b"\xa5" * (file.stat().st_size - 4096 * 3))
    with (
        pytest.raises(StorageError, match="malformed"),
        storage_errors(again),
    ):
        again.get_all_trials(study_id)


@pytest.mark.parametrize(
    "name", ["a b.db", "ü.db", "{study}.db", "{0}.db", "100%.db", "%41.db", "x'y.db"]
)
def test_any_file_name_will_do(tmp_path: Path, open_file: Any, name: str) -> None:
    storage = open_file(tmp_path / name)
    storage.create_new_study(MAXIMIZE, "study")
    storage.close()
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert [s.study_name for s in open_file(tmp_path / name).get_all_studies()] == ["study"]


def test_a_brace_in_a_url_is_no_template(tmp_path: Path) -> None:
    open_storage(f"sqlite:///{tmp_path}/{{study}} {{0}}.db").close()
    assert [path.name for path in tmp_path.iterdir()] == ["{study} {0}.db"]


def test_a_study_of_plain_optuna_becomes_safe_when_it_is_opened(
    file: Path, open_file: Any, plain: Plain
) -> None:
    other = optuna.storages.RDBStorage(f"sqlite:///{file}")
    other.create_new_study(MAXIMIZE, "theirs")
    other.remove_session()
    other.engine.dispose()
    storage = open_file(file)
    assert storage.get_study_id_from_name("theirs") == 1
    with plain(file) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
