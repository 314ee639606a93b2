"""Whether a storage is sound, what is wrong or stale in it, and what would be done about it.

Wrong is what no worker leaves behind, however it ended. Stale is what a worker that was killed
leaves behind, and what the next one puts right by itself.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path

import sqlalchemy as sa

from visweep.errors import StorageError, UsageError
from visweep.storage import rows, schema
from visweep.storage.artifacts import folder_name
from visweep.storage.backup import copy_beside, frozen_copy
from visweep.storage.engine import Storage
from visweep.storage.examine import (
    HOPELESS,
    Finding,
    States,
    examine,
    look_at_states,
    read_snapshot,
)
from visweep.storage.holders import working
from visweep.storage.opening import open_storage
from visweep.storage.owner import this_process
from visweep.storage.pack import pack
from visweep.storage.slots import Slots
from visweep.storage.specification import BUDGET
from visweep.storage.tables import studies
from visweep.storage.url import check_sqlite_file, parse, read_only, sqlite_path
from visweep.storage.whereabouts import Artifacts

_OF_AN_INDEX = re.compile(
    r"(row \d+ missing from|wrong # of entries in|non-unique entry in) index"
)


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
    findings, _ = _look(url, name, artifacts)
    return findings


def _look(
    url: str, name: str | None, artifacts: str | None
) -> tuple[list[Finding], dict[str, States]]:
    """What is to be said, and what was seen of the checkpoints of each study."""
    path = sqlite_path(parse(url))
    damage = [] if path is None else _damage(path)
    if any(finding.mend is None for finding in damage):
        return damage, {}
    with frozen_copy(url) as connection:
        if damage:
            # A damaged index hides rows; this one is a copy.
            connection.exec_driver_sql("REINDEX")
        snapshot = read_snapshot(connection, name)
    places = Artifacts(url, artifacts)
    states = {study.name: look_at_states(study, places) for study, _ in snapshot.studies}
    return [*damage, *examine(snapshot, states)], states


def repair(url: str, name: str | None = None, artifacts: str | None = None) -> list[Path]:
    """Do what `check` says, after a backup; returns the files that hold it.

    Args:
        url, name, artifacts: as for `check`.

    Raises:
        UsageError: there is no such storage or study, or a worker is at it.
        StorageError: the storage or the place of the artifacts fails; then of the rows all are
            mended, or none.
    """
    findings, states = _look(url, name, artifacts)
    if not any(finding.can_be_mended for finding in findings):
        return []
    path = sqlite_path(parse(url))
    storage = open_storage(url, must_exist=True)
    readable = list(states)
    try:
        with storage.reading() as connection:
            _require_idle(connection, readable)
        backups = _packs(url, readable, artifacts) if path is None else [copy_beside(path)]
        with storage.transaction() as connection:
            if path is not None:
                connection.exec_driver_sql("REINDEX")
            # One may have begun while the backup was made.
            _keep_workers_out(connection, readable)
            _require_idle(connection, readable)
            for finding in examine(read_snapshot(connection, name), states):
                if finding.mend is not None:
                    finding.mend(connection)
        for finding in findings:
            if finding.put_aside is not None:
                finding.put_aside()
        for study in readable:
            _settle_budget(storage, study)
    finally:
        storage.close()
    return backups


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


def _keep_workers_out(connection: sa.Connection, names: Iterable[str]) -> None:
    """Let nobody lease a slot until this transaction ends; SQLite's write lock does already."""
    query = sa.select(studies.c.study_id).where(studies.c.study_name.in_(list(names)))
    connection.execute(query.order_by(studies.c.study_id).with_for_update())


def _require_idle(connection: sa.Connection, names: Iterable[str]) -> None:
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
    return [Finding(what, HOPELESS)]
