"""What is attached to a study for optuna-dashboard to show: files, and a note.

Optuna keeps what it calls the artifacts of a study under ids in one folder, and says in system
attributes of the study (or of a trial) which they are. The dashboard looks for them where its
`--artifact-dir` says: that is the folder that the folders of studies lie in.

A file that we attach has one of two ids, which follow from the study and the file's name.
Attaching it again writes it under the one that is not in use, and one transaction then says that
this is the file. So what was attached before is whole until the new is, and where the work is cut
short nothing is left that the next time does not find: Optuna's own `upload_artifact` names a file
before it is there, and under a new id each time. Processes that attach to one study take turns,
since the same id is unused to all of them.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from visweep.errors import StorageError
from visweep.sealed import write_atomically
from visweep.storage.engine import Storage
from visweep.storage.place import Place
from visweep.storage.rows import Row, StudyRows, id_of
from visweep.storage.specification import BRANCH, STUDY_ID
from visweep.storage.tables import (
    studies,
    study_attributes,
    study_system_attributes,
    system_attributes,
    trials,
)
from visweep.storage.turns import turn
from visweep.storage.writes import lock_row

_ROWS = study_system_attributes.name
_PREFIX = "artifacts:"
"""Optuna's, of the keys that name artifacts."""
_ID = re.compile(r"[0-9a-fA-F-]{1,64}")
"""What the dashboard takes for an id; it is a file's name, and has come from anywhere."""
_OURS = uuid.UUID("7a0e5f6e-31ab-5c52-9d0b-5d1f6d3f6c11")
_NOTE, _NOTE_VERSION = "dashboard:note_str:", "dashboard:note_ver"
"""The dashboard's keys of a study's note, which is cut into pieces, and of its version."""
_PIECE = 2045
_DELETED = "the study was deleted meanwhile"
_BEGIN, _END = (
    "[//]: # (visweep report: begin; what stands outside is kept)",
    "[//]: # (visweep report: end)",
)
"""The lines around our part of a note: definitions of a link, which Markdown does not show."""


@dataclass(frozen=True)
class File:
    """A file to attach."""

    name: str
    mimetype: str
    content: bytes


def attach(
    storage: Storage, study_id: int, place: Place, files: Sequence[File], note: str
) -> None:
    """Attach files and a note to a study: instead of those of the last time.

    What others attached stays, and so does what a person wrote into the note. Of several processes
    that do so at once each waits for its turn, and the last one's files and note are there; see
    `turn` for what ends a turn early.

    Args:
        storage: where the study lies.
        study_id: the database's id of it.
        place: the one above its artifacts, `Artifacts.above`.
        files: of different names.
        note: Markdown.

    Raises:
        StorageError: the storage or the place fails, another process does not end its turn, or
            the study was deleted meanwhile; then what was attached before still is, unless all
            that failed was to remove it.
    """
    with storage.reading() as connection:
        identity = _identity(connection, study_id)
    with turn(storage, study_id):
        _attach(storage, study_id, identity, place, files, note)


def _attach(
    storage: Storage,
    study_id: int,
    identity: _Identity,
    place: Place,
    files: Sequence[File],
    note: str,
) -> None:
    with storage.reading() as connection:
        _require(connection, study_id, identity)
        before = _of_study(connection, study_id)
    wanted = {identity.unused(file.name, before): file for file in files}
    try:
        for key, file in wanted.items():
            _write(place, key, file.content)
        with storage.transaction() as connection:
            lock_row(connection, studies.c.study_id, study_id)
            _require(connection, study_id, identity)
            former = _former(connection, study_id, identity)
            _write_rows(connection, study_id, wanted, former)
            _write_note(connection, study_id, note)
    except BaseException:
        _remove_unnamed(storage, study_id, place, wanted)
        raise
    _remove_unnamed(storage, study_id, place, former - set(wanted))


def _remove_unnamed(storage: Storage, study_id: int, place: Place, keys: Collection[str]) -> None:
    """Remove those files that the study does not name: a commit may have happened, and its answer
    been lost."""
    # Where nobody can be asked they stay, and the next time writes over them.
    with suppress(StorageError):
        with storage.reading() as connection:
            named = set(_of_study(connection, study_id))
        for key in sorted(set(keys) - named):
            place.remove(key)


def named(connection: sa.Connection, study_id: int | None = None) -> set[str]:
    """The ids of what is attached to a study and its trials; None for all studies."""
    found: set[str] = set()
    of_trials = sa.select(system_attributes.c.key, system_attributes.c.value_json)
    of_studies = sa.select(study_system_attributes.c.key, study_system_attributes.c.value_json)
    if study_id is not None:
        own = sa.select(trials.c.trial_id).where(trials.c.study_id == study_id)
        of_trials = of_trials.where(system_attributes.c.trial_id.in_(own))
        of_studies = of_studies.where(study_system_attributes.c.study_id == study_id)
    for query, table in ((of_trials, system_attributes), (of_studies, study_system_attributes)):
        rows = connection.execute(query.where(table.c.key.startswith(_PREFIX, autoescape=True)))
        found.update(_ids({"key": key, "value_json": value} for key, value in rows))
    return found


