"""A race: more seeds for the leaders of a search, fewer leaders as soon as the evidence allows.

Each arm is a configuration, trained with the same seeds as the others. After every seed, from the
first look on, each two arms left are compared by the paired t-test over the seeds that both have,
and an arm that is shown to be worse than another one is dropped. The last arm left is the winner;
arms that are left when the seeds are used up are tied.

What is promised: in at most 5 % of races is any arm ever dropped for one that is no better. So in
95 % the truly best arm stays to the end, however many share that place, and where arms are equally
good nobody wins. It takes two divisions of the 5 %: equally over all pairs of arms (Bonferroni; an
arm dropped does not make it easier for the others), and each pair's part over its looks, by
`spending`, which accounts for looking again and again. Comparing with the leader only would need
the same: who leads is itself decided by the data. Normal differences are assumed, equal scatter of
the arms is not. Best is meant on these validation images, whatever seed is trained with; how far
other images could differ, seeds cannot tell.

Whatever was decided depends on the results alone, so that everyone who has them, in whatever order
they came, decides the same. O. Maron and A. Moore (1994), Hoeffding races, NeurIPS 6, has the
idea; M. Birattari et al. (2002), A racing algorithm for configuring metaheuristics, GECCO, uses it
for configurations, without control over the looks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import combinations
from math import comb, isnan
from statistics import fmean

from visweep.analysis.statistics.comparison import Comparison, NoResult, Results
from visweep.analysis.statistics.paired import paired_test
from visweep.analysis.statistics.power import LEVEL
from visweep.analysis.statistics.spending import levels


class Outcome(StrEnum):
    """What a race has come to."""

    WINNER = "winner"
    """One arm is left."""
    TIE = "tie"
    """Several arms are left, and no more seeds."""
    NOBODY = "no arm left"
    """Of every arm most runs came to no result."""
    UNDECIDED = "undecided"
    """Runs are still wanted."""


@dataclass(frozen=True)
class Drop:
    """An arm that was dropped because it is shown to be worse than another one.

    Attributes:
        arm: which.
        better: the arm that it is worse than; where several are, the one with the smallest p.
        pairs: seeds that both have a result of.
        effect: mean difference of the two in points, below 0.
        p: of the two-sided paired t-test.
        threshold: that p had to be at or below at this look.
    """

    arm: str
    better: str
    pairs: int
    effect: float
    p: float
    threshold: float


@dataclass(frozen=True)
class Look:
    """The decisions after one more seed.

    Attributes:
        seeds: how many each arm had been run with.
        accuracy: mean accuracy, a fraction, of each arm that took part and has a result.
        dropped: who was shown to be worse, in the order of the arms.
        withdrawn: who was taken out because most of its runs came to no result.
        survivors: who is left.
        closest: the smallest p of any pair, divided by its threshold; None where none was tested.
    """

    seeds: int
    accuracy: Mapping[str, float]
    dropped: tuple[Drop, ...]
    withdrawn: tuple[str, ...]
    survivors: tuple[str, ...]
    closest: float | None

    @property
    def took_part(self) -> frozenset[str]:
        """Who was left before it."""
        return frozenset((*self.survivors, *self.withdrawn, *(d.arm for d in self.dropped)))


@dataclass(frozen=True)
class Race:
    """A race as far as its results go.

    Attributes:
        looks: the decisions, in their order.
        survivors: who is left, in the order of the arms.
        outcome: what it has come to.
        wanted: the runs, as arm and seed, that the next look still lacks: one seed after the
            other, so that what there is stays paired. Empty when the race is decided.
    """

    looks: tuple[Look, ...]
    survivors: tuple[str, ...]
    outcome: Outcome
    wanted: tuple[tuple[str, int], ...]

    @property
    def winner(self) -> str | None:
        return self.survivors[0] if self.outcome is Outcome.WINNER else None


@dataclass(frozen=True)
class _Test:
    """Two arms compared at a look, the worse one first."""

    worse: str
    better: str
    pairs: int
    effect: float
    p: float
    threshold: float

    @property
    def shown(self) -> bool:
        return self.p <= self.threshold


def race(results: Mapping[str, Results], seeds: Sequence[int], first: int) -> Race:
    """Decide a race as far as its results go; what they hold beyond that changes nothing.

    A run without result is left out, with its pair: at the same number of pairs a test has the
    same level, whatever is missing. So that no arm stays by having nothing to be judged by, one
    that has no result of more than half of its runs is withdrawn.

    Args:
        results: of each arm, by seed; a seed that is not there has not been run to its end yet.
        seeds: in the order in which they are run.
        first: how many seeds there are at the first look, two at least.

    Raises:
        ValueError: there are fewer than two arms, or not as many seeds as the first look has.
    """
    if len(results) < 2:
        raise ValueError("a race needs two arms at least")
    if not 2 <= first <= len(seeds):
        raise ValueError(f"the first look is at 2 to {len(seeds)} seeds, not {first}")
    thresholds = pair_levels(len(results), first, len(seeds))
    survivors, looks = tuple(results), list[Look]()
    for count in range(first, len(seeds) + 1):
        so_far = seeds[:count]
        wanted = tuple((a, seed) for seed in so_far for a in survivors if seed not in results[a])
        if wanted:
            return Race(tuple(looks), survivors, Outcome.UNDECIDED, wanted)
        own = {arm: {seed: results[arm][seed] for seed in so_far} for arm in survivors}
        looks.append(_look(own, count, thresholds))
        survivors = looks[-1].survivors
        if len(survivors) < 2:
            break
    outcomes = {0: Outcome.NOBODY, 1: Outcome.WINNER}
    return Race(tuple(looks), survivors, outcomes.get(len(survivors), Outcome.TIE), ())


def pair_levels(arms: int, first: int, last: int) -> Mapping[int, float]:
    """At or below which p a pair of so many arms is shown to differ, by its number of pairs."""
    return levels(LEVEL / comb(arms, 2), first, last)


def _look(own: Mapping[str, Results], count: int, thresholds: Mapping[int, float]) -> Look:
    known = {arm: _known(results) for arm, results in own.items()}
    withdrawn = tuple(arm for arm, values in known.items() if 2 * len(values) < count)
    left = [arm for arm in own if arm not in withdrawn]
    tests = _tests({arm: own[arm] for arm in left}, thresholds)
    means = {arm: fmean(values) for arm, values in known.items() if values}
    leader = max(left, key=lambda arm: means[arm], default=None)
    dropped = tuple(
        Drop(arm, by.better, by.pairs, by.effect, by.p, by.threshold)
        for arm in left
        # With runs missing, one arm may be worse than a second, which is worse than a third,
        # which is worse than the first: somebody has to stay.
        if arm != leader and (by := _strongest(arm, tests)) is not None
    )
    gone = {*withdrawn, *(drop.arm for drop in dropped)}
    return Look(
        seeds=count,
        accuracy=means,
        dropped=dropped,
        withdrawn=withdrawn,
        survivors=tuple(arm for arm in own if arm not in gone),
        closest=min((test.p / test.threshold for test in tests), default=None),
    )


def _known(results: Results) -> list[float]:
    return [value for value in results.values() if not isinstance(value, NoResult)]


def _tests(own: Mapping[str, Results], thresholds: Mapping[int, float]) -> list[_Test]:
    """Each two arms compared, those that have pairs enough."""
    found = []
    for one, other in combinations(own, 2):
        pairs = Comparison(other, own[one], own[other]).pairs
        if len(pairs) not in thresholds:
            continue
        test = paired_test([100 * (after - before) for before, after in pairs.values()])
        effect, p = float(test.effect), float(test.p)
        worse, better = (one, other) if effect > 0 else (other, one)
        if not isnan(p):  # it is where every pair differs by the same
            found.append(_Test(worse, better, len(pairs), -abs(effect), p, thresholds[len(pairs)]))
    return found


def _strongest(arm: str, tests: Sequence[_Test]) -> _Test | None:
    against = [test for test in tests if test.worse == arm and test.shown]
    return min(against, key=lambda test: test.p, default=None)
