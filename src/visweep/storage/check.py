"""Whether a storage is sound, what is wrong or stale in it, and what would be done about it.

Wrong is what no worker leaves behind, however it ended. Stale is what a worker that was killed
leaves behind, and what the next one puts right by itself.
"""

from __future__ import annotations

import re
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import sqlalchemy as sa
from optuna.trial import TrialState

from visweep import text
from visweep.errors import CheckpointError, StorageError, UsageError
from visweep.sealed import unseal
from visweep.storage import rows, schema
from visweep.storage.artifacts import Checkpoints, folder_name
from visweep.storage.backup import copy_beside, frozen_copy, read_study
from visweep.storage.engine import Storage, open_storage
from visweep.storage.holders import working
from visweep.storage.mending import (
    close_as_failed,
    delete_reports_after,
    delete_where,
    give_slot,
    give_uuids,
    release,
    set_attributes,
    set_value,
    set_waiting,
)
from visweep.storage.owner import Owner, this_process
from visweep.storage.pack import pack
from visweep.storage.place import Place
from visweep.storage.rows import StudyRows, TrialRows, UnreadableRows, unreadable
from visweep.storage.slots import Slots
from visweep.storage.specification import BUDGET, SPECIFICATION, STUDY_ID
from visweep.storage.tables import (
    FINISHED,
    FINITE,
    OF_A_STUDY,
    OF_A_TRIAL,
    studies,
    study_attributes,
    trials,
)
from visweep.storage.url import check_sqlite_file, parse, read_only, sqlite_path
from visweep.storage.whereabouts import Artifacts

_OF_AN_INDEX = re.compile(
    r"(row \d+ missing from|wrong # of entries in|non-unique entry in) index"
)
_GIVE_BACK = "go back to a copy or a pack of it"


@dataclass(frozen=True)
class Finding:
    """Something that is not as it should be.

    Attributes:
        what: is found, and where.
        remedy: what a repair does about it.
        wrong: whether no worker leaves this behind; otherwise it is stale.
        mend: does it, in a transaction; None where nothing is to be done, or can be.
    """

    what: str
    remedy: str
    wrong: bool = True
    mend: Callable[[sa.Connection], None] | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class _Trial:
    """A trial as it is examined."""

    study: str
    trial_id: int
    rows: TrialRows
    space: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"study {self.study!r}, trial {self.rows.number}"

    def wrong(self, what: str, remedy: str, mend: Callable[..., None] | None) -> Finding:
        bound = None if mend is None else partial(mend, trial_id=self.trial_id)
        return Finding(f"{self.name}: {what}", remedy, mend=bound)


def check(url: str, name: str | None = None, artifacts: str | None = None) -> list[Finding]:
    """What is wrong or stale in a storage, or in one study of it; changes nothing.

    Args:
        url: the storage.
        name: of the one study to check.
        artifacts: where this machine finds the artifacts; None for where each study says.

    Raises:
        UsageError: there is no such storage or study.
        StorageError: the storage cannot be reached.
    """
    path = sqlite_path(parse(url))
    damage = [] if path is None else _damage(path)
    if any(finding.mend is None for finding in damage):
        return damage
    with frozen_copy(url) as connection:
        if damage:
            # A damaged index hides rows; this one is a copy.
            connection.exec_driver_sql("REINDEX")
        return [*damage, *_examine(connection, Artifacts(url, artifacts), name)]


def repair(url: str, name: str | None = None, artifacts: str | None = None) -> list[Path]:
    """Do what `check` says, after a backup; returns the files that hold it.

    Args:
        url, name, artifacts: as for `check`.

    Raises:
        UsageError: there is no such storage or study, or a worker is at it.
        StorageError: the storage fails; then nothing was repaired.
    """
    findings = check(url, name, artifacts)
    if not any(finding.mend for finding in findings):
        return []
    path = sqlite_path(parse(url))
    storage = open_storage(url, must_exist=True)
    try:
        with storage.reading() as connection:
            wanted = [name] if name is not None else _ours(connection)
        _require_idle(storage, wanted)
        backups = _packs(url, wanted, artifacts) if path is None else [copy_beside(path)]
        with storage.transaction() as connection:
            if path is not None:
                connection.exec_driver_sql("REINDEX")
            for finding in _examine(connection, Artifacts(url, artifacts), name):
                if finding.mend is not None:
                    finding.mend(connection)
        for study in wanted:
            _settle_budget(storage, study)
    finally:
        storage.close()
    return backups