def named_in(study: StudyRows) -> set[str]:
    """The ids of what is attached to a study and its trials."""
    found = set(_ids(study.parts[_ROWS]))
    for trial in study.trials:
        found.update(_ids(trial.parts["trial_system_attributes"]))
    return found


def missing(study: StudyRows, place: Place) -> list[tuple[str, str]]:
    """Id and name of what we attached to a study and is not in the place.

    What others attached may lie in any store of theirs, as far as we can tell.
    """
    identity = _Identity.of(study)
    found = _ids(study.parts[_ROWS])
    own = [(key, name) for key, name in found.items() if key in identity.ids_of(name)]
    return [(key, name) for key, name in own if not place.fetch(key).is_file()]


def forget(connection: sa.Connection, study: str, key: str) -> None:
    """Say no more that a file is attached to a study."""
    _forget(connection, id_of(connection, study), key)


def _forget(connection: sa.Connection, study_id: int, key: str) -> None:
    table = study_system_attributes
    gone = sa.delete(table).where(table.c.study_id == study_id, table.c.key == f"{_PREFIX}{key}")
    connection.execute(gone)


def settled(study: StudyRows, *copies: StudyRows) -> tuple[StudyRows, dict[str, str]]:
    """A study that was made of copies, with the files that we attached under ids of its own.

    So two copies of one study can lie side by side, and what both have is there once.

    Args:
        study: as it is to be.
        copies: what it was made of.

    Returns:
        The study, and the new ids by the old ones; those that others gave stay as they are.
    """
    own, former = _Identity.of(study), [_Identity.of(copy) for copy in copies]
    rows = study.parts[_ROWS]
    ids = {key: key for key in named_in(study)}
    for key, name in _ids(rows).items():
        if any(key in identity.ids_of(name) for identity in former):
            ids[key] = own.ids_of(name)[0]
    kept: dict[str, Row] = {}
    for row in rows:
        key = row["key"].removeprefix(_PREFIX)
        if ids.get(key, key) != key:
            row = _row(ids[key], json.loads(json.loads(row["value_json"])))
        kept.setdefault(row["key"], row)
    return replace(study, parts={**study.parts, _ROWS: tuple(kept.values())}), ids


def newer_note(one: Iterable[Row], other: Iterable[Row]) -> tuple[Row, ...]:
    """Of the notes of two copies of a study the whole of one: that was changed more often."""
    notes = [tuple(row for row in rows if is_of_note(row)) for rows in (one, other)]

    def rank(rows: tuple[Row, ...]) -> tuple[int, str]:
        held = {row["key"]: json.loads(row["value_json"]) for row in rows}
        version = held.get(_NOTE_VERSION, 0)
        return version if isinstance(version, int) else 0, json.dumps(held, sort_keys=True)

    return max(notes, key=rank)


def is_of_note(row: Row) -> bool:
    """Whether a row of a study's system attributes belongs to its note."""
    return str(row["key"]).startswith((_NOTE, _NOTE_VERSION))


def copy_in(place: Place, source: Path, key: str) -> bool:
    """Put a file into a place as an attached one; returns whether it was not there."""
    if place.fetch(key).is_file():
        return False
    _write(place, key, source.read_bytes())
    return True


def copy_out(place: Place, keys: Collection[str], folder: Path) -> None:
    """Copy attached files into a folder; what is not there is left out."""
    for key in sorted(keys):
        try:
            content = place.read(key)
        except FileNotFoundError:
            continue
        folder.mkdir(parents=True, exist_ok=True)
        (folder / key).write_bytes(content)


def with_ours(note: str, ours: str) -> str:
    """A note with our part in the place of the former one, or at its end."""
    part = f"{_BEGIN}\n\n{ours.strip()}\n\n{_END}\n"
    before, begun, rest = note.partition(_BEGIN)
    if not begun:
        return f"{note.rstrip()}\n\n{part}" if note.strip() else part
    after = rest.partition(_END)[2].strip("\n")
    return f"{before}{part}\n{after}\n" if after else f"{before}{part}"


@dataclass(frozen=True)
class _Identity:
    """What tells a study from its copies."""

    study: str
    origin: str
    branch: str

    @classmethod
    def of(cls, study: StudyRows) -> _Identity:
        return cls._from(study.name, study.attributes)

    @classmethod
    def _from(cls, name: str, attributes: Mapping[str, Any]) -> _Identity:
        return cls(name, str(attributes.get(STUDY_ID, "")), str(attributes.get(BRANCH, "")))

    def ids_of(self, file: str) -> tuple[str, str]:
        """The ids of a file that we attach to it, one of which is in use at a time."""
        names = [self.origin, self.branch, self.study, file]
        first, second = (json.dumps(each) for each in (names, [*names, "the other"]))
        return str(uuid.uuid5(_OURS, first)), str(uuid.uuid5(_OURS, second))

    def unused(self, file: str, used: Collection[str]) -> str:
        """That of them which is not in use."""
        first, second = self.ids_of(file)
        return second if first in used else first


