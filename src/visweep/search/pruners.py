"""The pruners: which trials are stopped early, by their validation accuracy so far."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import optuna
from optuna.pruners import (
    BasePruner,
    HyperbandPruner,
    MedianPruner,
    NopPruner,
    SuccessiveHalvingPruner,
)
from optuna.trial import FrozenTrial

from visweep.errors import unknown_name
from visweep.storage.tables import RUNG


class SeededHyperband(HyperbandPruner):
    """Hyperband whose brackets follow from the study's seed instead of the study's name.

    Optuna assigns a trial to a bracket by a hash of the study's name and the trial's number, so a
    renamed or copied study would prune differently.
    """

    def __init__(self, seed: int, max_resource: int) -> None:
        super().__init__(min_resource=1, max_resource=max_resource, reduction_factor=3)
        self._identifier = f"visweep-{seed}"

    def _get_bracket_id(self, study: optuna.Study, trial: FrozenTrial) -> int:
        return super()._get_bracket_id(_Named(self._identifier), trial)  # type: ignore[arg-type]


class _Named:
    """All that Optuna's bracket assignment reads of a study."""

    def __init__(self, study_name: str) -> None:
        self.study_name = study_name


def rungs_from(
    pruner: BasePruner, study: optuna.Study, trial: FrozenTrial, step: int
) -> list[str]:
    """Keys of the decisions of successive halving on a trial that were made at `step` or later.

    The decision is stored before the trial is ended by it. If the worker dies in between, whoever
    goes on must forget it, or it would not be made again.
    """
    if isinstance(pruner, HyperbandPruner):
        if not pruner._pruners:
            pruner._try_initialization(study)
        brackets = pruner._pruners
        pruner = brackets[pruner._get_bracket_id(study, trial)] if brackets else pruner
    if not isinstance(pruner, SuccessiveHalvingPruner) or pruner._min_resource is None:
        return []
    keys = []
    for key in trial.system_attrs:
        _, found, rung = key.rpartition(RUNG)
        if found and rung.isdecimal():
            exponent = pruner._min_early_stopping_rate + int(rung)
            if pruner._min_resource * pruner._reduction_factor**exponent >= step:
                keys.append(key)
    return keys


def _halving(_: int, epochs: int) -> BasePruner:
    """After a quarter of the epochs the best eighth goes on; the best so far always does.

    Chosen in benchmarks/RESULTS.md. One epoch says little: models that end best are still warming
    up. Jamieson and Talwalkar 2016, https://arxiv.org/abs/1502.07943; asynchronous as in Li et
    al. 2020, https://arxiv.org/abs/1810.05934.
    """
    return SuccessiveHalvingPruner(min_resource=max(1, epochs // 4), reduction_factor=8)


def _hyperband(seed: int, epochs: int) -> BasePruner:
    return SeededHyperband(seed, max_resource=epochs)


def _median(_: int, epochs: int) -> BasePruner:
    return MedianPruner(n_startup_trials=5, n_warmup_steps=min(1, epochs - 1))


def _none(_: int, __: int) -> BasePruner:
    return NopPruner()


PRUNERS: Mapping[str, Callable[[int, int], BasePruner]] = {
    "halving": _halving,
    "hyperband": _hyperband,
    "median": _median,
    "none": _none,
}


def make_pruner(name: str, study_seed: int, epochs: int) -> BasePruner:
    """The pruner of a study whose trials train for `epochs`.

    Raises:
        UsageError: there is no pruner of that name.
    """
    if name not in PRUNERS:
        raise unknown_name("--pruner", name, PRUNERS)
    return PRUNERS[name](study_seed, epochs)
