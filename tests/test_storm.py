"""What trust rests on: workers that are killed, suspended or cut from power at random moments.

The workers are real but for their trainer, which pauses instead of training and writes down every
epoch (`stub_worker.py`).
"""

from __future__ import annotations

import random
import shutil
import signal
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from stub_study import StubStudy
from visweep.storage.check import check

BACKENDS = ["sqlite", "postgresql"]


@pytest.fixture
def storm(
    launcher: Any, tmp_path: Path, request: pytest.FixtureRequest
) -> Callable[..., StubStudy]:
    def make(backend: str, trials: int, epochs: int, seconds: float, **more: Any) -> StubStudy:
        folder = tmp_path / "storm"
        folder.mkdir()
        url = f"sqlite:///{folder}/studies.db"
        if backend == "postgresql":
            url = request.getfixturevalue("postgres_url")
        return StubStudy(launcher, url, folder, trials, epochs, seconds, **more)

    return make


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_workers_are_killed_all_the_time(storm: Callable[..., StubStudy], backend: str) -> None:
    mine = storm(backend, trials=200, epochs=3, seconds=0.1)
    chance = random.Random(1)
    for _ in range(8):
        mine.start()
    kills = 0
    while not any(p.ended() and p.status == 0 for p in mine.processes):
        time.sleep(chance.uniform(0.1, 0.8))
        failed = [p for p in mine.processes if p.ended() and p.status not in (0, -signal.SIGKILL)]
        assert not failed, failed[0].stderr
        alive = mine.alive()
        if alive:
            chance.choice(alive).kill()
            kills += 1
            mine.start()
    for process in mine.alive():
        process.wait()
    assert kills >= 10
    assert {p.status for p in mine.processes} == {0, -signal.SIGKILL}
    assert [p.stderr for p in mine.processes if p.stderr] == []
    mine.require_exact()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.slow
def test_who_was_suspended_too_long_changes_nothing(
    storm: Callable[..., StubStudy], backend: str, wait_for: Any
) -> None:
    mine = storm(backend, trials=60, epochs=4, seconds=0.1, lease=1.2)
    chance = random.Random(2)
    for _ in range(4):
        mine.start()
    wait_for(lambda: len(mine.trained()) > 4, about=mine.processes[0])
    for _ in range(4):
        sleepers = chance.sample(mine.alive(), 2)
        for process in sleepers:
            process.signal(signal.SIGSTOP)
        time.sleep(chance.uniform(1.5, 2.5))
        for process in sleepers:
            process.signal(signal.SIGCONT)
        time.sleep(chance.uniform(0.2, 0.6))
    for process in mine.processes:
        process.wait()
        assert (process.status, process.stderr) == (0, "")
    adoptions = "".join(p.stdout for p in mine.processes).count("was adopted by another worker")
    assert adoptions >= 1, "nobody slept at the wrong moment"
    mine.require_finished()


def suspend_in_a_transaction(sleeper: Any, is_in_one: Callable[[], bool]) -> None:
    """Stop a process at random moments, until it is stopped in the midst of one."""
    chance = random.Random(4)
    for _ in range(500):
        sleeper.signal(signal.SIGSTOP)
        time.sleep(0.02)
        if is_in_one():
            return
        sleeper.signal(signal.SIGCONT)
        time.sleep(chance.uniform(0.001, 0.02))
    pytest.fail("it was never stopped in a transaction")


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_who_was_suspended_in_a_transaction_changes_nothing(
    storm: Callable[..., StubStudy], backend: str, wait_for: Any, request: pytest.FixtureRequest
) -> None:
    mine = storm(backend, trials=60, epochs=4, seconds=0.0, lease=1.2)
    if backend == "postgresql":
        # The server ends a transaction in which nothing happens, after half a minute by default.
        mine.url += "?options=-c%20idle_in_transaction_session_timeout%3D1000"

    def is_in_one() -> bool:
        if backend == "postgresql":
            query = "SELECT 1 FROM pg_stat_activity WHERE state = 'idle in transaction'"
            return bool(request.getfixturevalue("postgres").execute(query))
        with closing(sqlite3.connect(mine.folder / "studies.db", timeout=0)) as connection:
            try:
                connection.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError:
                return True
        return False

    sleeper = mine.start()
    wait_for(lambda: len(mine.trained()) > 2, about=sleeper)
    suspend_in_a_transaction(sleeper, is_in_one)
    before = len(mine.trained())
    others = [mine.start() for _ in range(2)]
    time.sleep(6)
    # A file's only write lock is the sleeper's; the others wait, and nothing is adopted.
    assert (len(mine.trained()) > before) == (backend == "postgresql")
    sleeper.signal(signal.SIGCONT)
    for process in (sleeper, *others):
        process.wait()
        assert process.status == 0, process.stderr
    adopted = "was adopted by another worker" in sleeper.stdout
    assert adopted == (backend == "postgresql")
    mine.require_finished()


@pytest.mark.slow
def test_the_power_may_fail_at_any_moment(
    storm: Callable[..., StubStudy], wait_for: Any, launcher: Any, tmp_path: Path
) -> None:
    mine = storm("sqlite", trials=60, epochs=3, seconds=0.02)
    chance = random.Random(3)
    for _ in range(4):
        mine.start()
    wait_for(lambda: len(mine.trained()) > 10, about=mine.processes[0])
    copies = []
    for index in range(6):
        time.sleep(chance.uniform(0.1, 0.5))
        stopped = mine.alive()
        for process in stopped:
            process.signal(signal.SIGSTOP)
        time.sleep(0.05)
        # What is on the disk if the power fails now; the log's index is memory, and is lost.
        copy = shutil.copytree(
            mine.folder, tmp_path / f"copy{index}", ignore=shutil.ignore_patterns("*-shm")
        )
        copies.append(copy)
        for process in stopped:
            process.signal(signal.SIGCONT)
    for process in mine.processes:
        process.wait()
    mine.require_exact()
    for copy in copies:
        url = f"sqlite:///{copy}/studies.db"
        assert [f.what for f in check(url) if f.wrong] == []
        with closing(sqlite3.connect(copy / "studies.db")) as connection:
            (count,) = connection.execute(
                "SELECT COUNT(*) FROM trials WHERE state = 'COMPLETE'"
            ).fetchone()
        again = StubStudy(launcher, url, copy, mine.trials, mine.epochs, 0.0)
        before = len(again.trained())
        again.start().wait()
        again.require_exact()
        # What was finished was not trained again.
        assert len(again.trained()) - before <= (mine.trials - count) * mine.epochs


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_larger_budget_meanwhile_is_met(
    storm: Callable[..., StubStudy], backend: str, wait_for: Any
) -> None:
    mine = storm(backend, trials=10, epochs=3, seconds=0.03)
    first = mine.start()
    wait_for(lambda: len(mine.trained()) > 3, about=first)
    mine.trials = 25
    second = mine.start()
    for process in (first, second):
        process.wait()
        assert (process.status, process.stderr) == (0, "")
    mine.require_exact()