def _require(connection: sa.Connection, study_id: int, identity: _Identity) -> None:
    """See that the study is still the same: SQLite gives the id of a deleted one again.

    Raises:
        StorageError: it is not.
    """
    if _identity(connection, study_id) != identity:
        raise StorageError(_DELETED)


def _identity(connection: sa.Connection, study_id: int) -> _Identity:
    """Raises a `StorageError` where the study is no longer there."""
    name = sa.select(studies.c.study_name).where(studies.c.study_id == study_id)
    found = connection.execute(name).scalar_one_or_none()
    if found is None:
        raise StorageError(_DELETED)
    held = sa.select(study_attributes.c.key, study_attributes.c.value_json).where(
        study_attributes.c.study_id == study_id,
        study_attributes.c.key.in_([STUDY_ID, BRANCH]),
    )
    attributes = {key: json.loads(value) for key, value in connection.execute(held)}
    return _Identity._from(found, attributes)


def _of_study(connection: sa.Connection, study_id: int) -> dict[str, str]:
    """Name by id."""
    table = study_system_attributes
    query = sa.select(table.c.key, table.c.value_json).where(table.c.study_id == study_id)
    return _ids({"key": k, "value_json": v} for k, v in connection.execute(query))


def _former(connection: sa.Connection, study_id: int, identity: _Identity) -> set[str]:
    """The ids of what we attached before."""
    attached = _of_study(connection, study_id)
    return {key for key, name in attached.items() if key in identity.ids_of(name)}


def _ids(rows: Iterable[Row]) -> dict[str, str]:
    """Name by id, of what rows of system attributes name; what cannot be one is left out."""
    return dict(_named(rows))


def _named(rows: Iterable[Row]) -> Iterator[tuple[str, str]]:
    for row in rows:
        key = str(row["key"])
        if not key.startswith(_PREFIX) or not _ID.fullmatch(key.removeprefix(_PREFIX)):
            continue
        try:
            held = json.loads(json.loads(row["value_json"]))
        except (ValueError, TypeError):
            continue
        # The dashboard leaves a null where something was deleted.
        if isinstance(held, dict):
            yield key.removeprefix(_PREFIX), str(held.get("filename", ""))


def _row(key: str, held: Mapping[str, Any]) -> Row:
    text = json.dumps({**held, "artifact_id": key})
    return {"key": f"{_PREFIX}{key}", "value_json": json.dumps(text)}


def _write(place: Place, key: str, content: bytes) -> None:
    path = place.path(key)
    try:
        write_atomically(path, content)
    except OSError as e:
        raise StorageError(f"{path}: cannot be written ({e.strerror})") from e
    place.keep(key)
    if place.copies is not None:
        path.unlink(missing_ok=True)


def _write_rows(
    connection: sa.Connection, study_id: int, wanted: Mapping[str, File], former: set[str]
) -> None:
    for key in former | set(wanted):
        _forget(connection, study_id, key)
    rows = [
        _row(key, {"filename": file.name, "mimetype": file.mimetype, "encoding": None})
        for key, file in wanted.items()
    ]
    if rows:
        connection.execute(
            sa.insert(study_system_attributes), [{**row, "study_id": study_id} for row in rows]
        )


def _write_note(connection: sa.Connection, study_id: int, ours: str) -> None:
    """Write our part of the note; by its version an editor that is open notices."""
    table = study_system_attributes
    of_note = sa.or_(table.c.key == _NOTE_VERSION, table.c.key.startswith(_NOTE, autoescape=True))
    there = sa.and_(table.c.study_id == study_id, of_note)
    rows = connection.execute(sa.select(table.c.key, table.c.value_json).where(there))
    held = {key: json.loads(value) for key, value in rows}
    version = held.pop(_NOTE_VERSION, 0)
    pieces = sorted(held, key=lambda key: int(key.removeprefix(_NOTE)))
    note = with_ours("".join(held[key] for key in pieces), ours)
    written = {
        _NOTE_VERSION: version + 1,
        **{
            f"{_NOTE}{n}": note[start : start + _PIECE]
            for n, start in enumerate(range(0, len(note), _PIECE))
        },
    }
    connection.execute(sa.delete(table).where(there))
    connection.execute(
        sa.insert(table),
        [
            {"study_id": study_id, "key": key, "value_json": json.dumps(value)}
            for key, value in written.items()
        ],
    )
