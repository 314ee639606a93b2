"""The database goes away in mid-study: workers wait, lose no epoch and train none twice."""

from __future__ import annotations

import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import pytest

from postgres import PASSWORD, Server
from proxy import Proxy
from stub_worker import STUDY, value
from visweep.storage.opening import open_storage

WORKER = Path(__file__).parents[1] / "stub_worker.py"
TRIALS, EPOCHS = 24, 4


@dataclass
class Run:
    """A study and the processes that work on it."""

    url: str
    folder: Path
    processes: list[Any]
    trials: int
    epochs: int

    @property
    def log(self) -> Path:
        return self.folder / "log"

    def trained(self) -> list[tuple[int, int]]:
        """Every epoch that was trained, as trial and epoch."""
        return [(n, e) for n, _, e in self._lines()]

    def is_under_way(self, workers: int) -> bool:
        """Whether so many have trained; the first ones may be done before the last one begins."""
        trained = self._words()
        pids = {pid for *_, pid in trained}
        started = len(pids) == workers or len(trained) == self.trials * self.epochs
        return started and len(trained) >= 2 * workers

    def _lines(self) -> list[tuple[int, int, int]]:
        return [(int(n), int(g), int(e)) for n, g, e, _ in self._words()]

    def _words(self) -> list[list[str]]:
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return [line.split() for line in lines]

    def assert_complete(self) -> None:
        """At the end everything is there, and nothing is there twice; waits for it."""
        for process in self.processes:
            process.wait()
            assert process.status == 0, process.stderr
            assert process.stdout == "done\n"
            assert PASSWORD not in process.stderr
        storage = open_storage(self.url)
        study = optuna.load_study(study_name=STUDY, storage=storage)
        trials = study.get_trials()
        storage.close()
        assert [t.state.name for t in trials] == ["COMPLETE"] * self.trials
        generations = {(n, e): g for n, g, e in self._lines()}
        for trial in trials:
            curve = {
                e: value(trial.number, e, generations[trial.number, e])
                for e in range(1, self.epochs + 1)
            }
            assert trial.intermediate_values == curve
            assert trial.value == curve[self.epochs]
            assert trial.user_attrs["ended"] == "completed"
        expected = {(n, e) for n in range(self.trials) for e in range(1, self.epochs + 1)}
        assert Counter(self.trained()) == Counter(expected)


@pytest.fixture
def start(launcher: Any, tmp_path: Path, wait_for: Any) -> Callable[..., Run]:
    """Start workers, and wait until they are in the midst of it."""

    def start_them(
        url: str, through: str = "", workers: int = 3, trials: int = TRIALS, pause: float = 0.05
    ) -> Run:
        run = Run(url, tmp_path, [], trials, EPOCHS)
        for _ in range(workers):
            run.processes.append(
                launcher.start(
                    WORKER, run.log, trials, EPOCHS, pause, cwd=tmp_path,
                    VISWEEP_STORAGE=through or url,
                )
            )  # fmt: skip
        wait_for(lambda: run.is_under_way(workers), about=run.processes[0])
        return run

    return start_them


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGQUIT], ids=["politely", "at once"])
def test_a_server_that_restarts_is_waited_for(
    postgres: Server, postgres_url: str, start: Callable[..., Run], number: int
) -> None:
    run = start(postgres_url)
    postgres.stop(number)
    time.sleep(3)
    before = len(run.trained())
    assert before < TRIALS * EPOCHS
    postgres.start()
    run.assert_complete()
    told = [process.stderr.splitlines() for process in run.processes if process.stderr]
    assert told
    for said in told:
        assert said[0].startswith("waiting for the storage postgresql+psycopg://visweep:***@")
        assert said[1].startswith("the storage is back after ")
        assert len(said) == 2


@pytest.mark.slow
def test_a_second_ctrl_c_ends_the_waiting(
    postgres: Server, postgres_url: str, start: Callable[..., Run], wait_for: Any
) -> None:
    run = start(postgres_url, workers=1)
    (process,) = run.processes
    postgres.stop()
    try:
        wait_for(lambda: "waiting for the storage" in process.stderr, about=process)
        process.signal(signal.SIGINT)
        time.sleep(0.5)
        assert not process.ended()  # what was trained is still to be reported
        process.signal(signal.SIGINT)
        begun = time.monotonic()
        process.wait()
        assert time.monotonic() - begun < 10
    finally:
        postgres.start()
    assert process.status != 0
    again = start(postgres_url, workers=1)
    again.assert_complete()


@pytest.mark.slow
def test_a_server_that_is_away_for_longer(
    postgres: Server, postgres_url: str, start: Callable[..., Run]
) -> None:
    run = start(postgres_url)
    postgres.stop()
    time.sleep(20)
    postgres.start()
    run.assert_complete()


@pytest.mark.slow
def test_connections_that_break_are_made_anew(
    postgres: Server, postgres_url: str, start: Callable[..., Run], proxy: Proxy
) -> None:
    run = start(postgres_url, through=postgres_url.replace(str(postgres.port), str(proxy.port)))
    for _ in range(6):
        proxy.cut()
        time.sleep(0.3)
        proxy.restore()
        time.sleep(0.3)
    run.assert_complete()


@pytest.mark.slow
def test_a_link_that_stalls_is_waited_for(
    postgres: Server, postgres_url: str, start: Callable[..., Run], proxy: Proxy
) -> None:
    run = start(postgres_url, through=postgres_url.replace(str(postgres.port), str(proxy.port)))
    proxy.stall()
    time.sleep(4)
    proxy.restore()
    time.sleep(0.2)
    proxy.stall()
    time.sleep(1)
    proxy.cut()
    time.sleep(1)
    proxy.restore()
    run.assert_complete()


def test_answers_that_are_lost_do_no_harm(
    postgres: Server, postgres_url: str, start: Callable[..., Run], proxy: Proxy, wait_for: Any
) -> None:
    run = start(postgres_url, through=postgres_url.replace(str(postgres.port), str(proxy.port)))
    for _ in range(12):
        proxy.lose_commits(1)
        wait_for(lambda: not proxy.commits_to_lose() or len(run.trained()) == TRIALS * EPOCHS)
        time.sleep(0.1)
    run.assert_complete()
