"""Trainers for processes of a crew, which must be able to import them."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from visweep.config import TrainConfig
from visweep.errors import Crowded, DeviceLost
from visweep.sealed import write_sealed
from visweep.search.crew import Job
from visweep.search.mps import PIPES
from visweep.search.worker import Trainer
from visweep.training.results import EpochResult, FitResult


class CrowdedTrainer(Trainer):
    """Has room for a trial only where there are no others beside it."""

    device, threads = "cpu", 1

    def fit(self, model: Any, train: TrainConfig, *, on_epoch: Any, checkpoint: Path) -> Any:
        if self.others_beside:
            raise Crowded("beside others, the model does not fit in memory: full")
        time.sleep(1.0)  # others are tried again meanwhile
        write_sealed(checkpoint, b"")
        history = tuple(
            EpochResult(epoch, (1.0,), (1.0,), (0.5,), 0.0, 0.0, 1)
            for epoch in range(1, train.epochs + 1)
        )
        for result in history:
            on_epoch(result)
        nothing: Any = None
        return FitResult(history, "completed", (0.5,), 1, 1, nothing)


class LosingTrainer(CrowdedTrainer):
    """Loses its device with trial 1, as often as a file says.

    Args:
        times: the file.
    """

    def __init__(self, times: Path) -> None:
        self.times = times

    def fit(self, model: Any, train: TrainConfig, *, on_epoch: Any, checkpoint: Path) -> Any:
        left = int(self.times.read_text())
        if left and checkpoint.name.startswith("trial-00001."):
            self.times.write_text(str(left - 1))
            raise DeviceLost("cuda:0 does not work any more for this process: illegal access")
        return super().fit(model, train, on_epoch=on_epoch, checkpoint=checkpoint)


def crowded_job(file: Path, **changes: Any) -> Job:
    """That of the study `study` in a file, for workers with this trainer."""
    fields: dict[str, Any] = {
        "storage": f"sqlite:///{file}",
        "study": "study",
        "data_dir": None,
        "artifacts": None,
        "make_trainer": CrowdedTrainer,
    }
    return Job(**{**fields, **changes})


def served_trainer() -> Trainer:
    """A trainer, in a process that finds CUDA MPS."""
    assert os.environ[PIPES] == "/where it listens"
    return CrowdedTrainer()
