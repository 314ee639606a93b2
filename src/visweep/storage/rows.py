"""A study as plain rows, free of the ids of the database that it lies in.

Packing, unpacking, merging and checking all read a study here, table by table, and write it here;
a table that Optuna or we add later is carried along, as long as its rows belong to a study or to
a trial.
"""

from __future__ import annotations

import enum
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from optuna.trial import TrialState

from visweep.errors import StorageError
from visweep.storage.schema import inferred_uuid
from visweep.storage.specification import SPECIFICATION, STUDY_ID
from visweep.storage.tables import FIXED, OF_A_STUDY, OF_A_TRIAL, slots, studies, trials

Row = Mapping[str, Any]
Parts = Mapping[str, tuple[Row, ...]]

_IDS = {"study_id", "trial_id"}


class UnreadableRows(StorageError):
    """Rows that neither Optuna nor visweep writes; `visweep check` says more."""


@dataclass(frozen=True)
class TrialRows:
    """One trial.

    Attributes:
        row: of the table `trials`.
        parts: its rows of the other tables, by the table's name.
    """

    row: Row
    parts: Parts

    @property
    def number(self) -> int:
        return int(self.row["number"])

    @property
    def state(self) -> TrialState:
        state: TrialState = self.row["state"]
        return state

    @property
    def slot(self) -> Row | None:
        """Its row of `visweep_slots`; None for a trial that another tool added."""
        return next(iter(self.parts[slots.name]), None)

    @property
    def uuid(self) -> str | None:
        """Its identity in every copy of the study; None before it begins."""
        return None if self.slot is None else self.slot["uuid"]

    @property
    def generation(self) -> int:
        return 0 if self.slot is None else int(self.slot["generation"])

    @property
    def curve(self) -> dict[int, float | None]:
        """What was reported, by epoch; None for what is no finite number."""
        reported = self.parts["trial_intermediate_values"]
        return {r["step"]: r["intermediate_value"] for r in reported}

    @property
    def parameters(self) -> dict[str, float | None]:
        """As they are stored."""
        return {r["param_name"]: r["param_value"] for r in self.parts["trial_params"]}

    @property
    def attributes(self) -> dict[str, Any]:
        """Its user attributes."""
        return attributes(self.parts["trial_user_attributes"])

    @property
    def enqueued(self) -> str | None:
        """As JSON, the parameters that a user enqueued it with."""
        system = self.parts["trial_system_attributes"]
        found = next((r["value_json"] for r in system if r["key"] == FIXED), None)
        return None if found is None else json.dumps(json.loads(found), sort_keys=True)

    def with_slot(self, **changes: Any) -> TrialRows:
        """The same, its slot changed."""
        assert self.slot is not None
        return replace(self, parts={**self.parts, slots.name: ({**self.slot, **changes},)})

    def released(self) -> TrialRows:
        """The same, leased by nobody: a lease does not hold in a copy."""
        if self.slot is None:
            return self
        return self.with_slot(owner=None, heartbeat=0, renewed=None, lost=0, reached=0)

    def numbered(self, number: int) -> TrialRows:
        """The same under another number."""
        return replace(self, row={**self.row, "number": number})


@dataclass(frozen=True)
class StudyRows:
    """One study.

    Attributes:
        name: of the study.
        parts: its rows of the tables about studies, by the table's name.
        trials: by number.
    """

    name: str
    parts: Parts
    trials: tuple[TrialRows, ...]

    @property
    def attributes(self) -> dict[str, Any]:
        """Its user attributes."""
        return attributes(self.parts["study_user_attributes"])

    @property
    def compares_arms(self) -> bool:
        """Whether it is a study of arms."""
        return bool(self.attributes.get(SPECIFICATION, {}).get("identity", {}).get("arms"))

    def with_attributes(self, **changes: Any) -> StudyRows:
        """The same, some user attributes set; those that are None are removed."""
        wanted = {k: v for k, v in {**self.attributes, **changes}.items() if v is not None}
        made = tuple({"key": k, "value_json": json.dumps(v)} for k, v in wanted.items())
        return replace(self, parts={**self.parts, "study_user_attributes": made})


def attributes(rows: tuple[Row, ...]) -> dict[str, Any]:
    """What rows of keys and JSON values say."""
    return {row["key"]: json.loads(row["value_json"]) for row in rows}


def names(connection: sa.Connection) -> list[str]:
    """The studies of a database, in the order in which they were created."""
    query = sa.select(studies.c.study_name).order_by(studies.c.study_id)
    return list(connection.execute(query).scalars())


def id_of(connection: sa.Connection, name: str) -> int:
    """The database's id of a study that is there."""
    query = sa.select(studies.c.study_id).where(studies.c.study_name == name)
    return int(connection.execute(query).scalar_one())


def trial_ids(connection: sa.Connection, study_id: int) -> list[int]:
    """The database's ids of a study's trials, in the order of `StudyRows.trials`."""
    query = sa.select(trials.c.trial_id).where(trials.c.study_id == study_id)
    return list(connection.execute(query.order_by(trials.c.number, trials.c.trial_id)).scalars())


