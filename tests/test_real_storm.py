"""Storms of kills over real training: nothing is lost, nothing changes."""

from __future__ import annotations

import json
import random
import signal
import sqlite3
import time
from contextlib import closing
from typing import Any

import pytest
import torch
from optuna.trial import FrozenTrial
from torch import Tensor

from searches import MakeSearch, Search
from visweep.storage.check import check

KILLS = 20
TRIALS = 20

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


def workers(mine: Search) -> set[int]:
    """The processes that hold a trial."""
    return {json.loads(owner)["pid"] for owner in mine.leases()} if mine.file.exists() else set()


def leases_taken(mine: Search) -> list[int]:
    """How often each trial was leased."""
    with closing(sqlite3.connect(mine.file, timeout=30)) as connection:
        query = "SELECT generation FROM visweep_slots ORDER BY trial_id"
        return [generation for (generation,) in connection.execute(query)]


def epochs_reported(mine: Search) -> int:
    if not mine.file.exists():
        return 0
    with closing(sqlite3.connect(mine.file, timeout=30)) as connection:
        query = "SELECT COUNT(*) FROM trial_intermediate_values"
        return int(connection.execute(query).fetchone()[0])


def require_whole(trial: FrozenTrial) -> None:
    epochs = trial.user_attrs["epochs"]
    assert list(trial.intermediate_values) == list(range(1, epochs + 1))
    assert trial.value == trial.intermediate_values[epochs]
    ended = "completed" if trial.state.name == "COMPLETE" else f"pruned at epoch {epochs}"
    assert trial.user_attrs["ended"] == ended


def test_two_workers_are_killed_twenty_times(search: MakeSearch, wait_for: Any) -> None:
    mine = search("--epochs", 30, size=2000)
    chance = random.Random(4)
    processes = [mine.start(500) for _ in range(2)]
    for process in processes:
        wait_for(lambda p=process: p.pid in workers(mine), about=process)
    alive = list(processes)
    for _ in range(KILLS):
        time.sleep(chance.uniform(5.0, 15.0))
        assert not any(p.ended() for p in alive), [p.stderr for p in alive]
        victim = alive.pop(chance.randrange(2))
        victim.kill()
        alive.append(mine.start(500))
        processes.append(alive[-1])
    # Who is only starting would ask for 500 once more.
    wait_for(lambda: alive[-1].pid in workers(mine), about=alive[-1])
    begun = sum(t.state.name != "WAITING" for t in mine.trials())
    last = mine.start(begun + 4)
    for process in (*alive, last):
        process.wait(300)
        assert process.status == 0, process.stderr
    assert [p.stderr for p in processes if p.stderr] == []
    assert [p.status for p in processes].count(-signal.SIGKILL) == KILLS
    trials = mine.trials()
    assert len(trials) == begun + 4
    assert {t.state.name for t in trials} == {"COMPLETE", "PRUNED"}
    for trial in trials:
        require_whole(trial)
    assert not any("begins anew" in p.stdout for p in processes)
    # A kill hit a trial that was being trained, nearly always.
    assert sum(leases_taken(mine)) - len(trials) >= KILLS / 2
    assert check(mine.url) == []
    assert mine.leases() == []


def test_twenty_kills_at_any_moment_change_no_bit(search: MakeSearch, wait_for: Any) -> None:
    options = ("--epochs", 16, "--seed", 5, "--seeds", 2)
    undisturbed = search(*options, folder="undisturbed", size=1000)
    begun = time.monotonic()
    expected = finish(undisturbed, TRIALS)
    duration = time.monotonic() - begun
    mine = search(*options, folder="disturbed", size=1000)
    moments = random.Random(6)
    for kill in range(KILLS):
        before = epochs_reported(mine)
        process = mine.start(TRIALS)
        wait_for(lambda p=process: p.pid in workers(mine), about=process)
        if kill % 3 == 2:
            # A trial whose workers are lost five times in a row without an epoch in between fails.
            wait_for(lambda n=before: epochs_reported(mine) > n, about=process)
        # All of them take a third of the study, so that there are twenty on a busy machine, too.
        time.sleep(moments.uniform(0.0, 2 / 3 * duration / KILLS))
        process.kill()
        assert process.status == -signal.SIGKILL, "it was through: this proves nothing"
    trials = finish(mine, TRIALS)
    assert [t.user_attrs["ended"] for t in trials] == [t.user_attrs["ended"] for t in expected]
    assert [result(t) for t in trials] == [result(t) for t in expected]
    assert {t.state.name for t in trials} == {"COMPLETE", "PRUNED"}
    assert sum(leases_taken(mine)) >= len(trials) + KILLS / 2
    theirs, ours = weights(undisturbed), weights(mine)
    assert len(theirs) >= 3
    assert ours.keys() == theirs.keys()
    for number, tensors in theirs.items():
        assert ours[number].keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert torch.equal(ours[number][name], tensor), (number, name)


def finish(mine: Search, trials: int) -> list[FrozenTrial]:
    """The trials, when it is through; on a busy machine that takes minutes."""
    process = mine.start(trials).wait(600)
    assert (process.status, process.stderr) == (0, "")
    return mine.trials()


def result(trial: FrozenTrial) -> tuple[Any, ...]:
    """What may not depend on interruptions."""
    kept = ("val_loss", "train_accuracy", "val_accuracy_per_seed", "epochs", "ended")
    attributes = [trial.user_attrs[name] for name in kept]
    curve = trial.intermediate_values
    return trial.number, trial.state, trial.params, curve, trial.value, attributes


def weights(mine: Search) -> dict[int, dict[str, Tensor]]:
    """Every tensor in the checkpoints that a study keeps, by trial."""
    found = {}
    for path in mine.file.parent.glob("artifacts/*/trial-*.ckpt"):
        payload = path.with_suffix(".payload")
        payload.write_bytes(path.read_bytes().split(b"\n", 2)[2])
        found[int(path.name[6:11])] = _tensors(torch.load(payload, weights_only=True)["tensors"])
        payload.unlink()
    return found


def _tensors(tree: Any, name: str = "") -> dict[str, Tensor]:
    if isinstance(tree, Tensor):
        return {name: tree}
    if isinstance(tree, int):
        return {}  # how many images a micro-batch has
    parts = tree.items() if isinstance(tree, dict) else enumerate(tree)
    return {n: t for key, part in parts for n, t in _tensors(part, f"{name}/{key}").items()}
