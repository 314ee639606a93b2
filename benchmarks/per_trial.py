"""What a trial costs besides its training, and whether that grows with the number of trials.

    python benchmarks/per_trial.py --trials 250 500 1000
    python benchmarks/per_trial.py --trials 1000 --beside

One worker runs studies of so many trials with a trainer that does nothing (see pausing_worker.py),
on an SQLite file. What the trainer itself takes, its checkpoints included, is not counted; what a
worker does at the end of an epoch is. Prints milliseconds per trial, over all trials and over the
last tenth, and how much of the former the processor was busy for. With `--beside`, each row is
followed by what Optuna takes by itself: `study.optimize` on an SQLite file, with an objective that
asks for the same parameters and reports as many values.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
from measuring import environment, print_table
from pausing_worker import SPACE, PausingTrainer, Plan, make_study, value, work

from visweep.config import TrainConfig
from visweep.search.samplers import make_sampler


@dataclass
class Clock:
    """When each trial's training ended, and what training took until then, in seconds."""

    trained: float = 0.0
    ends: list[tuple[float, float]] = field(default_factory=list)

    def per_trial(self, first: int) -> float:
        """Milliseconds besides training of each trial from this one on."""
        (began, before), (ended, after) = self.ends[first], self.ends[-1]
        return 1000 * (ended - began - (after - before)) / (len(self.ends) - 1 - first)


class TimedTrainer(PausingTrainer):
    """Takes its own time, without that of the worker's callback."""

    def __init__(self, plan: Plan, clock: Clock) -> None:
        super().__init__(plan)
        self.clock = clock

    def fit(self, model: Any, train: TrainConfig, *, on_epoch: Any, checkpoint: Path) -> Any:
        outside = 0.0

        def timed(result: Any) -> Any:
            nonlocal outside
            began = time.perf_counter()
            stop = on_epoch(result)
            outside += time.perf_counter() - began
            return stop

        began = time.perf_counter()
        result = super().fit(model, train, on_epoch=timed, checkpoint=checkpoint)
        ended = time.perf_counter()
        self.clock.trained += ended - began - outside
        self.clock.ends.append((ended, self.clock.trained))
        return result


def of_optuna(trials: int, epochs: int, sampler: str) -> list[object]:
    """A row of what Optuna takes by itself, as its tutorials write it."""
    clock = Clock()

    def objective(trial: optuna.Trial) -> float:
        for name, distribution in SPACE.items():
            trial._suggest(name, distribution)
        for epoch in range(1, epochs + 1):
            trial.report(value(trial.number, epoch), epoch)
        clock.ends.append((time.perf_counter(), 0.0))
        return value(trial.number, epochs)

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        study = optuna.create_study(
            storage=f"sqlite:///{folder}/optuna.db",
            sampler=make_sampler(sampler, 0, 0),
            direction="maximize",
        )
        busy = time.process_time()
        study.optimize(objective, n_trials=trials)
        busy = time.process_time() - busy
    return cells(f"{sampler}, Optuna alone", trials, clock, busy)


def row(trials: int, epochs: int, sampler: str) -> list[object]:
    """A row of what a worker takes."""
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{folder}/studies.db"
        plan = Plan(url, Path(folder), trials, epochs, seconds=0.0, sampler=sampler)
        make_study(plan)
        busy = time.process_time()
        work(plan, lambda plan: TimedTrainer(plan, clock))
        busy = time.process_time() - busy
    return cells(sampler, trials, clock, busy)


def cells(name: str, trials: int, clock: Clock, busy: float) -> list[object]:
    last = clock.per_trial(trials - max(2, trials // 10))
    measured = (clock.per_trial(0), last, 1000 * busy / trials)
    return [name, trials, *(f"{ms:.1f}" for ms in measured)]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, nargs="+", default=[250, 500, 1000])
    parser.add_argument("--epochs", type=int, default=1, help="of a trial")
    parser.add_argument("--samplers", nargs="+", default=["random", "tpe"])
    parser.add_argument("--beside", action="store_true", help="what Optuna takes by itself")
    options = parser.parse_args()
    ways = (row, of_optuna) if options.beside else (row,)
    print(environment(), flush=True)
    print_table(
        ("sampler", "trials", "ms a trial", "of the last tenth", "processor busy"),
        [
            way(trials, options.epochs, sampler)
            for sampler in options.samplers
            for trials in options.trials
            for way in ways
        ],
    )


if __name__ == "__main__":
    main()