def read(connection: sa.Connection, name: str) -> StudyRows:
    """A study that is there.

    Raises:
        UnreadableRows: they are not what Optuna and we write.
    """
    try:
        study = _with_uuids(_read(connection, name))
        _read_all(study)
    except (ValueError, LookupError, TypeError) as e:
        raise UnreadableRows(unreadable(name, e)) from e
    return study


def unreadable(name: str, error: Exception) -> str:
    """What is said of a study whose rows are not what they should be."""
    return f"study {name!r}: has rows that cannot be read ({error})"


def _read_all(study: StudyRows) -> None:
    """Text that is no JSON would otherwise show itself later, in the middle of something."""
    plain(study.attributes)
    for trial in study.trials:
        plain([trial.attributes, trial.enqueued, trial.generation])


def _read(connection: sa.Connection, name: str) -> StudyRows:
    study_id = id_of(connection, name)
    found = connection.execute(
        sa.select(trials.c.trial_id, *_columns(trials))
        .where(trials.c.study_id == study_id)
        .order_by(trials.c.number, trials.c.trial_id)
    )
    kept = [c.name for c in _columns(trials)]
    rows = {row[0]: dict(zip(kept, row[1:], strict=True)) for row in found}
    parts = {table.name: _of_trials(connection, table, study_id) for table in OF_A_TRIAL}
    return StudyRows(
        name=name,
        parts={table.name: _of_study(connection, table, study_id) for table in OF_A_STUDY},
        trials=tuple(
            TrialRows(row, {name: tuple(by.get(trial_id, ())) for name, by in parts.items()})
            for trial_id, row in rows.items()
        ),
    )


def _with_uuids(study: StudyRows) -> StudyRows:
    """An older visweep that is still running begins trials without an identity."""
    origin = study.attributes.get(STUDY_ID)
    if origin is None:
        return study

    def given(trial: TrialRows) -> TrialRows:
        if trial.slot is None or trial.uuid is not None or not trial.parameters:
            return trial
        identity = inferred_uuid(origin, trial.number, trial.parameters.items())
        return trial.with_slot(uuid=identity)

    return replace(study, trials=tuple(given(trial) for trial in study.trials))


def _of_study(connection: sa.Connection, table: sa.Table, study_id: int) -> tuple[Row, ...]:
    query = sa.select(*_columns(table)).where(table.c.study_id == study_id)
    found = connection.execute(query.order_by(*table.primary_key))
    return tuple(dict(row) for row in found.mappings())


def _of_trials(
    connection: sa.Connection, table: sa.Table, study_id: int
) -> dict[int, list[dict[str, Any]]]:
    columns = _columns(table)
    query = (
        sa.select(table.c.trial_id, *columns)
        .join(trials, trials.c.trial_id == table.c.trial_id)
        .where(trials.c.study_id == study_id)
        .order_by(*table.primary_key)
    )
    if "study_id" in table.c:
        # Another tool may have deleted a study and left our rows, and ids are given again.
        query = query.where(table.c.study_id == study_id)
    kept = [c.name for c in columns]
    found: dict[int, list[dict[str, Any]]] = {}
    for row in connection.execute(query):
        found.setdefault(row[0], []).append(dict(zip(kept, row[1:], strict=True)))
    return found


def _columns(table: sa.Table) -> list[sa.Column[Any]]:
    """What is kept of a row: all but the numbers that the database gives."""
    return [c for c in table.c if not c.primary_key and c.name not in _IDS]


def write(connection: sa.Connection, study: StudyRows) -> int:
    """Add a study to a database that has none of its name; returns the database's id of it."""
    insert = sa.insert(studies).values(study_name=study.name).returning(studies.c.study_id)
    study_id = int(connection.execute(insert).scalar_one())
    for table in OF_A_STUDY:
        added = [{**row, "study_id": study_id} for row in study.parts.get(table.name, ())]
        if added:
            connection.execute(sa.insert(table), added)
    write_trials(connection, study_id, study.trials)
    return study_id


def write_trials(connection: sa.Connection, study_id: int, added: tuple[TrialRows, ...]) -> None:
    """Add trials to a study."""
    if not added:
        return
    ids = [
        row[0]
        for row in connection.execute(
            sa.insert(trials).returning(trials.c.trial_id, sort_by_parameter_order=True),
            [{**trial.row, "study_id": study_id} for trial in added],
        )
    ]
    # SQLite may give a trial the id of one whose study another tool has deleted.
    stale = sa.delete(slots).where(slots.c.trial_id == sa.bindparam("stale"))
    connection.execute(stale, [{"stale": trial_id} for trial_id in ids])
    for table in OF_A_TRIAL:
        own = {"study_id": study_id} if "study_id" in table.c else {}
        rows = [
            {**row, **own, "trial_id": trial_id}
            for trial_id, trial in zip(ids, added, strict=True)
            for row in trial.parts.get(table.name, ())
        ]
        if rows:
            connection.execute(sa.insert(table), rows)


def plain(rows: Any) -> Any:
    """The same as JSON values."""
    if isinstance(rows, Mapping):
        return {name: plain(value) for name, value in rows.items()}
    if isinstance(rows, tuple | list):
        return [plain(value) for value in rows]
    if isinstance(rows, enum.Enum):
        return rows.name
    return rows.isoformat() if isinstance(rows, datetime) else rows


def digest(value: Any) -> str:
    """Equal for equal JSON values alone."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
