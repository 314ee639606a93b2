"""A study's trials as Optuna shows them, read with one query per table.

Optuna makes an object of every row, which takes seconds for some thousand trials; and whenever the
history is looked at, it reads anew what has not finished, which includes every slot that waits.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

import sqlalchemy as sa
from optuna.distributions import BaseDistribution, json_to_distribution
from optuna.storages._rdb.models import TrialIntermediateValueModel, TrialValueModel
from optuna.trial import FrozenTrial, TrialState

from visweep.storage.tables import (
    params,
    reports,
    studies,
    system_attributes,
    trials,
    user_attributes,
    values,
)

_MOST_IDS = 10_000
"""A query takes a list of so many ids (SQLite 32,766); for more the whole study is read."""


@dataclass(frozen=True)
class Wanted:
    """Which trials of a study are read.

    Attributes:
        study_id: Optuna's id of the study.
        after: those of a higher id than this one,
        known: and these.
        states: but only those in one of these states; None for any.
    """

    study_id: int
    after: int = -1
    known: Collection[int] = frozenset()
    states: Container[TrialState] | None = None

    def condition(self) -> sa.ColumnElement[bool]:
        """What the rows of `trials` have in common, at least."""
        of_study = trials.c.study_id == self.study_id
        if len(self.known) > _MOST_IDS:
            return of_study
        fresh = trials.c.trial_id > self.after
        return sa.and_(of_study, sa.or_(fresh, trials.c.trial_id.in_(self.known)))

    def holds(self, row: sa.Row[*tuple[Any, ...]]) -> bool:
        """Whether a row of the table `trials` is wanted."""
        return self._fresh(row.trial_id) and self._in(row.state)

    def asks(self, trial: FrozenTrial) -> bool:
        """Whether a trial is wanted."""
        return self._fresh(trial._trial_id) and self._in(trial.state)

    def _fresh(self, trial_id: int) -> bool:
        return trial_id > self.after or trial_id in self.known

    def _in(self, state: TrialState) -> bool:
        return self.states is None or state in self.states


class History:
    """Reads trials, and those that wait only once: nothing of a trial changes until it begins.

    What another tool adds to a waiting trial is seen when it has begun. That they still wait is
    counted, not read: there may be thousands.
    """

    def __init__(self) -> None:
        self._waiting: dict[int, dict[int, FrozenTrial]] = {}

    def read(self, connection: sa.Connection, wanted: Wanted) -> list[FrozenTrial]:
        """Trials of a study, in the order of their ids; times are this machine's, as Optuna's.

        Raises:
            KeyError: there is no such study.
        """
        there = sa.select(studies.c.study_id).where(studies.c.study_id == wanted.study_id)
        if connection.execute(there).first() is None:
            self._waiting.pop(wanted.study_id, None)
            raise KeyError(f"no study has the id {wanted.study_id}")
        known = self._waiting.setdefault(wanted.study_id, {})
        rows = _changed(connection, wanted, known) if known else None
        if rows is None:
            known.clear()
            rows = _select(connection, wanted.condition())
        for row in rows:
            known.pop(row.trial_id, None)
        new = [row.trial_id for row in rows if wanted.holds(row)]
        found = dict(known)
        if new:
            which = trials.c.trial_id.in_(new) if len(new) <= _MOST_IDS else wanted.condition()
            read = {t._trial_id: t for t in read_trials(connection, which)}
            found.update((trial_id, read[trial_id]) for trial_id in new if trial_id in read)
        known.update((i, t) for i, t in found.items() if t.state == TrialState.WAITING)
        return [found[trial_id] for trial_id in sorted(found) if wanted.asks(found[trial_id])]


def _select(
    connection: sa.Connection, condition: sa.ColumnElement[bool]
) -> list[sa.Row[*tuple[Any, ...]]]:
    columns = (trials.c.trial_id, trials.c.number, trials.c.state)
    query = sa.select(*columns).where(condition).order_by(trials.c.trial_id)
    return list(connection.execute(query))


def _changed(
    connection: sa.Connection, wanted: Wanted, known: Mapping[int, FrozenTrial]
) -> list[sa.Row[*tuple[Any, ...]]] | None:
    """The rows that are wanted or have changed, but for the trials that are known to wait and do.

    None where some of those are gone, or others wait in their place: SQLite may give the id of a
    deleted trial again.
    """
    between = trials.c.trial_id.between(min(known), max(known))
    waits = sa.and_(between, trials.c.state == TrialState.WAITING)
    others = frozenset(wanted.known).difference(known)
    asked = replace(wanted, known=others).condition()
    of_study = trials.c.study_id == wanted.study_id
    rows = _select(connection, sa.and_(of_study, sa.or_(asked, between), sa.not_(waits)))
    begun = {row.trial_id for row in rows}
    still = [t for trial_id, t in known.items() if trial_id not in begun]
    count = sa.select(
        sa.func.count(), sa.func.sum(trials.c.trial_id), sa.func.sum(trials.c.number)
    )
    found = connection.execute(count.where(of_study, waits)).one()
    expected = (len(still), sum(t._trial_id for t in still), sum(t.number for t in still))
    return rows if tuple(value or 0 for value in found) == expected else None


def read_trials(connection: sa.Connection, which: sa.ColumnElement[bool]) -> list[FrozenTrial]:
    """Whole trials, with one query per table."""
    query = sa.select(trials).where(which).order_by(trials.c.trial_id)
    found = {row.trial_id: _bare(row) for row in connection.execute(query)}

    def parts(table: sa.Table, *names: str) -> Iterator[Sequence[Any]]:
        """Rows of another table: the trial, and the named columns, ordered by the first."""
        columns = [table.c[name] for name in names]
        of_trial = trials.c.trial_id == table.c.trial_id
        query = sa.select(table.c.trial_id, *columns).join(trials, of_trial).where(which)
        for trial_id, *part in connection.execute(query.order_by(columns[0])):
            yield found[trial_id], *part

    for trial, _, name, value, text in parts(
        params, "param_id", "param_name", "param_value", "distribution_json"
    ):
        trial._distributions[name] = _distribution(text)
        trial._params[name] = trial._distributions[name].to_external_repr(value)
    for trial, _, value, kind in parts(values, "objective", "value", "value_type"):
        trial._values = [*(trial._values or ()), _value(value, kind)]
    for trial, step, value, kind in parts(
        reports, "step", "intermediate_value", "intermediate_value_type"
    ):
        trial.intermediate_values[step] = _reported(value, kind)
    for trial, key, text in parts(user_attributes, "key", "value_json"):
        trial._user_attrs[key] = json.loads(text)
    for trial, key, text in parts(system_attributes, "key", "value_json"):
        trial._system_attrs[key] = json.loads(text)
    return list(found.values())


def _bare(row: sa.Row[*tuple[Any, ...]]) -> FrozenTrial:
    """A trial without what other tables say of it."""
    return FrozenTrial(
        number=row.number,
        state=row.state,
        value=None,
        datetime_start=_local(row.datetime_start),
        datetime_complete=_local(row.datetime_complete),
        params={},
        distributions={},
        user_attrs={},
        system_attrs={},
        intermediate_values={},
        trial_id=row.trial_id,
    )


_value = TrialValueModel.stored_repr_to_value
_reported = TrialIntermediateValueModel.stored_repr_to_intermediate_value


@lru_cache(maxsize=1024)
def _distribution(text: str) -> BaseDistribution:
    """A study has few, and nobody changes one."""
    return json_to_distribution(text)


def _local(stored: datetime | None) -> datetime | None:
    """Optuna stores naive times in UTC, and shows naive times of this machine."""
    return None if stored is None else stored.replace(tzinfo=UTC).astimezone().replace(tzinfo=None)
