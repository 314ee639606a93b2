"""The samplers, made afresh for each trial, so that a study can be replayed.

A proposal depends on the study's seed, the trial's number and the history alone: it does not
matter which process makes it, nor what that process did before.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Container, Mapping
from functools import cached_property
from itertools import groupby
from operator import attrgetter
from types import MappingProxyType
from typing import Any

import optuna
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from visweep.errors import UsageError, unknown_name
from visweep.search.seeds import seed_for
from visweep.storage.budget import fixed_parameters
from visweep.storage.specification import Space
from visweep.storage.url import parse, sqlite_path
from visweep.training.results import OUT_OF_MEMORY

_RELATIVE_PARAMS = ("tpe:relative_params", "gp:relative_params")
"""Begin the keys of those attributes."""
STARTUP_TRIALS = 10
"""Random trials before a model-based sampler proposes."""


def _tpe(seed: int, *_: int) -> BaseSampler:
    return optuna.samplers.TPESampler(
        seed=seed,
        n_startup_trials=STARTUP_TRIALS,
        constant_liar=True,  # what other workers are training counts as bad until it has ended
    )


def _random(seed: int, *_: int) -> BaseSampler:
    return optuna.samplers.RandomSampler(seed=seed)


def _gp(seed: int, *_: int) -> BaseSampler:
    return optuna.samplers.GPSampler(seed=seed, n_startup_trials=STARTUP_TRIALS)


def _cmaes(seed: int, *_: int) -> BaseSampler:
    return optuna.samplers.CmaEsSampler(
        seed=seed,
        n_startup_trials=STARTUP_TRIALS,
        warn_independent_sampling=False,
        independent_sampler=optuna.samplers.RandomSampler(seed=seed),
    )


class _NumberedQmc(optuna.samplers.QMCSampler):
    """Takes the point of its sequence that has the trial's number.

    Optuna counts in the study how many points were asked for, so that asking twice for a trial,
    as happens when a worker is killed in between, would shift all that follow.
    """

    def __init__(self, number: int, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._number = number

    def _find_sample_id(self, study: optuna.Study, search_space: Any) -> int:
        return self._number


def _qmc(seed: int, study_seed: int, number: int) -> BaseSampler:
    # One scrambled sequence serves the whole study, so its seed must not change with the trial.
    return _NumberedQmc(
        number,
        seed=study_seed,
        scramble=True,
        warn_independent_sampling=False,
        independent_sampler=optuna.samplers.RandomSampler(seed=seed),
    )


SAMPLERS: Mapping[str, Callable[[int, int, int], BaseSampler]] = {
    "tpe": _tpe,
    "random": _random,
    "gp": _gp,
    "cmaes": _cmaes,
    "qmc": _qmc,
}


def make_sampler(
    name: str, study_seed: int, number: int, branch: str = "", attempt: int = 0
) -> BaseSampler:
    """The sampler that proposes trial `number`.

    Args:
        branch: of a copy of the study that went its own way, so that it proposes points of its
            own; empty for the study itself.
        attempt: how many proposals for this trial were not wanted; each attempt draws others,
            but of `qmc`, whose points belong to the trials' numbers.

    Raises:
        UsageError: there is no sampler of that name.
    """
    if name not in SAMPLERS:
        raise unknown_name("--sampler", name, SAMPLERS)
    if branch:
        study_seed = seed_for(study_seed, f"branch {branch}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        purpose = f"sampler, attempt {attempt}" if attempt else "sampler"
        return SAMPLERS[name](seed_for(study_seed, purpose, number), study_seed, number)


def require_safe(sampler: str, url: str) -> None:
    """See that a sampler may work on a storage.

    Raises:
        UsageError: it runs code that it reads there, and others may write there.
    """
    if sampler == "cmaes" and sqlite_path(parse(url)) is None:
        raise UsageError(
            "--sampler: cmaes runs code that it reads from the storage, so a server is refused; "
            "accepted for it: --storage sqlite:///FILE"
        )


def propose(
    study: optuna.Study,
    sampler: BaseSampler,
    trial: FrozenTrial,
    space: Space,
    keep_to: Mapping[str, Any] = MappingProxyType({}),
) -> dict[str, Any]:
    """Parameters for a trial that has not begun: what it was enqueued with, what it is to keep to,
    else the sampler's.

    The sampler sees all trials of the study. (Optuna's own `ask` shows it those of one Hyperband
    bracket only, which leaves a model-based sampler with a third of a short study.)
    """
    fixed = {**keep_to, **fixed_parameters(trial)}
    if set(space) <= set(fixed):
        return {name: fixed[name] for name in space}
    history = _History(study, sampler)
    seen = _Seen(study, lambda: history.trials)
    sampler.before_trial(seen, trial)
    fewer = _Seen(study, history.one_of_each_space)
    relative_space = sampler.infer_relative_search_space(fewer, trial)
    relative = sampler.sample_relative(seen, trial, relative_space)
    proposed: dict[str, Any] = {}
    for name, distribution in space.items():
        if name in fixed:
            value = fixed[name]
        elif distribution.single():
            value = distribution.to_external_repr(_only_value(distribution))
        elif name in relative:
            value = relative[name]
        else:
            value = sampler.sample_independent(seen, trial, name, distribution)
        # Through the stored form and back: whoever adopts the trial reads the same value.
        proposed[name] = distribution.to_external_repr(distribution.to_internal_repr(value))
    return proposed


class _History:
    """A study's history as a sampler is to see it, at the moment when it first asks: what did not
    fit in memory is the worst there is.

    Optuna's TPE ranks pruned trials by the steps that they made, those without any last, and
    after all completed ones. Other samplers know completed trials only, and would propose again
    and again what they have not heard of.
    """

    def __init__(self, study: optuna.Study, sampler: BaseSampler) -> None:
        self._study = study
        self._knows_pruned = isinstance(sampler, optuna.samplers.TPESampler)

    @cached_property
    def trials(self) -> list[FrozenTrial]:
        return [self._shown(trial) for trial in self._stored]

    def one_of_each_space(self) -> list[FrozenTrial]:
        """Of the trials in each state, the first and each whose space is not that of the one
        before it. They have in common what all have, which a new sampler finds by comparing every
        distribution of every trial; here that ends at their being the same object, as a rule."""
        by_state = sorted(self.trials, key=attrgetter("state"))
        alike = groupby(by_state, key=attrgetter("state", "distributions"))
        return [next(trials) for _, trials in alike]

    def _shown(self, trial: FrozenTrial) -> FrozenTrial:
        if trial.user_attrs.get("ended") != OUT_OF_MEMORY:
            return trial
        shown = copy.copy(trial)
        if self._knows_pruned:
            shown.intermediate_values = {}
        elif self._worst is not None:
            shown.state, shown.value = TrialState.COMPLETE, self._worst
        return shown

    @cached_property
    def _stored(self) -> list[FrozenTrial]:
        return self._study.get_trials(deepcopy=False)

    @cached_property
    def _worst(self) -> float | None:
        values = [t.value for t in self._stored if t.state == TrialState.COMPLETE]
        return min((value for value in values if value is not None), default=None)


class _Seen(optuna.Study):
    """A study of which a sampler sees some trials only.

    A sampler asks for them several times, or never; and each takes as long as all that is stored
    is large.
    """

    def __init__(self, study: optuna.Study, trials: Callable[[], list[FrozenTrial]]) -> None:
        vars(self).update(vars(study))
        self._storage: Any = _Unshared(study._storage)
        self._shown = trials

    def _get_trials(
        self,
        deepcopy: bool = True,
        states: Container[TrialState] | None = None,
        use_cache: bool = False,
    ) -> list[FrozenTrial]:
        found = [t for t in self._shown() if states is None or t.state in states]
        return copy.deepcopy(found) if deepcopy else found

    get_trials = _get_trials


class _Unshared:
    """A storage that is not told what Optuna's TPE and GP are about to propose. It would tell it
    to others that propose meanwhile, which do not ask of a trial that has yet to begin."""

    def __init__(self, storage: BaseStorage) -> None:
        self._storage = storage

    def __getattr__(self, name: str) -> Any:
        return getattr(self._storage, name)

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        if not key.startswith(_RELATIVE_PARAMS):
            self._storage.set_trial_system_attr(trial_id, key, value)


def _only_value(distribution: optuna.distributions.BaseDistribution) -> float:
    if isinstance(distribution, optuna.distributions.CategoricalDistribution):
        return 0.0
    low: float = distribution.low  # type: ignore[attr-defined]
    return low
