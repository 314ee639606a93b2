"""Trials of one configuration: which they are, and what a replicate keeps of being one.

Two trials are of one configuration when each parameter is stored as the same value; of a stepped
range, when it is the same step, since samplers round differently. What counts has begun and has
not failed. The images are the same throughout a study.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

import sqlalchemy as sa
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.trial import FrozenTrial, TrialState

from visweep.storage.tables import FINISHED, params, slots, trials, user_attributes

REPLICATE = "replicate"
SEEDS = "replicate_seeds"
"""User attributes of a trial that trains a configuration again: its number among the replicates of
this configuration, from 1, and the seeds that it was trained with in place of the study's."""

_BEGUN = (TrialState.RUNNING, *FINISHED)


def configuration(
    parameters: Mapping[str, Any], distributions: Mapping[str, BaseDistribution]
) -> str:
    """A text that is equal for equal configurations, and no others."""
    placed = {name: _place(distributions[name], value) for name, value in parameters.items()}
    return json.dumps(placed, sort_keys=True, default=str)


def replicate_number(trial: FrozenTrial) -> int:
    """Which replicate of its configuration a trial is, from 1; 0 when it is none."""
    number = trial.user_attrs.get(REPLICATE)
    return number if isinstance(number, int) else 0


def seeds_of(trial: FrozenTrial) -> tuple[int, ...]:
    """The seeds that a replicate was trained with; none where they are those of the study."""
    seeds = trial.user_attrs.get(SEEDS)
    return tuple(seeds) if isinstance(seeds, list) else ()


def originals(found: Iterable[FrozenTrial]) -> dict[int, int]:
    """Of which trial each replicate is one: by its number, that of the first of its configuration.

    The numbers are looked up anew, since merging two copies of a study changes them. A replicate
    whose first trial is gone is left out.
    """
    begun = [t for t in found if t.state in _BEGUN]
    replicates = [t for t in begun if replicate_number(t)]
    if not replicates:
        return {}
    first: dict[str, FrozenTrial] = {}
    for trial in sorted(begun, key=lambda t: (replicate_number(t), t.number)):
        first.setdefault(_of(trial), trial)
    pairs = [(t.number, first[_of(t)].number) for t in replicates]
    return {number: original for number, original in pairs if number != original}


def find_alike(
    connection: sa.Connection,
    study_id: int,
    parameters: Mapping[str, Any],
    space: Mapping[str, BaseDistribution],
) -> frozenset[int]:
    """The trials of a study, by Optuna's ids, that are of a configuration.

    Those without a slot are left out: other tools added them, and nobody knows on which images.
    """
    which: dict[str, Any] = {"study": study_id}
    for index, (name, value) in enumerate(parameters.items()):
        low, high = _range(space[name], value)
        which |= {f"name_{index}": name, f"low_{index}": low, f"high_{index}": high}
    return frozenset(connection.execute(_alike(len(parameters)), which).scalars())


@cache
def _alike(parameters: int) -> sa.Select[int]:
    """Trials that have so many parameters in so many ranges, one after the other: with six of
    them and 1,000 trials that takes SQLite a quarter of the time that all at once does."""
    same = (
        sa.exists().where(
            params.c.trial_id == trials.c.trial_id,
            params.c.param_name == sa.bindparam(f"name_{index}"),
            params.c.param_value.between(
                sa.bindparam(f"low_{index}"), sa.bindparam(f"high_{index}")
            ),
        )
        for index in range(parameters)
    )
    of_study = sa.and_(
        slots.c.trial_id == trials.c.trial_id, slots.c.study_id == sa.bindparam("study")
    )
    return (
        sa.select(trials.c.trial_id)
        .join(slots, of_study)
        .where(trials.c.study_id == sa.bindparam("study"), trials.c.state.in_(_BEGUN), *same)
    )


_UNMARK = sa.delete(user_attributes).where(
    user_attributes.c.trial_id == sa.bindparam("this_trial"),
    user_attributes.c.key.in_([REPLICATE, SEEDS]),
)
_MARK = sa.insert(user_attributes)


def mark(connection: sa.Connection, trial_id: int, attributes: Mapping[str, Any]) -> None:
    """Let a trial that begins say whether it is a replicate, whatever it was enqueued with."""
    connection.execute(_UNMARK, {"this_trial": trial_id})
    rows = [
        {"trial_id": trial_id, "key": key, "value_json": json.dumps(value)}
        for key, value in attributes.items()
    ]
    if rows:
        connection.execute(_MARK, rows)


def _of(trial: FrozenTrial) -> str:
    return configuration(trial.params, trial.distributions)


def _place(distribution: BaseDistribution, value: Any) -> Any:
    if isinstance(distribution, FloatDistribution) and distribution.step is not None:
        return round((value - distribution.low) / distribution.step)
    return value


def _range(distribution: BaseDistribution, value: Any) -> tuple[float, float]:
    stored = distribution.to_internal_repr(value)
    if isinstance(distribution, FloatDistribution) and distribution.step is not None:
        return stored - distribution.step / 4, stored + distribution.step / 4
    return stored, stored
