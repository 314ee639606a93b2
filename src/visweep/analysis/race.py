"""A study that races, read: its results, its decisions, and what was measured on the test images.

Whatever is decided follows from the finished trials, so that it is decided anew by whoever reads
them, and always the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

from optuna.trial import FrozenTrial

from visweep.analysis.overview import mapping
from visweep.analysis.runs import accuracy_of, by_seed
from visweep.analysis.statistics.comparison import NoResult
from visweep.analysis.statistics.paired import paired_test
from visweep.analysis.statistics.racing import Outcome, Race, race
from visweep.storage.specification import RACE, SEED, TEST, Specification
from visweep.storage.tables import FINISHED


@dataclass(frozen=True)
class Searched:
    """What the search had of an arm when the race began.

    Attributes:
        trial: number of its best trial.
        accuracy: mean validation accuracy of its trials, a fraction: the number that it was
            chosen by.
        runs: how many trials of this configuration had completed.
    """

    trial: int
    accuracy: float
    runs: int


@dataclass(frozen=True)
class Mean:
    """A mean accuracy, as fractions, and its 95 % interval where there are two runs at least.

    The interval is within 0 and 1, as accuracies are: of a few runs that differ much it would be
    wider by itself.
    """

    accuracy: float
    low: float | None
    high: float | None
    runs: int


@dataclass(frozen=True)
class TestResult:
    """What was measured on the test images, once; fractions, and errors in points.

    Attributes:
        arm: that was chosen.
        accuracy: mean over its runs.
        low, high: 95 % interval over seeds and images; None of one run.
        seeds: its runs'.
        images, groups: how many there are, and from how many independent sources.
        seed_error, image_error: standard errors by either kind of chance.
    """

    arm: str
    accuracy: float
    low: float | None
    high: float | None
    seeds: tuple[int, ...]
    images: int
    groups: int
    seed_error: float | None
    image_error: float

    # A class whose name begins so is no collection of tests.
    __test__ = False


@dataclass(frozen=True)
class Raced:
    """A race.

    Attributes:
        arms: the leaders of the study that it is of, the best first, and what it had of them.
        among: how many configurations of it had completed.
        seeds: that it may take, in their order.
        first: how many before its first look.
        results: accuracy (a fraction) by arm and seed, or why there is none.
        race: its decisions.
        test: the number on the test images; None as long as there is none.
    """

    arms: Mapping[str, Searched]
    among: int
    seeds: tuple[int, ...]
    first: int
    results: Mapping[str, Mapping[int, float | NoResult]]
    race: Race
    test: TestResult | None

    @property
    def chosen(self) -> str | None:
        """The arm that the race chooses: the winner, or of those that are tied the one with the
        highest mean; None while it is undecided."""
        if self.race.outcome in (Outcome.UNDECIDED, Outcome.NOBODY):
            return None
        means = {arm: self.mean(arm) for arm in self.race.survivors}
        known = {arm: mean.accuracy for arm, mean in means.items() if mean is not None}
        return max(known, key=lambda arm: known[arm])

    def seeds_of(self, arm: str) -> list[int]:
        """The seeds of its runs that have a result."""
        own = self.results[arm]
        return [s for s in self.seeds if not isinstance(own.get(s, NoResult("not run")), NoResult)]

    def mean(self, arm: str, runs: int | None = None) -> Mean | None:
        """Over its runs with the first so many seeds, or all; None without any."""
        first = self.seeds[:runs]
        values = [self.results[arm][s] for s in self.seeds_of(arm) if s in first]
        known = [value for value in values if not isinstance(value, NoResult)]
        if not known:
            return None
        if len(known) == 1:
            return Mean(known[0], None, None, 1)
        test = paired_test([100 * value for value in known])
        mean, low, high = (float(number) / 100 for number in (test.effect, test.low, test.high))
        # Equal runs have no scatter, and so no interval.
        if not isfinite(low):
            return Mean(mean, None, None, len(known))
        return Mean(mean, max(0.0, low), min(1.0, high), len(known))


def read_race(
    attributes: Mapping[str, Any], specification: Specification, trials: Sequence[FrozenTrial]
) -> Raced:
    """A study that races, as far as it has come.

    Args:
        attributes: of the study; they hold `RACE`.
        specification: of the study.
        trials: of the study.
    """
    begun = attributes[RACE]
    low = specification.space[SEED].low  # type: ignore[attr-defined]
    seeds = tuple(range(low, low + begun["last"]))
    # A run that failed is run again.
    runs = {arm: by_seed(trials, arm, FINISHED) for arm in specification.arms}
    results = {arm: {s: accuracy_of(run) for s, run in own.items()} for arm, own in runs.items()}
    tested = mapping(attributes, TEST)
    return Raced(
        arms={arm: Searched(**begun["arms"][arm]) for arm in specification.arms},
        among=begun["among"],
        seeds=seeds,
        first=begun["first"],
        results=results,
        race=race(results, seeds, begun["first"]),
        test=_tested(tested) if tested else None,
    )


def _tested(stored: Mapping[str, Any]) -> TestResult:
    names = TestResult.__dataclass_fields__
    known = {name: stored[name] for name in names if name in stored}
    return TestResult(**{**known, "seeds": tuple(stored["seeds"])})
