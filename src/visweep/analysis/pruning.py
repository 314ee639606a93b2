"""Whether pruning dropped a run that would have won, estimated from a few that are run to the end.

Two samples answer it together. Those that lay nearest to the best when they were stopped are the
likeliest to have won: all of these are looked at, and nothing is inferred from them. Of the others
a few are drawn at random, and stand for all of them, within an exact interval.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import comb
from random import Random
from statistics import fmean
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from visweep.analysis.measure import Measure
from visweep.analysis.overview import curve, ranked, value_of, was_pruned
from visweep.analysis.runs import by_seed
from visweep.analysis.statistics.paired import CONFIDENCE
from visweep.storage.replicates import seeds_of

SAMPLE = "visweep:sample"
"""User attribute of a study that trains pruned trials of another one to their end: which they are,
see `Sample`."""
_ENDED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
POOL = "visweep:pool"
"""Another of its user attributes: what the sample was taken from, see `Pool`."""


@dataclass(frozen=True)
class Sample:
    """Some of the pruned trials of a study, by number.

    Attributes:
        nearest: those that lay nearest to the best trial when they were stopped.
        random: drawn from the others, each as likely.
        others: how many others there were.
    """

    nearest: tuple[int, ...]
    random: tuple[int, ...]
    others: int

    @property
    def numbers(self) -> tuple[int, ...]:
        return (*self.nearest, *self.random)

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "nearest": list(self.nearest),
            "random": list(self.random),
            "others": self.others,
        }

    @classmethod
    def from_json(cls, values: object) -> Sample | None:
        """The sample that `to_json` wrote; None where it is something else."""
        if not isinstance(values, Mapping):
            return None
        parts = [values.get("nearest"), values.get("random")]
        others = values.get("others")
        lists = [part for part in parts if isinstance(part, list)]
        whole = all(isinstance(number, int) for part in lists for number in part)
        if len(lists) < 2 or not whole or not isinstance(others, int):
            return None
        return cls(tuple(lists[0]), tuple(lists[1]), max(others, len(lists[1])))


@dataclass(frozen=True)
class Pool:
    """The pruned trials of a study that samples are taken from, by number, in two orders.

    Attributes:
        nearest: the one first that lay nearest to the best trial when it was stopped.
        drawn: at random.
    """

    nearest: tuple[int, ...]
    drawn: tuple[int, ...]

    def sample(self, size: int) -> Sample:
        """Half of them the nearest, the others at random; all where there are fewer.

        A larger sample holds a smaller one. Those that it takes from the others into the nearest
        are chosen without a look at the order at random, so that what is left of it is still one.
        """
        nearest = self.nearest[: size // 2]
        others = [number for number in self.drawn if number not in nearest]
        return Sample(nearest, tuple(others[: size - size // 2]), len(others))

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {"nearest": list(self.nearest), "drawn": list(self.drawn)}

    @classmethod
    def from_json(cls, values: object) -> Pool | None:
        """The pool that `to_json` wrote; None where it is something else."""
        if not isinstance(values, Mapping):
            return None
        nearest, drawn = (values.get(name) for name in ("nearest", "drawn"))
        if not isinstance(nearest, list) or not isinstance(drawn, list):
            return None
        if not all(isinstance(number, int) for number in [*nearest, *drawn]):
            return None
        return cls(tuple(nearest), tuple(drawn)) if {*nearest} == {*drawn} else None


@dataclass(frozen=True)
class Rerun:
    """A pruned trial that was trained to its end, with the seeds that it began with.

    Attributes:
        trial: as it was pruned.
        value: what it came to, the mean over its seeds; None where that is not known.
        failed: why not, or empty while it is still to come.
        won: whether it is better than the best of its study.
        rank: the place that it would have had among the completed trials.
    """

    trial: FrozenTrial
    value: float | None
    failed: str = ""
    won: bool = False
    rank: int | None = None

    @property
    def known(self) -> bool:
        """Whether it is known if it would have won; a run that diverges would not."""
        return self.value is not None or self.failed.startswith("diverged")


@dataclass(frozen=True)
class Judged:
    """What the reruns come to.

    Attributes:
        nearest, random: the reruns of both samples.
        others: of how many the random ones stand for all.
    """

    nearest: tuple[Rerun, ...]
    random: tuple[Rerun, ...]
    others: int

    @property
    def reruns(self) -> tuple[Rerun, ...]:
        return (*self.nearest, *self.random)

    @property
    def known(self) -> list[Rerun]:
        return [rerun for rerun in self.reruns if rerun.known]

    @property
    def won(self) -> int:
        """How many would have won, of those that are known."""
        return sum(rerun.won for rerun in self.known)

    @property
    def interval(self) -> tuple[int, int] | None:
        """How many of all pruned trials would have won, with 95 % confidence.

        None where no random rerun is known yet, while there are others to speak of.
        """
        drawn = [rerun for rerun in self.random if rerun.known]
        sure = sum(rerun.won for rerun in self.nearest if rerun.known)
        unknown = sum(not rerun.known for rerun in self.nearest)
        if not drawn and self.others:
            return None
        low, high = number_within(sum(r.won for r in drawn), len(drawn), self.others)
        return sure + low, sure + unknown + high


def eligible(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """The pruned trials that could be run to their end, with the study's own seeds."""
    return [
        trial for trial in trials if was_pruned(trial) and curve(trial) and not seeds_of(trial)
    ]


