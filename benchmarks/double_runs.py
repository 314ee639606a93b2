"""Does a trial ever run twice? Leased slots against plain Optuna, 16 processes on one SQLite file.

    python benchmarks/double_runs.py --trials 1000 --workers 16

Both sides get the same: a study with all its trials waiting, so many processes at once, trials of
three epochs that pause 2 ms each, report, and ask the pruner. The Optuna side is what its
documentation shows for several processes: `enqueue_trial`, then in each process
`study.optimize(objective, callbacks=[MaxTrialsCallback(TRIALS)])` on a `sqlite:///` URL. A process
whose `optimize` raises is counted and calls it again, as a supervisor would.

Each call of an objective (or of the trainer) adds a line to a file before anything else; from that
file, and from what the study says afterwards, both sides are counted alike: trials of the budget
that ran, calls beyond the first of a trial, trials beyond the budget, trials finished and those
left over, exceptions by type. The wall time is from the first process's start to the last one's
end; making the study is not in it.
"""

from __future__ import annotations

import argparse
import sqlite3
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import optuna
from measuring import environment, print_table, run_all
from optuna.study import MaxTrialsCallback
from optuna.trial import Trial, TrialState
from pausing_worker import SPACE, Plan, make_study, value, work, write_line

HEADINGS = (
    "", "trials that ran", "double runs", "beyond the budget", "finished", "left running",
    "left waiting", "errors", "wall",
)  # fmt: skip


@dataclass(frozen=True)
class Side:
    """One way of running a study in many processes.

    Attributes:
        name: as it is shown.
        make: creates the study, all its trials waiting.
        work: of one process.
    """

    name: str
    make: Callable[[Plan], None]
    work: Callable[[Plan], None]


def make_optuna_study(plan: Plan) -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(study_name="plain", storage=plan.url, direction="maximize")
    for _ in range(plan.trials):
        study.enqueue_trial({})


def optimize(plan: Plan) -> None:
    """A process of the Optuna side."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    # Told of each epoch of a trial that runs twice; these are counted anyway.
    warnings.filterwarnings("ignore", "The reported value is ignored")

    def objective(trial: Trial) -> float:
        write_line(plan, "called", trial.number)
        trial.suggest_float("drop", SPACE["drop"].low, SPACE["drop"].high)
        for epoch in range(1, plan.epochs + 1):
            time.sleep(plan.seconds)
            trial.report(value(trial.number, epoch), epoch)
            if trial.should_prune():
                raise optuna.TrialPruned
        return value(trial.number, plan.epochs)

    enough = MaxTrialsCallback(plan.trials, states=(TrialState.COMPLETE,))
    while _finished(plan) < plan.trials:
        try:
            study = optuna.load_study(
                study_name="plain",
                storage=plan.url,
                sampler=optuna.samplers.RandomSampler(),
                pruner=optuna.pruners.NopPruner(),
            )
            study.optimize(objective, callbacks=[enough])
        except Exception as e:
            write_line(plan, "error", _kind(e))


def _kind(error: BaseException) -> str:
    """The type of an error, and of what Optuna made it from."""
    cause = error.__cause__ or error.__context__
    name = type(error).__name__
    return name if cause is None else f"{name}({type(cause).__name__})"


def leased(plan: Plan) -> None:
    """A process of our side: one that fails is not started again."""
    try:
        work(plan)
    except Exception as e:
        write_line(plan, "error", _kind(e))


SIDES = (
    Side("slots", make_study, leased),
    Side("plain Optuna", make_optuna_study, optimize),
)


def run(side: Side, trials: int, workers: int) -> list[object]:
    """One side's row of the table."""
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{folder}/studies.db"
        plan = Plan(url=url, folder=Path(folder), trials=trials, epochs=3, seconds=0.002)
        side.make(plan)
        began = time.perf_counter()
        died = run_all(workers, side.work, plan)
        wall = time.perf_counter() - began
        calls = Counter(number for number, *_ in plan.logged("called"))
        errors = Counter(_errors(plan)) + Counter(f"exit status {status}" for status in died)
        states = _states(plan)
    return [
        side.name,
        f"{sum(number < trials for number in calls)} of {trials}",
        sum(calls.values()) - len(calls),
        sum(number >= trials for number in calls),
        states["COMPLETE"] + states["PRUNED"],
        states["RUNNING"],
        states["WAITING"],
        ", ".join(f"{count} × {kind}" for kind, count in errors.most_common()) or "none",
        f"{wall:.0f} s",
    ]


def _finished(plan: Plan) -> int:
    return _states(plan)["COMPLETE"]


def _states(plan: Plan) -> Counter[str]:
    """Trials by state, read past both sides' own code."""
    with closing(sqlite3.connect(plan.folder / "studies.db", timeout=60)) as connection:
        return Counter(
            dict(connection.execute("SELECT state, COUNT(*) FROM trials GROUP BY state"))
        )


def _errors(plan: Plan) -> list[str]:
    lines = [line.split() for line in plan.log.read_text().splitlines()]
    return [words[1] for words in lines if words[0] == "error"]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=16)
    options = parser.parse_args()
    print(environment())
    print_table(HEADINGS, [run(side, options.trials, options.workers) for side in SIDES])


if __name__ == "__main__":
    main()
