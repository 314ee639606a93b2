"""What becomes of a proposal that the study has tried already: `--duplicates`.

A proposal is a duplicate when another trial of its configuration is finished or still runs (see
`visweep.storage.replicates`). A failed trial leaves nothing behind that could be duplicated.

- `replicate`: it is trained with seeds of its own, which follow from the study's seed, the
  configuration and how many replicates of it there are. The trial keeps the seeds and says that
  it is a replicate; the sampler sees one more observation.
- `run`: it is trained with the seeds of the study, like every other trial. With one worker on the
  CPU that gives the same result again.
- `skip`: it is not trained. The sampler is asked again with other random numbers, and when that
  leads nowhere a point is taken that nobody has tried, from a random place on. Once every point of
  a finite space has been tried, proposals are replicated instead, so that the budget holds. Under
  limits, the points of a space of more than `grid.MOST_STEPS` are not all looked at: where there
  is none among so many, drawn at random, nor at the space's corners, a proposal is replicated
  although some far-off point may be left, and the user is told.

A point that a user has enqueued is run as asked: where it is a duplicate, it is a replicate also
under `skip`. What was decided is stored in the transaction that begins the trial, so that whoever
adopts it trains it with the same seeds.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain, count
from types import MappingProxyType
from typing import Any

from optuna.distributions import CategoricalDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.trial import FrozenTrial, TrialState

from visweep.config import ModelConfig, TrainConfig
from visweep.errors import UsageError
from visweep.search import grid
from visweep.search.bounds import Bounds
from visweep.search.samplers import make_sampler, propose
from visweep.search.seeds import new_seeds, seed_for
from visweep.search.spaces import corners, has_few_corners, lies_in
from visweep.search.study import OpenStudy
from visweep.storage.budget import fixed_parameters
from visweep.storage.lease import Lease
from visweep.storage.replicates import (
    REPLICATE,
    SEEDS,
    configuration,
    replicate_number,
    seeds_of,
)
from visweep.storage.specification import ARM, Space, Specification

DUPLICATES = ("replicate", "run", "skip")
ATTEMPTS = 5
"""So often the sampler is asked again before a point is taken without it."""
PROPOSALS = 10
"""So many proposals of it may break the study's limits before one is taken without it."""
_DRAWS = 300


@dataclass(frozen=True)
class Proposal:
    """What a trial is to be trained with.

    Attributes:
        parameters: a point of the space.
        alike: the trials of this configuration, by Optuna's ids; None where they do not matter.
        attributes: what the trial says of being a replicate; empty when it is none.
        note: something that the user should know; empty when there is nothing.
    """

    parameters: Mapping[str, Any]
    alike: frozenset[int] | None = None
    attributes: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""


def propose_next(
    opened: OpenStudy,
    lease: Lease,
    trial: FrozenTrial,
    keep_to: Mapping[str, Any] = MappingProxyType({}),
) -> Proposal:
    """What to train a leased trial with, given all that has begun so far.

    It depends on the study's seed, the trial's number, the history and `keep_to` alone, and keeps
    the limits of the study.

    Args:
        opened: the study.
        lease: of the trial.
        trial: as it was read under the lease; it has not begun.
        keep_to: parameters that it is to have, unless it was enqueued with others or all such
            points have been tried.

    Raises:
        UsageError: the trial was enqueued with parameters that break the limits.
    """
    if keep_to:
        with suppress(_NothingLeft):
            return _Proposer(opened, lease, keep_to, trial).proposal()
    return _Proposer(opened, lease, {}, trial).proposal()


def trained_as(
    specification: Specification, trial: FrozenTrial
) -> tuple[ModelConfig, TrainConfig]:
    """The configurations of a trial that has begun, with the seeds that are its own."""
    model, train = specification.configurations(trial.params)
    seeds = seeds_of(trial)
    return model, train.replace(seeds=seeds) if seeds else train


class _NothingLeft(Exception):
    """No point with the parameters that were to be kept to is left."""