def pool(trials: Sequence[FrozenTrial], measure: Measure, seed: int) -> Pool:
    """What pruned trials to run to their end are taken from.

    How near a trial was is the difference of its last value from what the best trial had after
    the same epoch; where that is not known, from the best trial's final value.

    Args:
        trials: of a study, with one at least that completed.
        measure: what it optimises.
        seed: of the drawing.
    """
    best = ranked(trials, measure)[0]
    reached = dict(curve(best))

    def gap(trial: FrozenTrial) -> tuple[float, int]:
        epoch, value = curve(trial)[-1]
        there = reached.get(epoch, value_of(best))
        return measure.key(there) - measure.key(value), trial.number

    nearest = [trial.number for trial in sorted(eligible(trials), key=gap)]
    drawn = sorted(nearest)
    Random(seed).shuffle(drawn)
    return Pool(tuple(nearest), tuple(drawn))


def arm_of(number: int) -> str:
    """What the arm is called that runs a pruned trial to its end."""
    return f"trial {number}"


def number_of(arm: str) -> int:
    """The pruned trial that an arm called so runs to its end."""
    return int(arm.removeprefix("trial "))


def judge_reruns(
    trials: Sequence[FrozenTrial],
    measure: Measure,
    sample: Sample,
    seeds: Sequence[int],
    reruns: Sequence[FrozenTrial],
) -> Judged:
    """What the sample's trials would have come to.

    Args:
        trials: of the study, one at least completed.
        measure: what it optimises.
        sample: what was run again.
        seeds: that the study trains its trials with.
        reruns: trials of the study of arms.
    """
    by_number = {trial.number: trial for trial in trials}
    ends = [measure.key(value_of(trial)) for trial in ranked(trials, measure)]

    def rerun(number: int) -> Rerun:
        trial = by_number[number]
        value, failed = _outcome(by_seed(reruns, arm_of(number), _ENDED), seeds)
        if value is None:
            return Rerun(trial, None, failed)
        better = sum(end >= measure.key(value) for end in ends)
        return Rerun(trial, value, "", won=better == 0, rank=better + 1)

    def known(numbers: Sequence[int]) -> tuple[Rerun, ...]:
        return tuple(rerun(number) for number in numbers if number in by_number)

    return Judged(known(sample.nearest), known(sample.random), sample.others)


def number_within(found: int, drawn: int, total: int) -> tuple[int, int]:
    """How many of `total` have a property that `found` of `drawn` at random have.

    The exact 95 % interval of C. Clopper and E. Pearson (1934), Biometrika 26, 404-413, for
    drawing without replacement: the numbers under which neither so many nor so few would be drawn
    with a probability of 2.5 % or less. It covers in 95 % of samples at least, and is one number
    where all were drawn.
    """
    tail = (1 - CONFIDENCE) / 2
    possible = range(found, total - drawn + found + 1)
    likely = [
        number
        for number in possible
        if _at_least(found, drawn, number, total) > tail
        and _at_least(drawn - found, drawn, total - number, total) > tail
    ]
    return likely[0], likely[-1]


def _at_least(found: int, drawn: int, number: int, total: int) -> float:
    """The chance that `found` or more of `drawn` are among the `number` that have the property."""
    ways = sum(comb(number, k) * comb(total - number, drawn - k) for k in range(found, drawn + 1))
    return ways / comb(total, drawn)


def _outcome(runs: Mapping[int, FrozenTrial], seeds: Sequence[int]) -> tuple[float | None, str]:
    """The mean over the seeds; or None, and why there is none if that is known."""
    own = [runs[seed] for seed in seeds if seed in runs]
    completed = [run for run in own if run.state == TrialState.COMPLETE]
    if len(completed) == len(seeds):
        return fmean(map(value_of, completed)), ""
    others = [run for run in own if run.state != TrialState.COMPLETE]
    failed = [str(run.user_attrs.get("ended") or run.state.name.lower()) for run in others]
    return None, failed[-1] if failed else ""