def _ours(connection: sa.Connection) -> list[str]:
    """The studies that visweep made."""
    query = (
        sa.select(studies.c.study_name)
        .join(study_attributes, study_attributes.c.study_id == studies.c.study_id)
        .where(study_attributes.c.key == SPECIFICATION)
        .order_by(studies.c.study_id)
    )
    return list(connection.execute(query).scalars())


def _packs(url: str, names: Iterable[str], artifacts: str | None) -> list[Path]:
    """A server has no file to be copied."""
    packs = []
    for name in names:
        count = 1
        while (path := Path(f"{folder_name(name, {})}-before-repair-{count}.visweep")).exists():
            count += 1
        pack(url, name, path.resolve(), artifacts)
        packs.append(path)
    return packs


def _settle_budget(storage: Storage, name: str) -> None:
    with storage.reading() as connection:
        study, study_id = rows.read(connection, name), rows.id_of(connection, name)
    if BUDGET in study.attributes:
        Slots(storage, study_id, this_process()).set_budget(study.attributes[BUDGET])


def _require_idle(storage: Storage, names: Iterable[str]) -> None:
    with storage.reading() as connection:
        for name in names:
            for holder in working(connection, rows.id_of(connection, name)):
                raise UsageError(
                    f"--repair: study {name!r} is being worked on ({holder}); "
                    f"run visweep stop {name} first"
                )


def _damage(path: Path) -> list[Finding]:
    """What SQLite itself finds."""
    check_sqlite_file(path, must_exist=True)
    try:
        with closing(read_only(path)) as connection:
            found = [row[0] for row in connection.execute("PRAGMA integrity_check(20)")]
    except sqlite3.OperationalError as e:
        raise StorageError(f"storage {path}: {e}") from e
    except sqlite3.DatabaseError as e:
        found = [str(e)]
    if found == ["ok"]:
        schema.check(path)
        return []
    first = " ".join(found[0].removeprefix("*** in database main ***").split())
    what = f"{path}: damaged: {first}"
    if all(_OF_AN_INDEX.search(line) for line in found):
        return [Finding(what, "its indexes are made anew", mend=lambda _: None)]
    return [Finding(what, f"cannot be repaired: {_GIVE_BACK}")]


def _examine(connection: sa.Connection, artifacts: Artifacts, name: str | None) -> list[Finding]:
    found = [*_orphans(connection), *_without_uuid(connection)] if name is None else []
    for study_name in rows.names(connection) if name is None else [name]:
        try:
            study = read_study(connection, study_name)
            # Another tool's study has its own rules.
            if SPECIFICATION in study.attributes:
                ids = rows.trial_ids(connection, rows.id_of(connection, study_name))
                found += _examine_study(study, ids, artifacts)
        except (UnreadableRows, ValueError, LookupError, TypeError) as e:
            what = str(e) if isinstance(e, UnreadableRows) else unreadable(study_name, e)
            found.append(Finding(what, f"cannot be repaired: {_GIVE_BACK}"))
    return found


def _orphans(connection: sa.Connection) -> Iterator[Finding]:
    """Rows that belong to nothing."""
    for owners, key, tables in (
        (studies, "study_id", (*OF_A_STUDY, trials)),
        (trials, "trial_id", OF_A_TRIAL),
    ):
        there = sa.select(owners.c[key])
        for table in tables:
            astray = table.c[key].not_in(there)
            count = connection.execute(
                sa.select(sa.func.count()).select_from(table).where(astray)
            ).scalar_one()
            if count:
                owner = key.removesuffix("_id")
                yield Finding(
                    f"{text.plural(count, 'row')} of {table.name} without a {owner}",
                    "deleted",
                    mend=partial(delete_where, table=table, condition=astray),
                )


