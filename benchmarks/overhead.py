"""How much of the default sweep is not training?

    python benchmarks/overhead.py --trials 50 --workers 1
    python benchmarks/overhead.py --trials 50 --workers 2

With a random sampler and without pruning, the same trials are trained to the same epochs however
many workers there are, so that their wall times can be compared:

    python benchmarks/overhead.py --workers 1 --sampler random --pruner none --epochs 2
    python benchmarks/overhead.py --workers 2 --sampler random --pruner none --epochs 2

Runs the sweep in a temporary folder, with the live view if there is a terminal. Training is what
`fit` takes, its callback (which reports, prunes, draws and beats) apart. Each worker's share is
taken from its first trial's beginning to its last one's end. Prints the share that is not
training, the wall time, and what pruning left of the epochs.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "sweeps"))

import optuna
from rich.console import Console
from vit_search import SEARCH

from visweep.cli import search
from visweep.cli.prepare import prepare
from visweep.cli.sweep import SweepOptions
from visweep.config import DataConfig
from visweep.search import trainer
from visweep.search.making import TrainerMaker
from visweep.search.trainer import SharedTrainer
from visweep.search.worker import Trainer
from visweep.training.results import EpochResult, FitResult

_FOLDER = "VISWEEP_OVERHEAD_FOLDER"


class TimedTrainer(SharedTrainer):
    """Writes down when each trial was trained, and for how long."""

    def fit(self, *arguments: Any, on_epoch: Any, **named: Any) -> FitResult:
        outside = 0.0

        def timed(result: EpochResult) -> bool:
            nonlocal outside
            began = time.perf_counter()
            stop = on_epoch(result)
            outside += time.perf_counter() - began
            return bool(stop)

        began = time.perf_counter()
        try:
            return super().fit(*arguments, on_epoch=timed, **named)
        finally:
            ended = time.perf_counter()
            with (Path(os.environ[_FOLDER]) / str(os.getpid())).open("a") as file:
                file.write(json.dumps([began, ended, ended - began - outside]) + "\n")


class TimedMaker(TrainerMaker):
    """Makes such trainers, here and in the processes of workers."""

    def __call__(self) -> Trainer:
        trainer.SharedTrainer = TimedTrainer  # type: ignore[misc]
        return super().__call__()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=50)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--sampler", default="tpe")
    parser.add_argument("--pruner", default="halving")
    parser.add_argument("--epochs", type=int, default=SEARCH.train.epochs)
    options = parser.parse_args()
    train = SEARCH.train.replace(epochs=options.epochs)
    search.TrainerMaker = TimedMaker  # type: ignore[misc]
    with tempfile.TemporaryDirectory() as folder:
        os.environ[_FOLDER] = folder
        asked = SweepOptions(
            trials=options.trials,
            study="timed",
            storage=f"sqlite:///{folder}/studies.db",
            artifacts=None,
            data=DataConfig(),
            train=train,
            space="small",
            seeds=1,
            device="auto",
            workers=options.workers,
            sampler=options.sampler,
            pruner=options.pruner,
            duplicates="replicate",
            timeout=None,
            seed=0,
        )
        prepared = prepare(SEARCH, asked)
        began = time.perf_counter()
        search.search_until_done(Console(), prepared, "")
        wall = time.perf_counter() - began
        spans = [_span(path) for path in Path(folder).iterdir() if path.name.isdecimal()]
        study = optuna.load_study(study_name="timed", storage=asked.storage)
        epochs = sum(len(t.intermediate_values) for t in study.trials)
    working, training = (sum(part) for part in zip(*spans, strict=True))
    print(
        f"{len(spans)} workers: wall {wall:.1f} s; at work {working:.1f} s, training "
        f"{training:.1f} s: {100 * (1 - training / working):.2f} % outside the trainer; "
        f"{epochs} of {options.trials * train.epochs} epochs; "
        f"best {study.best_value:.4f} (trial {study.best_trial.number})"
    )


def _span(path: Path) -> tuple[float, float]:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return rows[-1][1] - rows[0][0], sum(row[2] for row in rows)


if __name__ == "__main__":
    main()
