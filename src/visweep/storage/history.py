"""A study's trials as Optuna shows them, read with one query per table.

Optuna makes an object of every row, which takes seconds for some thousand trials; and whenever the
history is looked at, it reads anew what has not finished, which includes every slot that waits.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Container, Mapping, Sequence
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
        known = self._waiting.setdefault(wanted.study_id, {})
        rows = _changed(connection, wanted, known) if known else None
        if rows is None:
            known.clear()
            rows = _all_wanted(connection, wanted)
        if not (rows or known) and not _is_there(connection, wanted.study_id):
            del self._waiting[wanted.study_id]
            raise KeyError(f"no study has the id {wanted.study_id}")
        for row in rows:
            known.pop(row.trial_id, None)
        new = [row.trial_id for row in rows if wanted.holds(row)]
        found = dict(known)
        if new:
            read = {t._trial_id: t for t in _read(connection, wanted.study_id, new)}
            found.update((trial_id, read[trial_id]) for trial_id in new if trial_id in read)
        known.update((i, t) for i, t in found.items() if t.state == TrialState.WAITING)
        return [found[trial_id] for trial_id in sorted(found) if wanted.asks(found[trial_id])]


def read_trial(connection: sa.Connection, trial_id: int) -> FrozenTrial | None:
    """A whole trial; None where there is none of this id."""
    return next(iter(_read_by(connection, _OF_AN_ID, {"this": trial_id})), None)


def _is_there(connection: sa.Connection, study_id: int) -> bool:
    there = sa.select(studies.c.study_id).where(studies.c.study_id == study_id)
    return connection.execute(there).first() is not None


_States = Sequence[sa.Row[int, int, TrialState]]

_IDS: sa.BindParameter[Any] = sa.bindparam("these", expanding=True)
_OF_STUDY = trials.c.study_id == sa.bindparam("study")
_WANTED = sa.or_(trials.c.trial_id > sa.bindparam("after"), trials.c.trial_id.in_(_IDS))
_BETWEEN = trials.c.trial_id.between(sa.bindparam("first"), sa.bindparam("last"))
_WAITS = sa.and_(_BETWEEN, trials.c.state == TrialState.WAITING)
_STATES = (
    sa.select(trials.c.trial_id, trials.c.number, trials.c.state)
    .where(_OF_STUDY)
    .order_by(trials.c.trial_id)
)
_SOME_STATES = _STATES.where(_WANTED)
_OTHER_STATES = _STATES.where(sa.not_(_WAITS))
_SOME_OTHER_STATES = _OTHER_STATES.where(sa.or_(_WANTED, _BETWEEN))
_WAITING = sa.select(
    sa.func.count(), sa.func.sum(trials.c.trial_id), sa.func.sum(trials.c.number)
).where(_OF_STUDY, _WAITS)
"""Statements are made once: making one takes as long as it does to execute it."""


def _all_wanted(connection: sa.Connection, wanted: Wanted) -> _States:
    """The rows of all trials that are wanted, or of more."""
    if len(wanted.known) > _MOST_IDS:
        return connection.execute(_STATES, {"study": wanted.study_id}).all()
    which = {"study": wanted.study_id, "after": wanted.after, "these": list(wanted.known)}
    return connection.execute(_SOME_STATES, which).all()


def _changed(
    connection: sa.Connection, wanted: Wanted, known: Mapping[int, FrozenTrial]
) -> _States | None:
    """The rows that are wanted or have changed, but for the trials that are known to wait and do.

    None where some of those are gone, or others wait in their place: SQLite may give the id of a
    deleted trial again.
    """
    span = {"study": wanted.study_id, "first": min(known), "last": max(known)}
    others = frozenset(wanted.known).difference(known)
    if len(others) > _MOST_IDS:
        rows = connection.execute(_OTHER_STATES, span).all()
    else:
        which = {**span, "after": wanted.after, "these": list(others)}
        rows = connection.execute(_SOME_OTHER_STATES, which).all()
    begun = {row.trial_id for row in rows}
    still = [t for trial_id, t in known.items() if trial_id not in begun]
    found = connection.execute(_WAITING, span).one()
    expected = (len(still), sum(t._trial_id for t in still), sum(t.number for t in still))
    return rows if tuple(value or 0 for value in found) == expected else None


_PARAMETER, _VALUE, _REPORT, _USER, _SYSTEM = range(5)
"""What a row tells of a trial."""


@dataclass(frozen=True)
class _Whole:
    """Queries for whole trials.

    Attributes:
        trials: for their rows of the table `trials`.
        parts: for what other tables say of them: what it is, the trial, and a place, a name, a
            number and a text, of which each kind has some.
    """

    trials: sa.Select[Any]
    parts: Sequence[sa.Select[Any] | sa.CompoundSelect[Any]]

    @classmethod
    def of(cls, which: Callable[[sa.Table], sa.ColumnElement[bool]]) -> _Whole:
        """Of the trials for which `which` holds in every table."""
        whole = sa.select(trials).where(which(trials)).order_by(trials.c.trial_id)
        return cls(whole, [part.where(which(t)).order_by("place") for t, part in _PARTS.items()])

    def at_once(self) -> _Whole:
        """The same with one query for all parts, which takes longer where there are many."""
        every = sa.union_all(*(part.order_by(None) for part in self.parts))
        return replace(self, parts=[every.order_by("kind", "place")])


def _part(
    kind: int,
    table: sa.Table,
    place: sa.Column[Any] | None = None,
    name: sa.Column[Any] | None = None,
    number: sa.Column[Any] | None = None,
    text: sa.ColumnElement[Any] | None = None,
) -> sa.Select[Any]:
    def of(column: sa.ColumnElement[Any] | None, kind: type[Any], label: str) -> sa.Label[Any]:
        # Of each column the databases want one type in all parts.
        return sa.cast(sa.null() if column is None else column, kind).label(label)

    return sa.select(
        sa.literal_column(str(kind), sa.Integer).label("kind"),
        table.c.trial_id.label("trial_id"),
        of(place, sa.Integer, "place"),
        of(name, sa.Text, "name"),
        of(number, sa.Double, "number"),
        of(text, sa.Text, "text"),
    )


_PARTS = {
    params: _part(
        _PARAMETER,
        params,
        params.c.param_id,
        params.c.param_name,
        params.c.param_value,
        params.c.distribution_json,
    ),
    values: _part(
        _VALUE, values, values.c.objective, number=values.c.value, text=values.c.value_type
    ),
    reports: _part(
        _REPORT,
        reports,
        reports.c.step,
        number=reports.c.intermediate_value,
        text=reports.c.intermediate_value_type,
    ),
    user_attributes: _part(
        _USER, user_attributes, name=user_attributes.c.key, text=user_attributes.c.value_json
    ),
    system_attributes: _part(
        _SYSTEM,
        system_attributes,
        name=system_attributes.c.key,
        text=system_attributes.c.value_json,
    ),
}
_OF_IDS = _Whole.of(lambda table: table.c.trial_id.in_(_IDS))
_OF_AN_ID = _Whole.of(lambda table: table.c.trial_id == sa.bindparam("this")).at_once()
_OF_A_STUDY = _Whole.of(
    lambda table: table.c.trial_id.in_(sa.select(trials.c.trial_id).where(_OF_STUDY))
)


def _read(connection: sa.Connection, study_id: int, ids: Sequence[int]) -> list[FrozenTrial]:
    """These trials of a study, whole; where they are many, with all others of it."""
    if len(ids) > _MOST_IDS:
        return _read_by(connection, _OF_A_STUDY, {"study": study_id})
    if len(ids) == 1:
        return _read_by(connection, _OF_AN_ID, {"this": ids[0]})
    return _read_by(connection, _OF_IDS, {"these": ids})


def _read_by(
    connection: sa.Connection, whole: _Whole, which: Mapping[str, Any]
) -> list[FrozenTrial]:
    found = {row.trial_id: _bare(row) for row in connection.execute(whole.trials, which)}
    for query in whole.parts if found else ():
        for kind, trial_id, *part in connection.execute(query, which):
            if trial_id in found:  # which may have come, or gone, meanwhile
                _add(found[trial_id], kind, *part)
    return list(found.values())


def _add(trial: FrozenTrial, kind: int, place: int, name: str, number: Any, text: str) -> None:
    """Let a trial have what a row tells of it; a number that is None is not finite."""
    if kind == _PARAMETER:
        trial._distributions[name] = _distribution(text)
        trial._params[name] = trial._distributions[name].to_external_repr(number)
    elif kind == _VALUE:
        value = TrialValueModel.stored_repr_to_value(number, TrialValueModel.TrialValueType[text])
        trial._values = [*(trial._values or ()), value]
    elif kind == _REPORT:
        type_ = TrialIntermediateValueModel.TrialIntermediateValueType[text]
        value = TrialIntermediateValueModel.stored_repr_to_intermediate_value(number, type_)
        trial.intermediate_values[place] = value
    else:
        attributes = trial._user_attrs if kind == _USER else trial._system_attrs
        attributes[name] = json.loads(text)


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


@lru_cache(maxsize=1024)
def _distribution(text: str) -> BaseDistribution:
    """A study has few, and nobody changes one."""
    return json_to_distribution(text)


def _local(stored: datetime | None) -> datetime | None:
    """Optuna stores naive times in UTC, and shows naive times of this machine."""
    return None if stored is None else stored.replace(tzinfo=UTC).astimezone().replace(tzinfo=None)
