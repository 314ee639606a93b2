"""All studies of a storage at a glance, by SQL of our own.

Optuna's summaries read every trial of every study; this takes milliseconds, changes nothing (an
SQLite file is opened read-only), and imports neither Optuna nor torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

import sqlalchemy as sa

from visweep.errors import StorageError, UsageError
from visweep.storage import server
from visweep.storage.holders import Holder, Unfinished, unfinished
from visweep.storage.url import check_sqlite_file, parse, read_only, sqlite_path, without_password

_STUDIES = "SELECT study_id, study_name FROM studies ORDER BY study_id"
_BUDGETS = "SELECT study_id, value_json FROM study_user_attributes WHERE key = 'visweep:budget'"
_TRAINERS = "SELECT study_id, value_json FROM study_user_attributes WHERE key = 'visweep:trainer'"
_STATES = "SELECT study_id, state, COUNT(*) FROM trials GROUP BY study_id, state"
# Trials that other tools added have no slot, and do not count.
_FINISHED = """
    SELECT t.study_id, COUNT(*)
    FROM trials t JOIN visweep_slots s ON s.trial_id = t.trial_id AND s.study_id = t.study_id
    WHERE t.state IN ('COMPLETE', 'PRUNED')
    GROUP BY t.study_id
"""
_BEST = """
    SELECT t.study_id, t.number, v.value
    FROM trials t JOIN trial_values v ON v.trial_id = t.trial_id AND v.objective = 0
    WHERE t.state IN ('COMPLETE', 'PRUNED') AND v.value IS NOT NULL
    ORDER BY t.study_id, CASE t.state WHEN 'COMPLETE' THEN 1 ELSE 0 END, v.value, t.number DESC
"""


@dataclass(frozen=True)
class StudyOverview:
    """One study at a glance.

    Attributes:
        name: of the study.
        budget: trials that it is to finish; None if visweep did not make it.
        finished: how many of them it has finished.
        states: number of trials by Optuna's name of their state, those of other tools included.
        interrupted: how many of the RUNNING ones no worker holds, as far as can be told from here.
        best: number and value of the best completed trial; of a pruned one where there is none.
        workers: who holds its trials.
        trainer: the version of the trainer that it was begun with; None where it does not say.
    """

    name: str
    budget: int | None
    finished: int
    states: Mapping[str, int]
    interrupted: int
    best: tuple[int, float] | None
    workers: tuple[Holder, ...] = ()
    trainer: int | None = None


def overview(url: str) -> list[StudyOverview]:
    """All studies of a storage, in the order in which they were created.

    Raises:
        UsageError: there is no such storage.
        StorageError: it cannot be read.
    """
    parsed = parse(url)
    path = sqlite_path(parsed)
    if path is None:
        engine = server.make_engine(parsed)
    else:
        check_sqlite_file(path, must_exist=True)
        engine = sa.create_engine("sqlite://", creator=lambda: read_only(path))
    try:
        with engine.connect() as connection:
            if path is not None:
                # The driver would give each query a view of its own.
                connection.exec_driver_sql("BEGIN")
            if not sa.inspect(connection).has_table("studies"):
                raise UsageError(f"--storage: {without_password(parsed)} holds no studies")
            return _read(connection)
    except sa.exc.DBAPIError as e:
        raise StorageError(f"storage {without_password(parsed)}: {server.reason(e)}") from e
    finally:
        engine.dispose()


def _read(connection: sa.Connection) -> list[StudyOverview]:
    budgets = {row[0]: int(json.loads(row[1])) for row in connection.execute(sa.text(_BUDGETS))}
    trainers = {row[0]: json.loads(row[1]) for row in connection.execute(sa.text(_TRAINERS))}
    states: dict[int, dict[str, int]] = {}
    for study_id, state, number in connection.execute(sa.text(_STATES)):
        states.setdefault(study_id, {})[state] = number
    best = {row[0]: (row[1], row[2]) for row in connection.execute(sa.text(_BEST))}
    finished: dict[int, int] = {}
    held: dict[int, list[Unfinished]] = {}
    if sa.inspect(connection).has_table("visweep_slots"):
        finished = {row[0]: row[1] for row in connection.execute(sa.text(_FINISHED))}
        for slot in unfinished(connection):
            held.setdefault(slot.study_id, []).append(slot)
    overviews = []
    for study_id, name in connection.execute(sa.text(_STUDIES)):
        counts = states.get(study_id, {})
        ours = study_id in budgets
        ended = counts.get("COMPLETE", 0) + counts.get("PRUNED", 0)
        slots = held.get(study_id, [])
        overviews.append(
            StudyOverview(
                name=name,
                budget=budgets.get(study_id),
                finished=finished.get(study_id, 0) if ours else ended,
                states=counts,
                interrupted=sum(slot.interrupted for slot in slots),
                best=best.get(study_id),
                workers=tuple(slot.holder for slot in slots if slot.holder is not None),
                trainer=trainers.get(study_id),
            )
        )
    return overviews
