"""Several workers on one machine, as a person runs them: shared, killed, stopped, resumed."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import pytest

from processes import is_alive, parent
from visweep.search.crew import MOST_KILLS
from visweep.training.resolve import device_name

NAME = "tiny-cluttered-digits-tiny"


@dataclass
class Search:
    """A search by two workers that can be started again and again."""

    launcher: Any
    script: Path
    file: Path
    options: tuple[object, ...]

    def start(self, trials: int, *more: object) -> Any:
        url = f"sqlite:///{self.file}"
        given = ["--storage", url, "--workers", 2, "--train-size", 300, *self.options, *more]
        return self.launcher.start(self.script, "--trials", trials, *given)

    def finish(self, trials: int, *more: object) -> list[optuna.trial.FrozenTrial]:
        process = self.start(trials, *more).wait()
        assert (process.status, process.stderr) == (0, "")
        return self.trials()

    def trials(self) -> list[optuna.trial.FrozenTrial]:
        storage = optuna.storages.RDBStorage(f"sqlite:///{self.file}")
        try:
            return storage.get_all_trials(1)
        finally:
            storage.remove_session()
            storage.engine.dispose()

    def held(self) -> dict[int, int]:
        """Trials that run and have reported, by the process that holds them."""
        if not self.file.exists():
            return {}
        query = (
            "SELECT s.owner, t.number FROM visweep_slots s JOIN trials t USING (trial_id) "
            "WHERE s.owner IS NOT NULL AND t.state = 'RUNNING' AND EXISTS "
            "(SELECT 1 FROM trial_intermediate_values v WHERE v.trial_id = t.trial_id)"
        )
        with closing(sqlite3.connect(self.file, timeout=30)) as connection:
            return {json.loads(o)["pid"]: n for o, n in connection.execute(query)}


@pytest.fixture
def search(launcher: Any, tiny_search: Path, tmp_path: Path) -> Callable[..., Search]:
    return lambda *options: Search(launcher, tiny_search, tmp_path / "studies.db", options)


def require_whole(trials: list[optuna.trial.FrozenTrial], count: int) -> None:
    assert len(trials) == count
    assert {t.state.name for t in trials} <= {"COMPLETE", "PRUNED"}
    for trial in trials:
        epochs = len(trial.intermediate_values)
        assert list(trial.intermediate_values) == list(range(1, epochs + 1))
        assert trial.user_attrs["epochs"] == epochs


def test_two_workers_share_a_study_and_end_with_the_exact_number(
    search: Callable[..., Search], wait_for: Any
) -> None:
    # Unpruned: the other worker's first epoch may take as long as several trials.
    mine = search("--epochs", 24, "--pruner", "none")
    process = mine.start(10)
    wait_for(lambda: len(mine.held()) == 2, about=process)
    workers = mine.held()
    assert process.pid not in workers
    process.wait()
    assert (process.status, process.stderr) == (0, "")
    require_whole(mine.trials(), 10)
    assert "10 trials finished" in process.stdout
    lines = [line for line in process.stdout.splitlines() if line.startswith("[")]
    assert len(lines) == 10
    wait_for(lambda: not any(is_alive(pid) for pid in workers))
    # The last to leave folds the log in.
    assert sorted(p.name for p in mine.file.parent.iterdir()) == ["artifacts", "studies.db"]
    assert mine.finish(10) == mine.trials()
    require_whole(mine.finish(13), 13)


@pytest.mark.gpu
@pytest.mark.skipif(device_name("auto") == "cpu", reason="needs a CUDA device")
@pytest.mark.parametrize("pack", [1, 2])
def test_two_workers_share_a_gpu(search: Callable[..., Search], pack: int) -> None:
    mine = search("--epochs", 4, "--device", "cuda", "--pack", pack)
    trials = mine.finish(6)
    require_whole(trials, 6)
    assert {trial.user_attrs["device"] for trial in trials} == {"cuda:0"}


@pytest.mark.parametrize(
    ("number", "name"),
    [
        (signal.SIGKILL, "SIGKILL"),
        pytest.param(signal.SIGSEGV, "SIGSEGV", marks=pytest.mark.slow),
        pytest.param(signal.SIGRTMIN + 2, f"signal {signal.SIGRTMIN + 2}", marks=pytest.mark.slow),
    ],
)
def test_one_that_is_killed_is_replaced(
    search: Callable[..., Search], wait_for: Any, number: int, name: str
) -> None:
    mine = search("--epochs", 30, "--pruner", "none")
    process = mine.start(4)
    wait_for(lambda: len(mine.held()) == 2, about=process)
    victim, trial = next(iter(mine.held().items()))
    os.kill(victim, number)
    process.wait()
    assert (process.status, process.stderr) == (0, "")
    said = f"worker {victim} was ended by {name} while it trained trial {trial}; a new one takes"
    assert said in process.stdout
    require_whole(mine.trials(), 4)


@pytest.mark.slow
def test_when_all_are_killed_it_says_so_and_can_go_on(
    search: Callable[..., Search], wait_for: Any
) -> None:
    mine = search("--epochs", 30, "--pruner", "none")
    process = mine.start(3)

    def kill_all() -> bool:
        for worker in mine.held():
            with suppress(ProcessLookupError):
                os.kill(worker, signal.SIGKILL)
        return bool(process.ended())

    wait_for(kill_all, about=process)
    process.wait()
    assert process.status == 1
    assert process.stdout.count("a new one takes its place") >= MOST_KILLS - 2
    assert process.stderr == "error: all workers were ended from outside; run it again to go on\n"
    # One that five workers in a row were lost with has failed, and another took its place.
    whole = [t for t in mine.finish(3) if t.state.name != "FAIL"]
    require_whole(whole, 3)


def test_when_the_command_is_killed_its_workers_end(
    search: Callable[..., Search], wait_for: Any
) -> None:
    mine = search("--epochs", 2000, "--pruner", "none")
    process = mine.start(2)
    wait_for(lambda: len(mine.held()) == 2, about=process)
    workers = mine.held()
    process.kill()
    wait_for(lambda: not any(is_alive(pid) for pid in workers))
    assert mine.held() == workers  # their leases were left behind


def test_ctrl_c_stops_them_all_and_leaves_nothing_leased(
    search: Callable[..., Search], wait_for: Any
) -> None:
    mine = search("--epochs", 60, "--pruner", "none")
    process = mine.start(2)
    wait_for(lambda: len(mine.held()) == 2, about=process)
    process.signal(signal.SIGINT)
    process.wait(30)
    assert process.status == 130
    assert process.stderr.startswith("interrupted: the running epoch is being finished")
    assert "stopped: interrupted. resume: python " in process.stdout
    assert mine.held() == {}
    assert [t.state.name for t in mine.trials()] == ["RUNNING", "RUNNING"]
    require_whole(mine.finish(2), 2)


@pytest.mark.slow
def test_a_signal_to_the_whole_group_stops_them_all(
    search: Callable[..., Search], wait_for: Any
) -> None:
    """As from `timeout`, or a service manager."""
    mine = search("--epochs", 60, "--pruner", "none")
    process = mine.start(4)
    wait_for(lambda: len(mine.held()) == 2, about=process)
    os.killpg(process.pid, signal.SIGTERM)
    process.wait(30)
    assert process.status == 143
    assert process.stderr.startswith("terminated: the running epoch is being finished")
    assert "ended (" not in process.stdout  # each ended by itself, and is known to have
    assert mine.held() == {}
    assert [t.state.name for t in mine.trials()] == ["RUNNING"] * 2 + ["WAITING"] * 2
    require_whole(mine.finish(4), 4)


def test_they_can_be_stopped_when_the_server_they_came_from_is_gone(
    search: Callable[..., Search], wait_for: Any
) -> None:
    mine = search("--epochs", 2000, "--pruner", "none")
    process = mine.start(2)
    wait_for(lambda: len(mine.held()) == 2, about=process)
    workers = mine.held()
    os.kill(parent(next(iter(workers))), signal.SIGKILL)
    process.signal(signal.SIGTERM)
    process.wait(30)
    assert process.status == 143
    assert mine.held() == {}
    wait_for(lambda: not any(is_alive(pid) for pid in workers))


@pytest.mark.slow
def test_a_second_ctrl_c_stops_them_at_once(search: Callable[..., Search], wait_for: Any) -> None:
    mine = search("--epochs", 50, "--pruner", "none", "--seeds", 32, "--train-size", 4000)
    process = mine.start(2)
    wait_for(lambda: len(mine.held()) == 2, about=process)
    workers = mine.held()
    process.signal(signal.SIGINT)
    time.sleep(0.15)
    process.signal(signal.SIGINT)
    process.wait(20)
    assert process.status == 130
    assert "stopped at once" in process.stderr
    assert mine.held() == {}
    assert not any(is_alive(pid) for pid in workers)


@pytest.mark.slow
def test_it_can_be_stopped_from_outside_and_resumed_by_name(
    search: Callable[..., Search], wait_for: Any
) -> None:
    mine = search("--epochs", 60, "--pruner", "none")
    url = ("--storage", f"sqlite:///{mine.file}")
    process = mine.start(3)
    wait_for(lambda: len(mine.held()) == 2, about=process)
    assert mine.launcher.run("visweep", "stop", NAME, *url).status == 0
    process.wait()
    assert (process.status, process.stderr) == (0, "")
    assert "stopped: `visweep stop` was called" in process.stdout
    refused = mine.launcher.run("visweep", "worker", *url)
    assert refused.status == 2
    assert f"was told to stop; go on with it: visweep resume {NAME}" in refused.stderr
    resumed = mine.launcher.run("visweep", "resume", NAME, *url, "--workers", 2)
    assert (resumed.status, resumed.stderr) == (0, "")
    require_whole(mine.trials(), 3)


@pytest.mark.slow
def test_a_worker_joins_from_another_command(search: Callable[..., Search], wait_for: Any) -> None:
    mine = search("--epochs", 40, "--pruner", "none")
    url = ("--storage", f"sqlite:///{mine.file}")
    first = mine.start(5)
    wait_for(lambda: len(mine.held()) == 2, about=first)
    joined = mine.launcher.start("visweep", "worker", *url, "--workers", 1)
    wait_for(lambda: joined.pid in mine.held(), about=joined)
    for process in (first, joined):
        process.wait()
        assert (process.status, process.stderr) == (0, "")
    require_whole(mine.trials(), 5)
    refused = mine.launcher.run("visweep", "worker", *url)
    assert refused.status == 2
    assert "name the study to work on; unfinished here: none" in refused.stderr


@pytest.mark.slow
def test_all_trials_of_a_killed_process_are_taken_over(
    search: Callable[..., Search], wait_for: Any
) -> None:
    mine = search("--epochs", 30, "--pruner", "none", "--pack", 3)
    process = mine.start(7)

    def holding() -> list[int]:
        if not mine.file.exists():
            return []
        with closing(sqlite3.connect(mine.file, timeout=30)) as connection:
            query = "SELECT owner FROM visweep_slots WHERE owner IS NOT NULL"
            with suppress(sqlite3.OperationalError):  # it is being made
                return [json.loads(owner)["pid"] for (owner,) in connection.execute(query)]
        return []

    wait_for(lambda: max(Counter(holding()).values(), default=0) == 3, about=process)
    victim = Counter(holding()).most_common(1)[0][0]
    os.kill(victim, signal.SIGKILL)
    process.wait()
    assert (process.status, process.stderr) == (0, "")
    said = f"worker {victim} was ended by SIGKILL while it trained trials "
    assert said in process.stdout
    require_whole(mine.trials(), 7)
