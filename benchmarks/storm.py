"""A storm of kills: is every trial trained to its end exactly once, whatever happens to workers?

    python benchmarks/storm.py --trials 2000 --workers 8
    python benchmarks/storm.py --trials 2000 --workers 8 --storage postgresql

Workers with a trainer that pauses (see pausing_worker.py) run a study; one of them, chosen at
random, is killed with SIGKILL every 0.2 to 1 s and replaced at once, until 95 % of the epochs are
trained. Then what the storage says is compared with what the trainers wrote down themselves:

- double ends: times that a trial was finished again after it was finished;
- gaps: epochs that a curve lacks;
- foreign: epochs of a curve that are not as the last worker that trained them has reported them;
- repeated: times that a worker began before, or beyond, the epoch where the last one was (the
  epoch during which that one was killed may be trained again).

The exit status is 1 if anything is wrong, or `visweep check` finds something wrong.
"""

from __future__ import annotations

import argparse
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

import optuna
from measuring import BACKENDS, environment, print_table, start, storage_url
from optuna.trial import FrozenTrial
from pausing_worker import STUDY, Plan, make_study, value, work

from visweep.storage.check import check
from visweep.storage.opening import open_storage

CALM_SHARE = 0.05
"""The last epochs are left in peace, so that the storm ends."""


@dataclass(frozen=True)
class Outcome:
    """What came of a storm; see above."""

    finished: int
    double_ends: int
    gaps: int
    foreign: int
    repeated: int
    found_by_check: int

    def exact(self, trials: int) -> bool:
        wrong = (
            self.double_ends, self.gaps, self.foreign, self.repeated, self.found_by_check,
        )  # fmt: skip
        return self.finished == trials and not any(wrong)


def storm(plan: Plan, count: int, chance: random.Random) -> tuple[int, list[int]]:
    """Kill until the study is nearly done; returns the number of kills, and the exit statuses of
    workers that ended neither well nor by our hand."""
    workers = [start(work, plan) for _ in range(count)]
    enough = (1 - CALM_SHARE) * plan.trials * plan.epochs
    killed: list[BaseProcess] = []
    while all(worker.exitcode is None for worker in workers):
        time.sleep(chance.uniform(0.2, 1.0))
        if plan.log.exists() and len(plan.logged("trained")) > enough:
            break
        index = chance.randrange(count)
        victim = workers[index]
        if victim.exitcode is None:
            victim.kill()
            victim.join()
            killed.append(victim)
            workers[index] = start(work, plan)
    for worker in workers:
        worker.join()
    statuses = [w.exitcode or 0 for w in (*workers, *killed)]
    return len(killed), [status for status in statuses if status not in (0, -signal.SIGKILL)]


def judge(plan: Plan) -> Outcome:
    """Compare the storage with what the trainers wrote down."""
    trials = _read(plan)
    trained: dict[int, list[tuple[int, int]]] = {t.number: [] for t in trials}
    for number, generation, epoch in plan.logged("trained"):
        trained[number].append((generation, epoch))
    ends = Counter(number for (number,) in plan.logged("ended"))
    expected = range(1, plan.epochs + 1)
    return Outcome(
        finished=sum(t.state.name == "COMPLETE" for t in trials),
        double_ends=sum(ends.values()) - len(ends),
        gaps=sum(epoch not in t.intermediate_values for t in trials for epoch in expected),
        foreign=sum(_foreign(t, trained[t.number]) for t in trials),
        repeated=sum(_repeated(epochs) for epochs in trained.values()),
        found_by_check=sum(finding.wrong for finding in check(plan.url)),
    )


def _read(plan: Plan) -> list[FrozenTrial]:
    storage = open_storage(plan.url)
    try:
        return optuna.load_study(study_name=STUDY, storage=storage).get_trials()
    finally:
        storage.close()


def _foreign(trial: FrozenTrial, trained: list[tuple[int, int]]) -> int:
    last = {epoch: generation for generation, epoch in sorted(trained)}
    curve = trial.intermediate_values
    return sum(
        accuracy != value(trial.number, epoch, last.get(epoch, 0))
        for epoch, accuracy in curve.items()
    )


def _repeated(trained: list[tuple[int, int]]) -> int:
    """How often a generation did not go on where the one before it was."""
    done, wrong = 0, 0
    for generation in sorted({generation for generation, _ in trained}):
        its = [epoch for g, epoch in trained if g == generation]
        wrong += its != list(range(its[0], its[0] + len(its))) or its[0] not in (done, done + 1)
        done = its[-1]
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=2000)
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=0.03, help="that an epoch pauses")
    parser.add_argument("--seed", type=int, default=1, help="of the kills")
    parser.add_argument("--storage", choices=BACKENDS, default="sqlite")
    options = parser.parse_args()
    print(environment(), flush=True)
    with tempfile.TemporaryDirectory() as name, storage_url(options.storage, Path(name)) as url:
        plan = Plan(
            url=url,
            folder=Path(name),
            trials=options.trials,
            epochs=options.epochs,
            seconds=options.seconds,
        )
        make_study(plan)
        began = time.perf_counter()
        kills, crashes = storm(plan, options.workers, random.Random(options.seed))
        wall = time.perf_counter() - began
        outcome = judge(plan)
        adopted = {(number, g) for number, g, _ in plan.logged("trained") if g > 1}
    _print(options.storage, options.trials, outcome, kills, crashes, len(adopted), wall)
    return 0 if outcome.exact(options.trials) and not crashes else 1


def _print(
    backend: str,
    trials: int,
    outcome: Outcome,
    kills: int,
    crashes: list[int],
    adoptions: int,
    wall: float,
) -> None:
    print_table(
        (
            "storage", "finished", "double ends", "gaps", "foreign", "repeated", "wrong by check",
            "kills", "adoptions", "crashes", "wall",
        ),
        [
            [
                backend, f"{outcome.finished} of {trials}", outcome.double_ends, outcome.gaps,
                outcome.foreign, outcome.repeated, outcome.found_by_check, kills, adoptions,
                len(crashes), f"{wall:.0f} s",
            ],
        ],
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
