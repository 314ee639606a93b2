"""The limits of a search, checked before anything is written."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import optuna

from visweep.data.dataset import Dataset
from visweep.errors import UsageError
from visweep.search.bounds import Bounds, judge_of
from visweep.search.probing import calibration
from visweep.search.threads import usual_threads
from visweep.storage.failures import storage_errors
from visweep.storage.opening import open_to_read
from visweep.storage.specification import SPECIFICATION, Specification
from visweep.training.estimate import Images


def with_limits(
    specification: Specification,
    dataset: Dataset,
    *,
    storage: str,
    study: str,
    device: str,
    workers: int | None,
    tell: Callable[[str], object] = lambda message: None,
) -> Specification:
    """The specification, its limits checked; if seconds are limited, with who judges them: what
    the study says, or else this machine, which tries some models; `tell` is told of that.

    Raises:
        UsageError: a limit excludes the first trial.
        OutOfMemory: not even the smallest model fits in memory.
    """
    limits = specification.limits
    counted = replace(limits, max_epoch_seconds=None)
    Bounds(replace(specification, limits=counted)).require_baseline()
    if limits.max_epoch_seconds is None:
        return specification
    judge = _stored_judge(storage, study)
    if judge is None:
        found = calibration(specification, device, usual_threads(workers, device), tell)
        judge = judge_of(found, Images(len(dataset.train), len(dataset.val)))
    judged = replace(specification, limits=limits.with_judge(judge))
    Bounds(judged).require_baseline()
    return judged


def _stored_judge(url: str, name: str) -> Mapping[str, Any] | None:
    """Who judges the limits of a study; None where there is no such study, or it has none."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        storage = open_to_read(url)
    except UsageError:
        return None  # it is opened again, to be created or refused
    try:
        with storage_errors(storage):
            if name not in optuna.get_all_study_names(storage):
                return None
            study = optuna.load_study(study_name=name, storage=storage)
            judge: Mapping[str, Any] | None = study.user_attrs.get(SPECIFICATION, {}).get("judge")
            return judge
    finally:
        storage.close()