def _without_uuid(connection: sa.Connection) -> Iterator[Finding]:
    missing = schema.missing_uuids(connection)
    if missing:
        yield Finding(
            f"{text.plural(len(missing), 'trial')} begun without an identity of its own, by an "
            "older visweep",
            "given one that every copy of the study agrees on",
            mend=give_uuids,
        )


def _examine_study(study: StudyRows, ids: list[int], artifacts: Artifacts) -> Iterator[Finding]:
    space = tuple(study.attributes[SPECIFICATION]["identity"]["space"])
    states: dict[int, int] | None = None
    try:
        place = artifacts.of(study.name, study.attributes)
        states = {number: generation for number, generation, _ in Checkpoints(place).all()}
        yield from _examine_checkpoints(study, place)
    except (UsageError, StorageError) as e:
        yield Finding(
            f"study {study.name!r}: its checkpoints cannot be checked: {e}",
            "none; check again when they can be read",
        )
    numbers = Counter(t.number for t in study.trials)
    astray = [n for n in numbers if numbers[n] > 1 or not 0 <= n < len(study.trials)]
    if astray:
        yield Finding(
            f"study {study.name!r}: trial number {astray[0]} is given twice or leaves a gap",
            f"cannot be repaired: {_GIVE_BACK}",
        )
    for trial_id, trial in zip(ids, study.trials, strict=True):
        examined = _Trial(study.name, trial_id, trial, space)
        if trial.slot is None:
            yield from _slotless(examined, study, (states or {}).get(trial.number))
            continue
        yield from _examine_trial(examined, states is None or trial.number in states)
    yield from _examine_budget(study)


def _slotless(trial: _Trial, study: StudyRows, generation: int | None) -> Iterator[Finding]:
    """Trials that other tools added have no slot; ours say where they were run."""
    ours = generation is not None or "provenance" in trial.rows.attributes
    if ours and trial.rows.state != TrialState.WAITING and trial.rows.parameters:
        identity = schema.inferred_uuid(
            study.attributes[STUDY_ID], trial.rows.number, trial.rows.parameters.items()
        )
        yield trial.wrong(
            "was begun and has no slot",
            "given one again",
            partial(give_slot, generation=generation or 1, identity=identity),
        )


def _examine_trial(trial: _Trial, has_state: bool) -> Iterator[Finding]:
    yield from _examine_lease(trial)
    found = trial.rows
    running = found.state == TrialState.RUNNING and found.generation > 0
    if not running and found.state not in FINISHED:
        return
    unset = [name for name in trial.space if name not in found.parameters]
    if unset:
        yield trial.wrong(
            f"was begun without its parameter {unset[0]}",
            "set waiting again" if running else "closed as failed, and another is run instead",
            set_waiting if running else partial(close_as_failed, cause="a parameter was missing"),
        )
        return
    missing = [e for e in range(1, max(found.curve, default=0) + 1) if e not in found.curve]
    if missing:
        yield trial.wrong(
            f"its curve lacks epoch {missing[0]}",
            "its later epochs are forgotten, and reported again when it goes on"
            if running
            else "closed as failed, and another is run instead",
            partial(delete_reports_after, epoch=missing[0])
            if running
            else partial(close_as_failed, cause="its curve had a gap"),
        )
    elif not running:
        yield from _examine_result(trial)
    elif found.curve and not has_state:
        yield Finding(
            f"{trial.name}: its checkpoint is missing",
            "none needed: it begins anew under its own number",
            wrong=False,
        )


