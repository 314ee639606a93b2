"""What a trial costs besides its training, and whether that grows with the number of trials.

    python benchmarks/per_trial.py --trials 250 500 1000
    python benchmarks/per_trial.py --trials 1000 --turns 3 --beside

One worker runs studies of so many trials over the default space of Transformers with a trainer
that does nothing (see pausing_worker.py), on an SQLite file. What the trainer itself takes, its
checkpoints included, is not counted; what a worker does at the end of an epoch is. Prints
milliseconds per trial, over all trials and over the last tenth, and those that the processor was
busy for, the trainer and the start included; of several turns the medians, with the least and the
most.

With `--beside`, what Optuna takes by itself is measured in the same turns: `study.optimize` on an
SQLite file, with an objective that asks for the same parameters and reports as many values. It
keeps its sampler from trial to trial, and SQLite syncs its journal as by default; there are no
leases, checkpoints or budget.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "sweeps"))

import optuna
import vit_search
from measuring import environment, print_table
from pausing_worker import PausingTrainer, Plan, make_study, value, work

from visweep.config import TrainConfig
from visweep.search.samplers import make_sampler

IMAGE_SIZE = 32
_SEARCH = vit_search.SEARCH

Costs = tuple[float, float, float]
"""Milliseconds a trial: of all, of the last tenth, of the processor's time."""


@dataclass
class Clock:
    """When each trial's training ended, and what training took until then, in seconds."""

    trained: float = 0.0
    ends: list[tuple[float, float]] = field(default_factory=list)

    def per_trial(self, first: int) -> float:
        """Milliseconds besides training of each trial from this one on."""
        (began, before), (ended, after) = self.ends[first], self.ends[-1]
        return 1000 * (ended - began - (after - before)) / (len(self.ends) - 1 - first)

    def costs(self, trials: int, busy: float) -> Costs:
        """Of so many trials, for which the processor was busy for so many seconds."""
        last = self.per_trial(trials - max(2, trials // 10))
        return self.per_trial(0), last, 1000 * busy / trials


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


def of_optuna(trials: int, epochs: int, sampler: str, _: str) -> Costs:
    """What Optuna takes by itself, as its tutorials write it; nothing is pruned."""
    clock = Clock()
    space = _SEARCH.spaces["small"](IMAGE_SIZE)

    def objective(trial: optuna.Trial) -> float:
        for name, distribution in space.items():
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
    return clock.costs(trials, busy)


def of_a_worker(trials: int, epochs: int, sampler: str, pruner: str) -> Costs:
    """What a worker takes."""
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        plan = Plan(
            f"sqlite:///{folder}/studies.db",
            Path(folder),
            trials,
            epochs,
            seconds=0.0,
            sampler=sampler,
            pruner=pruner,
            model=_SEARCH.baseline.replace(image_size=IMAGE_SIZE),
            space=_SEARCH.spaces["small"](IMAGE_SIZE),
        )
        make_study(plan)
        busy = time.process_time()
        work(plan, lambda plan: TimedTrainer(plan, clock))
        busy = time.process_time() - busy
    return clock.costs(trials, busy)


WAYS = {"visweep": of_a_worker, "Optuna alone": of_optuna}


def rows(options: argparse.Namespace, sampler: str, trials: int) -> list[list[object]]:
    """One for each way, which take turns."""
    ways = list(WAYS) if options.beside else ["visweep"]
    found: dict[str, list[Costs]] = {way: [] for way in ways}
    for _ in range(options.turns):
        for way in ways:
            found[way].append(WAYS[way](trials, options.epochs, sampler, options.pruner))
    return [
        [sampler, trials, way, *map(_spread, zip(*costs, strict=True))]
        for way, costs in found.items()
    ]


def _spread(values: Sequence[float]) -> str:
    middle = f"{median(values):.1f}"
    return middle if len(values) == 1 else f"{middle} ({min(values):.1f}–{max(values):.1f})"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, nargs="+", default=[250, 500, 1000])
    parser.add_argument("--epochs", type=int, default=1, help="of a trial")
    parser.add_argument("--pruner", default="none", help="of ours")
    parser.add_argument("--samplers", nargs="+", default=["random", "tpe"])
    parser.add_argument("--turns", type=int, default=1)
    parser.add_argument("--beside", action="store_true", help="what Optuna takes by itself")
    options = parser.parse_args()
    print(environment(), flush=True)
    table = [
        row
        for sampler in options.samplers
        for trials in options.trials
        for row in rows(options, sampler, trials)
    ]
    headings = ("ms a trial", "of the last tenth", "processor, trainer included")
    print_table(("sampler", "trials", "", *headings), table)


if __name__ == "__main__":
    main()
