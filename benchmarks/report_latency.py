"""How long does a report take when 16 workers each report once a second?

    python benchmarks/report_latency.py --workers 16 --seconds 60
    python benchmarks/report_latency.py --workers 16 --seconds 60 --epochs 400

Each worker pauses a second an epoch and reports, with the shipped pruner. Of eight epochs a trial,
trials are pruned and finished, and new ones leased, all the time; of 400 the workers do nothing
but report. What is timed is what a worker's epoch waits for:

- report: writing the value, which on our side includes the lease's fence;
- report and prune: that, and all else of the epoch's end: the pruner's decision, and on our side
  also the look at the heartbeat and at whether the study is to stop.

The baseline is plain Optuna, `study.optimize` with `trial.report` and `trial.should_prune` in as
many processes, same pruner, on a plain URL: on SQLite neither its journal nor its synchronisation
is changed. Proposals are random on both sides. The workers begin within a second of each other;
their first ten seconds come on top and are left out: they start and compile statements then.

Prints the median, the 95th and the 99th percentile and the maximum in milliseconds.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import optuna
from measuring import BACKENDS, environment, print_table, quantile, run_all, storage_url
from optuna.trial import Trial
from pausing_worker import SPACE, PausingTrainer, Plan, make_study, value, work

from visweep.config import TrainConfig
from visweep.search.pruners import make_pruner
from visweep.storage.engine import Storage

PRUNER = "halving"


@dataclass
class Times:
    """What one worker measured, in seconds.

    Attributes:
        warm_up: from the worker's start, so long is left out.
        report: of each report.
        both: of each report with what follows it.
        errors: how often it had to begin again.
    """

    warm_up: float
    report: list[float] = field(default_factory=list)
    both: list[float] = field(default_factory=list)
    errors: int = 0
    since: float = field(default_factory=time.monotonic)

    def timed(self, into: list[float], call: Callable[..., Any], *arguments: Any) -> Any:
        began = time.perf_counter()
        result = call(*arguments)
        if time.monotonic() - self.since > self.warm_up:
            into.append(time.perf_counter() - began)
        return result

    def save(self, folder: Path) -> None:
        (folder / f"{os.getpid()}.json").write_text(
            json.dumps([self.report, self.both, self.errors])
        )


class TimedTrainer(PausingTrainer):
    """Times what the worker does at the end of each epoch."""

    def __init__(self, plan: Plan, times: Times) -> None:
        super().__init__(plan)
        self.times = times

    def fit(self, model: Any, train: TrainConfig, *, on_epoch: Any, checkpoint: Path) -> Any:
        timed = partial(self.times.timed, self.times.both, on_epoch)
        return super().fit(model, train, on_epoch=timed, checkpoint=checkpoint)


def leased(plan: Plan, warm_up: float) -> None:
    """A worker of ours."""
    time.sleep(random.random())
    times = Times(warm_up)

    def watch(storage: Storage) -> None:
        report = storage.set_trial_intermediate_value
        storage.set_trial_intermediate_value = partial(  # type: ignore[method-assign]
            times.timed, times.report, report
        )

    work(plan, lambda _: TimedTrainer(plan, times), watch)
    times.save(plan.folder)


def make_optuna_study(plan: Plan) -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    optuna.create_study(study_name="plain", storage=plan.url, direction="maximize")


def optimize(plan: Plan, warm_up: float) -> None:
    """A process of plain Optuna; one whose `optimize` raises calls it again."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    time.sleep(random.random())
    times = Times(warm_up)

    def objective(trial: Trial) -> float:
        trial.suggest_float("drop", SPACE["drop"].low, SPACE["drop"].high)
        for epoch in range(1, plan.epochs + 1):
            time.sleep(plan.seconds)
            if times.timed(times.both, report_and_prune, trial, epoch):
                raise optuna.TrialPruned
        return value(trial.number, plan.epochs)

    def report_and_prune(trial: Trial, epoch: int) -> bool:
        times.timed(times.report, trial.report, value(trial.number, epoch), epoch)
        return trial.should_prune()

    assert plan.timeout is not None
    deadline = time.monotonic() + plan.timeout
    while (left := deadline - time.monotonic()) > 0:
        try:
            study = optuna.load_study(
                study_name="plain",
                storage=plan.url,
                sampler=optuna.samplers.RandomSampler(),
                pruner=make_pruner(plan.pruner, 0, plan.epochs),
            )
            study.optimize(objective, timeout=left)
        except Exception:
            times.errors += 1
    times.save(plan.folder)


SIDES = {"slots": (make_study, leased), "plain Optuna": (make_optuna_study, optimize)}


def run(
    backend: str, name: str, workers: int, seconds: float, warm_up: float, epochs: int
) -> list[object]:
    """One row of the table."""
    make, work_of_one = SIDES[name]
    with tempfile.TemporaryDirectory() as folder, storage_url(backend, Path(folder)) as url:
        plan = Plan(
            url=url,
            folder=Path(folder),
            trials=int(workers * (seconds + warm_up)),  # more than can be finished
            epochs=epochs,
            seconds=1.0,
            pruner=PRUNER,
            timeout=seconds + warm_up,
        )
        make(plan)
        died = run_all(workers, work_of_one, plan, warm_up)
        saved = [json.loads(path.read_text()) for path in Path(folder).glob("*.json")]
    report = [t for one in saved for t in one[0]]
    both = [t for one in saved for t in one[1]]
    errors = len(died) + sum(one[2] for one in saved)
    return [f"{backend}, {name}", len(report), *_spread(report), *_spread(both), errors]


def _spread(times: list[float]) -> list[str]:
    found = [*(quantile(times, share) for share in (0.5, 0.95, 0.99)), max(times)]
    return [f"{1000 * seconds:.1f}" for seconds in found]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workers", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--warm-up", type=float, default=10, help="seconds that are left out")
    parser.add_argument("--epochs", type=int, default=8, help="of a trial; few mean many trials")
    parser.add_argument("--storage", nargs="+", choices=BACKENDS, default=list(BACKENDS))
    parser.add_argument("--sides", nargs="+", choices=list(SIDES), default=list(SIDES))
    options = parser.parse_args()
    print(environment(), flush=True)
    print_table(
        (
            "ms", "reports", "report, median", "95 %", "99 %", "most",
            "report and prune, median", "95 %", "99 %", "most", "errors",
        ),
        [
            run(backend, name, options.workers, options.seconds, options.warm_up, options.epochs)
            for backend in options.storage
            for name in options.sides
        ],
    )  # fmt: skip


if __name__ == "__main__":
    main()
