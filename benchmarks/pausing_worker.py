"""A real worker whose trials train nothing: an epoch is a pause, a checkpoint a file of JSON.

All else is as it ships: leases, parameters, reports, pruning, heartbeats, checkpoints. What
happens is written to the file `log` of the plan's folder, a line each, as it happens:

    called NUMBER GENERATION         a trial is handed to the trainer
    trained NUMBER GENERATION EPOCH  an epoch is over; its checkpoint comes next, then its report
    ended NUMBER                     a worker has finished the trial, and the storage said yes
"""

from __future__ import annotations

import json
import logging
import random
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import FloatDistribution

from visweep.config import DataConfig, TrainConfig, ViTConfig
from visweep.sealed import read_sealed, write_sealed
from visweep.search.interrupt import Interrupt
from visweep.search.study import OpenStudy, open_study
from visweep.search.watch import Progress, TrialView, Watcher
from visweep.search.worker import Trainer, Worker
from visweep.storage.engine import Storage
from visweep.storage.opening import open_storage
from visweep.storage.specification import Space, Specification
from visweep.training.results import EpochResult, FitResult

STUDY = "benchmark"
SPACE = {"drop": FloatDistribution(0.0, 0.3)}
MODEL = ViTConfig(patch_size=16, embed_dim=8, depth=1, num_heads=2)


@dataclass(frozen=True)
class Plan:
    """What the workers are to do.

    Attributes:
        url: of the storage.
        folder: where the log and the checkpoints are written.
        trials: how many the study has.
        epochs: of a trial.
        seconds: that an epoch pauses.
        pruner: name of the pruner.
        sampler: name of the sampler.
        timeout: seconds after which a worker stops; None for when all trials are finished.
        model: the baseline.
        space: that is searched.
    """

    url: str
    folder: Path
    trials: int
    epochs: int
    seconds: float
    pruner: str = "none"
    timeout: float | None = None
    sampler: str = "random"
    model: ViTConfig = MODEL
    space: Space = field(default_factory=lambda: SPACE)

    @property
    def log(self) -> Path:
        return self.folder / "log"

    def logged(self, kind: str) -> list[list[int]]:
        """The numbers of each line of one kind."""
        lines = [line.split() for line in self.log.read_text().splitlines()]
        return [[int(word) for word in words] for head, *words in lines if head == kind]


def value(number: int, epoch: int, generation: int = 1) -> float:
    """What a trial reports; it tells under which lease the epoch was trained."""
    quality = round(random.Random(number).random(), 3)
    return quality + epoch / 100 + (generation - 1) / 10**6


def write_line(plan: Plan, *words: object) -> None:
    """Add to the log; a line is written at once, so that those of two processes never mix."""
    with plan.log.open("a") as file:
        file.write(" ".join(map(str, words)) + "\n")


class PausingTrainer(Trainer):
    """Pauses instead of training, and writes down what it did."""

    device, threads = "cpu", 1

    def __init__(self, plan: Plan) -> None:
        self.plan = plan

    def fit(self, model: Any, train: TrainConfig, *, on_epoch: Any, checkpoint: Path) -> Any:
        found = re.fullmatch(r"trial-(\d+)\.g(\d+)\.ckpt", checkpoint.name)
        assert found is not None
        number, generation = int(found[1]), int(found[2])
        write_line(self.plan, "called", number, generation)
        # The generation under which each epoch so far was trained.
        trained = json.loads(read_sealed(checkpoint)) if checkpoint.exists() else []
        replayed = len(trained) - 1
        history: list[EpochResult] = []
        for epoch in range(1, train.epochs + 1):
            if epoch > len(trained):
                time.sleep(self.plan.seconds)
                write_line(self.plan, "trained", number, generation, epoch)
                trained.append(generation)
                write_sealed(checkpoint, json.dumps(trained).encode())
            accuracy = value(number, epoch, trained[epoch - 1])
            result = EpochResult(epoch, (1.0,), (1.0,), (accuracy,), 0.0, 0.0, 1)
            history.append(replace(result, replayed=epoch <= replayed))
            if on_epoch(history[-1]) and epoch > replayed and epoch < train.epochs:
                return _ended(history, "stopped")
        return _ended(history, "completed")


def _ended(history: list[EpochResult], how: str) -> FitResult:
    model: Any = None
    return FitResult(tuple(history), how, (0.5,), 1, 1, model)  # type: ignore[arg-type]


class _Log(Watcher):
    def __init__(self, plan: Plan) -> None:
        self._plan = plan

    def ended(self, trial: TrialView, progress: Progress) -> None:
        write_line(self._plan, "ended", trial.number)


def make_study(plan: Plan) -> None:
    """Create the study with all its slots."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = open_storage(plan.url)
    _open(storage, plan)
    storage.close()


def work(
    plan: Plan,
    make_trainer: Callable[[Plan], Trainer] = PausingTrainer,
    prepare: Callable[[Storage], None] = lambda _: None,
) -> None:
    """A worker's process, from its beginning to its end; `prepare` may watch its storage."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    storage = open_storage(plan.url)
    prepare(storage)
    opened = _open(storage, plan)
    with Interrupt(plan.timeout).listening() as interrupt:
        Worker(opened, make_trainer(plan), _Log(plan), interrupt).run()
    storage.close()


def _open(storage: Storage, plan: Plan) -> OpenStudy:
    """Its checkpoints lie in the plan's folder, not in the user's own."""
    return open_study(storage, STUDY, _specification(plan), plan.trials, str(plan.folder))


def _specification(plan: Plan) -> Specification:
    """Random proposals, as a rule: what is measured is the storage, not a model of the history."""
    return Specification(
        space=plan.space,
        data=DataConfig(),
        fingerprint="of nothing",
        model=plan.model,
        train=TrainConfig(epochs=plan.epochs, precision="float32"),
        sampler=plan.sampler,
        pruner=plan.pruner,
        seed=0,
    )
