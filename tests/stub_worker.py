"""A real worker whose trials train nothing: an epoch is a pause, a checkpoint a file of JSON.

Each epoch that is trained adds a line to LOG: trial, generation, epoch, process.

    stub_worker.py LOG TRIALS EPOCHS SECONDS [LEASE]   (the storage is $VISWEEP_STORAGE)

$STUB_ARTIFACTS is what `--artifacts` would be, $STUB_HOST the machine that it pretends to be;
trials from number $STUB_FAILS on fail, all for the same cause.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import FloatDistribution

from visweep.config import DataConfig, TrainConfig, ViTConfig
from visweep.sealed import read_sealed, write_sealed
from visweep.search.interrupt import Interrupt
from visweep.search.study import open_study
from visweep.search.watch import Watcher
from visweep.search.worker import Trainer, Worker
from visweep.storage.opening import open_storage
from visweep.storage.owner import this_process
from visweep.storage.slots import Slots
from visweep.storage.specification import Specification
from visweep.storage.whereabouts import accepted_place
from visweep.training.results import EpochResult, FitResult

STUDY = "stub"


def value(number: int, epoch: int, generation: int = 1) -> float:
    """What a trial reports; it tells under which lease the epoch was trained."""
    return number / 1000 + epoch / 100 + (generation - 1) / 10**6


class StubTrainer(Trainer):
    """Pauses `seconds` an epoch, and writes down each that it trained."""

    device, threads = "cpu", 1

    def __init__(self, log: Path, seconds: float) -> None:
        self.log = log
        self.seconds = seconds

    def fit(self, model: Any, train: TrainConfig, *, on_epoch: Any, checkpoint: Path) -> Any:
        found = re.fullmatch(r"trial-(\d+)\.g(\d+)\.ckpt", checkpoint.name)
        assert found is not None
        number, generation = int(found[1]), int(found[2])
        if number >= int(os.environ.get("STUB_FAILS", number + 1)):
            raise RuntimeError("the same cause")
        history: list[EpochResult] = []
        # The generation under which each epoch so far was trained.
        trained = json.loads(read_sealed(checkpoint)) if checkpoint.exists() else []
        replayed = len(trained) - 1
        for epoch in range(1, train.epochs + 1):
            if epoch > len(trained):
                time.sleep(self.seconds)
                with self.log.open("a") as file:
                    file.write(f"{number} {generation} {epoch} {os.getpid()}\n")
                trained.append(generation)
                write_sealed(checkpoint, json.dumps(trained).encode())
            accuracy = value(number, epoch, trained[epoch - 1])
            result = EpochResult(epoch, (1.0,), (1.0,), (accuracy,), self.seconds, 0.0, 1)
            history.append(replace(result, replayed=epoch <= replayed))
            if on_epoch(history[-1]) and epoch > replayed and epoch < train.epochs:
                return _ended(history, "stopped")
        return _ended(history, "completed")


def _ended(history: list[EpochResult], how: str) -> Any:
    model: Any = None
    return FitResult(tuple(history), how, (0.5,), 1, 1, model)


class _Notes(Watcher):
    def note(self, message: str) -> None:
        print(message, flush=True)


def main() -> None:
    log, trials, epochs, seconds, *lease = sys.argv[1:]
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    trainer = StubTrainer(Path(log), float(seconds))
    specification = Specification(
        space={"drop": FloatDistribution(0.0, 0.3)},
        data=DataConfig(),
        fingerprint="of nothing",
        model=ViTConfig(patch_size=16, embed_dim=8, depth=1, num_heads=2),
        train=TrainConfig(epochs=int(epochs), precision="float32"),
        sampler="random",
        pruner="none",
        seed=0,
    )
    storage = open_storage(os.environ["VISWEEP_STORAGE"])
    artifacts = accepted_place(os.environ.get("STUB_ARTIFACTS"))
    opened = open_study(storage, STUDY, specification, int(trials), artifacts)
    owner = this_process()
    owner = replace(owner, host=os.environ.get("STUB_HOST", owner.host))
    if lease:
        slots = Slots(storage, opened.study_id, owner, float(lease[0]))
        opened = replace(opened, slots=slots)
    with Interrupt().listening() as interrupt:
        Worker(opened, trainer, _Notes(), interrupt).run()
    storage.close()
    print("done")


if __name__ == "__main__":
    main()
