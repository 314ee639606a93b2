"""A trial goes on from its last epoch on a machine that shares no disk with the one before."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import pytest

from s3 import KEY, SECRET, Server
from stub_worker import STUDY, value
from visweep.storage.opening import open_storage

WORKER = Path(__file__).parents[1] / "stub_worker.py"
EPOCHS = 12


@dataclass
class Machines:
    """Workers on machines that have a server and perhaps an object store in common."""

    start_worker: Callable[..., Any]
    url: str
    folder: Path

    def start(self, name: str, artifacts: str | None, trials: int = 2) -> Any:
        own = {"STUB_HOST": name, "VISWEEP_CACHE": f"{self.folder}/{name}/cache"}
        own["XDG_DATA_HOME"] = f"{self.folder}/{name}/data"
        return self.start_worker(
            WORKER, self.folder / "log", trials, EPOCHS, 0.1, 1.0,
            VISWEEP_STORAGE=self.url, **own,
            **({} if artifacts is None else {"STUB_ARTIFACTS": artifacts}),
        )  # fmt: skip

    def trained(self) -> list[tuple[int, int, int]]:
        """Trial, generation and epoch of everything that was trained, in this order of time."""
        log = self.folder / "log"
        lines = log.read_text().splitlines() if log.exists() else []
        return [(int(n), int(g), int(e)) for n, g, e, _ in map(str.split, lines)]

    def trials(self) -> list[optuna.trial.FrozenTrial]:
        storage = open_storage(self.url)
        found = optuna.load_study(study_name=STUDY, storage=storage).get_trials()
        storage.close()
        return found

    def reported(self) -> int:
        """Up to which epoch the first trial was reported."""
        return max(self.trials()[0].intermediate_values, default=0)


@pytest.fixture
def machines(launcher: Any, postgres_url: str, tmp_path: Path, s3: Server) -> Machines:
    def start(*arguments: Any, **environment: str) -> Any:
        return launcher.start(*arguments, **{**s3.environment, **environment})

    return Machines(start, postgres_url, tmp_path)


def kill_in_midst(machines: Machines, worker: Any, wait_for: Any) -> int:
    """Kill a worker in its first trial; returns the last epoch that it reported."""
    wait_for(lambda: len(machines.trained()) >= 4, about=worker)
    worker.kill()
    return machines.reported()


def test_it_goes_on_from_the_last_epoch_that_was_reported(
    machines: Machines, s3_url: str, s3: Server, wait_for: Any
) -> None:
    reported = kill_in_midst(machines, machines.start("first", s3_url), wait_for)
    assert reported >= 3
    second = machines.start("second", s3_url).wait()
    assert (second.status, second.stderr) == (0, ""), second.stderr
    trained = machines.trained()
    first_of_second = min(e for n, g, e in trained if n == 0 and g > 1)
    # What was reported is there; of the epoch after it may have been kept, or not.
    assert first_of_second in (reported + 1, reported + 2)
    trials = machines.trials()
    assert [t.state.name for t in trials] == ["COMPLETE"] * 2
    generation = max(g for n, g, _ in trained if n == 0)
    for epoch, reported_value in trials[0].intermediate_values.items():
        expected = value(0, epoch, 1 if epoch < first_of_second else generation)
        assert reported_value == expected
    assert set(trials[0].intermediate_values) == set(range(1, EPOCHS + 1))
    left = [name.rpartition("/")[2] for name in s3.files().find(s3_url)]
    assert left == [f"trial-00000.g{generation}.ckpt", "trial-00001.g1.ckpt"]
    said = second.stdout + second.stderr
    assert SECRET not in said
    assert KEY not in said


@pytest.mark.slow
def test_without_a_common_place_it_begins_anew(machines: Machines, wait_for: Any) -> None:
    kill_in_midst(machines, machines.start("first", None), wait_for)
    second = machines.start("second", None).wait()
    assert second.status == 0, second.stderr
    epochs = [e for n, g, e in machines.trained() if n == 0 and g > 1]
    assert epochs == list(range(1, EPOCHS + 1))
    (trial, _) = machines.trials()
    assert trial.state.name == "COMPLETE"
    generation = max(g for n, g, _ in machines.trained() if n == 0)
    assert trial.intermediate_values == {e: value(0, e, generation) for e in epochs}


@pytest.mark.slow
def test_a_store_that_restarts_costs_no_epoch(
    machines: Machines, s3_url: str, s3: Server, wait_for: Any
) -> None:
    worker = machines.start("first", s3_url)
    wait_for(lambda: len(machines.trained()) >= 4, about=worker)
    trained = len(machines.trained())
    s3.stop()
    try:
        time.sleep(3)
        assert len(machines.trained()) <= trained + 2  # what cannot be kept is not gone beyond
        assert not worker.ended()
    finally:
        s3.start()
    worker.wait()
    assert worker.status == 0, worker.stderr
    assert [t.state.name for t in machines.trials()] == ["COMPLETE"] * 2
    assert [(n, e) for n, _, e in machines.trained()] == [
        (n, e) for n in range(2) for e in range(1, EPOCHS + 1)
    ]