class _Proposer:
    def __init__(
        self, opened: OpenStudy, lease: Lease, keep_to: Mapping[str, Any], trial: FrozenTrial
    ) -> None:
        self.opened = opened
        self.lease = lease
        self.spec = opened.specification
        self.branch = opened.branch()
        self.trial = trial
        self.keep_to = keep_to
        self.fixed = {**keep_to, **fixed_parameters(self.trial)}
        self.bounds = Bounds(self.spec)

    def proposal(self) -> Proposal:
        if self.spec.arms:
            return self._next_of_arms()
        parameters = self._ask(0)
        if self.spec.duplicates == "run":
            return Proposal(parameters)
        alike = self._alike(parameters)
        note = ""
        if alike and self.spec.duplicates == "skip":
            other = self._another()
            if other is None and self.keep_to:
                raise _NothingLeft
            if other is None:
                note = self._note_of_exhaustion()
            else:
                parameters, alike = other, self._alike(other)
        return Proposal(parameters, alike, self._as_replicate(parameters, alike), note)

    def _next_of_arms(self) -> Proposal:
        """All arms with one seed before any with another; a point is a replicate only where it
        was enqueued, or where none is left."""
        while True:
            asked = self._is_enqueued(self.trial)
            untried = None if asked else self._untried(0)
            parameters = self.fixed if asked else untried or self.spec.baseline()
            alike = self._alike(parameters)
            if untried is not None and self._has_run(alike):
                continue  # another worker has begun it since it was looked for
            return Proposal(
                {name: parameters[name] for name in self.spec.space},
                alike,
                self._as_replicate(parameters, alike),
            )

    def _has_run(self, alike: frozenset[int]) -> bool:
        """Whether one of these trials is no replicate."""
        return any(not seeds_of(self.opened.storage.get_trial(trial)) for trial in alike)

    def _ask(self, attempt: int) -> dict[str, Any]:
        """A point that keeps the limits, by the sampler if that finds one."""
        for refused in range(PROPOSALS):
            parameters = self._asked(attempt + refused * (ATTEMPTS + 1))
            if self.bounds.allow(parameters):
                return parameters
            if self._is_enqueued(self.trial):
                raise UsageError(f"the enqueued point breaks {self.bounds.excess(parameters)}")
        purpose = f"allowed {attempt} {self.branch}"
        return self._drawn(seed_for(self.spec.seed, purpose, self.lease.number))

    def _drawn(self, seed: int) -> dict[str, Any]:
        """Any point that keeps the limits, within what is fixed: each is as likely, as long as
        there are not too few."""
        for parameters in self._allowed(seed):
            return parameters
        if self.keep_to:
            raise _NothingLeft
        none = "none" if has_few_corners(self._free()) else "none that was found"
        raise UsageError(
            f"what is enqueued of the point leaves {none} within "
            f"{self.bounds.excess(self._smallest())}"
        )

    def _allowed(self, seed: int) -> Iterator[dict[str, Any]]:
        """Points that keep the limits, within what is fixed: first some that are drawn, then
        corners, and what the baseline leads to."""
        sampler = RandomSampler(seed)
        drawn = (self._proposed(sampler) for _ in range(_DRAWS))
        for point in chain(drawn, corners(self._free()), self._last_resort()):
            parameters = {name: {**point, **self.fixed}[name] for name in self.spec.space}
            if self.bounds.allow(parameters):
                yield parameters

    def _last_resort(self) -> Iterator[dict[str, Any]]:
        yield self._smallest()

    def _smallest(self) -> dict[str, Any]:
        """As near to the limits as the baseline can be brought, within what is fixed."""
        return self.bounds.nearest({**self.spec.baseline(), **self.fixed}, self._free())

    def _asked(self, attempt: int) -> dict[str, Any]:
        study, spec = self.opened.study, self.spec
        study.sampler = make_sampler(
            spec.sampler, spec.seed, self.lease.number, self.branch, attempt
        )
        return self._proposed(study.sampler)

    def _proposed(self, sampler: BaseSampler) -> dict[str, Any]:
        return propose(
            self.opened.study, sampler, self.trial, self.spec.space, keep_to=self.keep_to
        )

    def _alike(self, parameters: Mapping[str, Any]) -> frozenset[int]:
        return self.opened.slots.alike(self.lease, parameters, self.spec.space)

    def _another(self) -> dict[str, Any] | None:
        """A configuration that no trial has; None when none is found within what is fixed."""
        seed = seed_for(self.spec.seed, f"untried {self.branch}", self.lease.number)
        all_are_seen = self._can_be_exhausted()
        untried = self._untried(seed) if all_are_seen else None
        if all_are_seen and untried is None:
            return None
        for attempt in range(1, ATTEMPTS + 1):
            parameters = self._ask(attempt)
            if not self._alike(parameters):
                return parameters
        if untried is None and grid.size(self._free()) is not None:
            untried = self._untried(seed)
        return untried or self._new_one_of(self._allowed(seed))

    def _can_be_exhausted(self) -> bool:
        """Whether all points within what is fixed are looked at, if need be."""
        points = grid.size(self._free())
        return points is not None and (not self.bounds or points <= grid.MOST_STEPS)

    def _new_one_of(self, points: Iterable[dict[str, Any]]) -> dict[str, Any] | None:
        space = self.spec.space
        tried = {configuration(trial.params, space) for trial in self._begun()}
        return next((point for point in points if configuration(point, space) not in tried), None)

    def _free(self) -> Space:
        """The part of the space in which the sampler may choose."""
        return {name: d for name, d in self._space().items() if name not in self.fixed}

    def _space(self) -> Space:
        """That of the study, without arms that do not take part."""
        if not self.spec.arms:
            return self.spec.space
        arms = self.spec.taking_part(self.opened.study.user_attrs)
        return {**self.spec.space, ARM: CategoricalDistribution(list(arms))}

    def _untried(self, start: int) -> dict[str, Any] | None:
        space, free = self.spec.space, self._free()
        points = [trial.params for trial in self._begun()]
        if self.spec.arms:
            points += self._enqueued()
        tried = {
            configuration({name: point[name] for name in free}, space)
            for point in points
            if self._keeps_to_what_is_fixed(point)
        }
        allowed = self._allows if self.bounds else None
        found = grid.untried(free, tried, start, allowed)
        if found is None:
            return None
        return {name: found.get(name, self.fixed.get(name)) for name in space}

    def _allows(self, free: Mapping[str, Any]) -> bool:
        return self.bounds.allow({**free, **self.fixed})

    def _keeps_to_what_is_fixed(self, point: Mapping[str, Any]) -> bool:
        there = {name: point[name] for name in self.fixed}
        return configuration(there, self.spec.space) == configuration(self.fixed, self.spec.space)

    def _begun(self) -> Iterable[FrozenTrial]:
        names = set(self.spec.space)
        for trial in self.opened.trials():
            if trial.state == TrialState.FAIL or set(trial.params) != names:
                continue
            # An arm is to have each seed itself, whatever seeds its replicates had.
            if not (self.spec.arms and seeds_of(trial)):
                yield trial

    def _enqueued(self) -> list[dict[str, Any]]:
        """The points of other trials that somebody has chosen, and that are yet to begin: those
        of a space, as nobody has checked them so far."""
        points = (
            fixed_parameters(trial)
            for trial in self.opened.trials()
            if trial.number != self.lease.number and not trial.state.is_finished()
        )
        return [point for point in points if lies_in(point, self.spec.space)]

    def _is_enqueued(self, trial: FrozenTrial) -> bool:
        """Somebody has chosen every parameter of it."""
        return set(self.spec.space) <= set(fixed_parameters(trial))

    def _note_of_exhaustion(self) -> str:
        """For the first trial only of those that are replicates for want of anything new."""
        said = any(replicate_number(t) and not self._is_enqueued(t) for t in self._begun())
        if said or self.fixed:
            return ""
        if not self._can_be_exhausted():
            return (
                "no untried point of the space was found within its limits, though not all were "
                f"looked at: trial {self.lease.number}, and maybe later ones, replicate earlier "
                "trials, with new seeds"
            )
        which = "points of the space within its limits"
        if not self.bounds:
            which = f"{grid.size(self.spec.space)} points of the space"
        return (
            f"all {which} have been tried: trial "
            f"{self.lease.number} and later ones replicate earlier trials, with new seeds"
        )

    def _as_replicate(
        self, parameters: Mapping[str, Any], alike: frozenset[int]
    ) -> dict[str, Any]:
        """Nothing, where the seeds of the study are not taken yet for this configuration."""
        others = [self.opened.storage.get_trial(trial_id) for trial_id in alike]
        taken = {replicate_number(trial) for trial in others}
        number = next(n for n in count() if n not in taken)
        if number == 0:
            return {}
        # Two copies of a study that went on apart would else train the same replicate.
        purpose = f"replicate {number} of {configuration(parameters, self.spec.space)}"
        purpose += f" in {self.branch}" if self.branch else ""
        seeds = new_seeds(self.spec.seed, purpose, self.spec.train.seeds)
        return {REPLICATE: number, SEEDS: list(seeds)}
