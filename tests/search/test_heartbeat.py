from __future__ import annotations

import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from visweep.search.heartbeat import Heartbeat
from visweep.storage import transactions
from visweep.storage.lease import LeaseLost
from visweep.storage.owner import Owner
from visweep.storage.slots import Slots


@pytest.fixture
def study_id(storage: Any) -> int:
    from optuna.study import StudyDirection

    return int(storage.create_new_study([StudyDirection.MAXIMIZE], "study"))


def worker(storage: Any, study_id: int, host: str, lease_seconds: float = 60.0) -> Slots:
    return Slots(storage, study_id, Owner(host, "boot", 1, "1"), lease_seconds)


def test_a_lease_lives_as_long_as_it_beats(storage: Any, study_id: int) -> None:
    holder, watcher = worker(storage, study_id, "a"), worker(storage, study_id, "b", 0.3)
    holder.set_budget(1)
    lease = holder.take()
    assert lease is not None
    with Heartbeat(holder, lease, interval=0.05) as heartbeat:
        for _ in range(8):
            assert watcher.take() is None
            heartbeat.check()
            time.sleep(0.1)
    watcher.take()
    time.sleep(0.4)
    assert watcher.take() is not None


def test_it_notices_that_the_lease_was_lost(storage: Any, study_id: int, wait_for: Any) -> None:
    holder, watcher = worker(storage, study_id, "a"), worker(storage, study_id, "b", 0.0)
    holder.set_budget(1)
    lease = holder.take()
    assert lease is not None
    with Heartbeat(holder, lease, interval=0.05) as heartbeat:
        watcher.take()
        assert watcher.take() is not None

        def lost() -> bool:
            try:
                heartbeat.check()
            except LeaseLost:
                return True
            return False

        wait_for(lost, 10)
        with pytest.raises(LeaseLost, match="trial 0 was adopted"):
            heartbeat.check()


def test_a_locked_database_does_not_end_it(
    file: Path, open_file: Any, monkeypatch: pytest.MonkeyPatch, wait_for: Any
) -> None:
    # Optuna's own heartbeat thread dies here, and its trial is run a second time.
    from optuna.study import StudyDirection

    monkeypatch.setattr(transactions, "LOCK_TIMEOUT", 0.1)
    storage = open_file(file)
    study_id = storage.create_new_study([StudyDirection.MAXIMIZE], "study")
    holder = worker(storage, study_id, "a")
    holder.set_budget(1)
    lease = holder.take()
    assert lease is not None

    def beats() -> int:
        with closing(sqlite3.connect(file)) as connection:
            (found,) = connection.execute("SELECT heartbeat FROM visweep_slots").fetchone()
            return int(found)

    with Heartbeat(holder, lease, interval=0.02) as heartbeat:
        with closing(sqlite3.connect(file, isolation_level=None, timeout=5)) as other:
            other.execute("BEGIN IMMEDIATE")
            before = beats()
            time.sleep(0.5)
            assert beats() == before
            heartbeat.check()
        wait_for(lambda: beats() > before, 10)