def _examine_lease(trial: _Trial) -> Iterator[Finding]:
    owner = _owner(trial.rows)
    mend = partial(release, trial_id=trial.trial_id)
    if isinstance(owner, str):
        yield trial.wrong("its lease has an owner that cannot be read", "released", release)
    elif owner is not None and not trial.rows.state.is_finished() and owner.is_gone():
        yield Finding(
            f"{trial.name}: its worker is gone (process {owner.pid})", "released", False, mend
        )


def _owner(trial: TrialRows) -> Owner | str | None:
    """Who holds the lease; the text itself where it cannot be read."""
    held: str | None = None if trial.slot is None else trial.slot["owner"]
    try:
        return None if held is None else Owner.from_text(held)
    except (ValueError, TypeError):
        return held


def _examine_result(trial: _Trial) -> Iterator[Finding]:
    found = trial.rows
    last = found.curve.get(len(found.curve))
    values = found.parts["trial_values"]
    complete = found.state == TrialState.COMPLETE
    if not found.curve and complete:
        yield trial.wrong(
            "is finished and has no curve",
            "closed as failed, and another is run instead",
            partial(close_as_failed, cause="its curve was lost"),
        )
        return
    if not values and last is not None:
        yield trial.wrong(
            "is finished and has no value",
            "given that of its last epoch",
            partial(set_value, value=last),
        )
    elif complete and any(v["value_type"] != FINITE for v in values):
        yield trial.wrong(
            "is finished with a value that is no number",
            "closed as failed, and another is run instead",
            partial(close_as_failed, cause="its value was no number"),
        )
    yield from _examine_attributes(trial)


def _examine_attributes(trial: _Trial) -> Iterator[Finding]:
    found = trial.rows
    epochs = len(found.curve)
    complete = found.state == TrialState.COMPLETE
    inferred = {
        "ended": "completed" if complete else f"pruned at epoch {epochs}",
        "epochs": epochs,
        "provenance": {},
    }
    there = found.attributes
    needed = inferred if complete else ("ended",)
    missing = {name: inferred[name] for name in needed if name not in there}
    if missing:
        yield trial.wrong(
            f"is finished and lacks its attribute {next(iter(missing))}",
            "given as far as its curve tells",
            partial(set_attributes, values=missing),
        )
    elif complete and there["epochs"] != epochs:
        yield trial.wrong(
            f"its curve has {text.plural(epochs, 'epoch')} of {there['epochs']}",
            "closed as failed, and another is run instead",
            partial(close_as_failed, cause="its curve was cut short"),
        )


def _examine_budget(study: StudyRows) -> Iterator[Finding]:
    """A worker makes it right whenever it looks for a slot, and so does a repair."""
    budget = study.attributes.get(BUDGET)
    if budget is None:
        return
    counted = [t for t in study.trials if t.slot is not None and t.state != TrialState.FAIL]
    spare = sum(t.state == TrialState.WAITING for t in counted)
    surplus = len(counted) - budget
    if surplus < 0 or min(surplus, spare) > 0:
        yield Finding(
            f"study {study.name!r}: has {text.plural(len(counted), 'slot')} for a budget of "
            f"{budget}",
            "added" if surplus < 0 else "removed as far as they wait",
            wrong=False,
            mend=lambda _: None,
        )


def _examine_checkpoints(study: StudyRows, place: Place) -> Iterator[Finding]:
    for _, _, name in Checkpoints(place).all():
        try:
            unseal(place.read(name), f"{place.where}/{name}")
        except FileNotFoundError:  # a worker needs it no more
            continue
        except (CheckpointError, OSError) as e:
            yield Finding(
                f"study {study.name!r}: {e}",
                f"renamed to {name}.damaged; a trial that needs it begins anew",
                mend=partial(_put_aside, place=place, name=name),
            )


def _put_aside(_: sa.Connection, place: Place, name: str) -> None:
    try:
        place.rename(name, f"{name}.damaged")
    except OSError as e:
        where = f"{place.where}/{name}"
        raise StorageError(f"{where}: cannot be renamed ({e.strerror or e})") from e
