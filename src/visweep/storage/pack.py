"""One study as one file: packed on one machine, unpacked on another.

The file is a zip archive of `manifest.json`, `study.db` (an SQLite database of this study alone),
`specification.json` (for people), the files of its folder of artifacts, and those that are
attached to it. The manifest holds the SHA-256 of each other member. Nothing in it is unpickled.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
import sqlite3
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import IO, Any

from visweep.errors import StorageError, UsageError
from visweep.sealed import sync_folder
from visweep.storage import attached, rows, schema
from visweep.storage.artifacts import Checkpoints
from visweep.storage.backup import frozen_copy, opened_file, read_study
from visweep.storage.folder import Folder
from visweep.storage.opening import open_storage
from visweep.storage.place import Place
from visweep.storage.rows import StudyRows
from visweep.storage.specification import ARTIFACTS, BRANCH, SPECIFICATION, STUDY_ID
from visweep.storage.tables import FINISHED
from visweep.storage.url import parse, read_only, without_password
from visweep.storage.whereabouts import Artifacts, make_ready

FORMAT = "visweep pack"
VERSION = 1
_MANIFEST, _DATABASE, _SPECIFICATION, _ARTIFACTS, _ATTACHED = (
    "manifest.json", "study.db", "specification.json", "artifacts", "artifacts/attached",
)  # fmt: skip
_LARGEST_MANIFEST = 64 * 1024**2
_CHUNK = 1024**2
_ATTEMPTS = 5
"""So often a copy is taken anew because a trial ended between copying its row and its state."""
_DAMAGE = (
    zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError,
    struct.error, KeyError, OverflowError,
)  # fmt: skip
"""What reading an archive raises in which some bytes are not what they were."""


@dataclass(frozen=True)
class Unpacked:
    """What was unpacked.

    Attributes:
        study: its name here.
        finished: how many of its trials are finished.
        branch: the name of this copy's own way, which its proposals follow from.
        compares: whether it compares arms: then every copy trains the same, in the same order.
    """

    study: str
    finished: int
    branch: str
    compares: bool = False


def pack(url: str, name: str, target: Path, artifacts: str | None = None) -> int:
    """Write a study into one file, while workers may be at it; returns the file's size.

    A file that is there is replaced when the new one is complete.

    Args:
        url: the storage.
        name: of the study.
        target: the file.
        artifacts: where this machine finds its artifacts; None for where the study says.

    Raises:
        UsageError: there is no such storage or study, or the study was not made by visweep.
        StorageError: the storage fails, or the file cannot be written.
    """
    try:
        with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as folder:
            made = Path(folder)
            study = _gather(url, name, made, artifacts)
            _write_archive(made, study)
            (made / "pack").replace(target)
        sync_folder(target.parent)
    except OSError as e:
        raise StorageError(f"{target}: cannot be written ({e.strerror})") from e
    return target.stat().st_size


def _gather(url: str, name: str, folder: Path, artifacts: str | None) -> StudyRows:
    """Put a study's database and artifacts into a folder.

    The rows are copied first, since a trial goes on from a state that is newer than its rows, but
    not from an older one.
    """
    for _ in range(_ATTEMPTS):
        with frozen_copy(url) as connection:
            study = read_study(connection, name)
        if SPECIFICATION not in study.attributes or STUDY_ID not in study.attributes:
            raise UsageError(f"STUDY: {name!r} was not made by visweep")
        shutil.rmtree(folder / _ARTIFACTS, ignore_errors=True)
        places = Artifacts(url, artifacts)
        places.of(name, study.attributes).copy_to(folder / _ARTIFACTS)
        above = places.above(name, study.attributes)
        attached.copy_out(above, attached.named_in(study), folder / _ATTACHED)
        if not _states_missing(study, Checkpoints(Folder(folder / _ARTIFACTS))):
            break
    released = replace(study, trials=tuple(trial.released() for trial in study.trials))
    with opened_file(folder / _DATABASE) as storage, storage.transaction() as connection:
        rows.write(connection, released)
    identity = study.attributes[SPECIFICATION]
    (folder / _SPECIFICATION).write_text(json.dumps(identity, indent=2, sort_keys=True) + "\n")
    return study


def _states_missing(study: StudyRows, checkpoints: Checkpoints) -> bool:
    """Whether a trial that has begun and reported has no state to go on from."""
    there = {number for number, _, _ in checkpoints.all()}
    running = (t for t in study.trials if t.state.name == "RUNNING" and t.slot is not None)
    return any(trial.curve and trial.number not in there for trial in running)


def _write_archive(folder: Path, study: StudyRows) -> None:
    members = [folder / _DATABASE, folder / _SPECIFICATION]
    members += sorted(p for p in (folder / _ARTIFACTS).rglob("*") if p.is_file())
    names = {path.relative_to(folder).as_posix(): path for path in members}
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        "schema": schema.VERSION,
        "visweep": version("visweep"),
        "study": study.name,
        "id": study.attributes[STUDY_ID],
        "members": {name: _described(path) for name, path in names.items()},
    }
    with (folder / "pack").open("wb") as file:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            archive.writestr(_MANIFEST, json.dumps(manifest, indent=2) + "\n")
            for name, path in names.items():
                # Weights are as good as random: compressing them takes time and saves nothing.
                stored = zipfile.ZIP_STORED if name.startswith(_ARTIFACTS) else None
                archive.write(path, name, stored)
        file.flush()
        os.fsync(file.fileno())


def _described(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        checksum = hashlib.file_digest(file, "sha256").hexdigest()
    return {"sha256": checksum, "size": path.stat().st_size}


def unpack(
    path: Path,
    url: str,
    new_name: str | None = None,
    missing: Path | None = None,
    artifacts: str | None = None,
) -> Unpacked:
    """Add a packed study to a storage: all of it, or nothing.

    The copy gets a branch of its own: it proposes other points than the study that it was
    packed from, so that both can go on and be merged. Only a study of arms has none to choose:
    what two copies of it both train counts once when they are merged.

    Args:
        path: the file.
        url: the storage.
        new_name: of the study here.
        missing: the folder of a new storage, which is to be made.
        artifacts: where its artifacts are to lie; None for where this storage has them.

    Raises:
        UsageError: the file is damaged, not a pack or from a newer version, or the storage has a
            study of that name.
        StorageError: the storage fails.
    """
    with _read_archive(path) as (archive, manifest), tempfile.TemporaryDirectory() as scratch:
        try:
            packed = _study_in(path, archive, manifest, Path(scratch))
            branch = secrets.token_hex(4)
            study = replace(packed, name=new_name or packed.name).with_attributes(
                **{BRANCH: branch, ARTIFACTS: artifacts}
            )
            study, ids = attached.settled(study, packed)
            if artifacts is not None:
                make_ready(artifacts)
            if missing is not None:
                missing.mkdir(exist_ok=True)
            _add(study, ids, path, archive, manifest, url)
        except OSError as e:
            place = e.filename or without_password(parse(url))
            raise StorageError(f"{place}: cannot be written ({e.strerror})") from e
    finished = sum(trial.state in FINISHED for trial in study.trials)
    return Unpacked(study.name, finished, branch, study.compares_arms)


def _add(
    study: StudyRows,
    ids: Mapping[str, str],
    path: Path,
    archive: zipfile.ZipFile,
    manifest: Mapping[str, Any],
    url: str,
) -> None:
    """Add a study to a storage; its rows come last, since they make it seen."""
    storage = open_storage(url)
    try:
        with storage.reading() as connection:
            _require_new(study.name, rows.names(connection))
        place = Artifacts(url).of(study.name, study.attributes)
        above = Artifacts(url).above(study.name, study.attributes)
        added: list[str] = []
        _extract_artifacts(path, archive, manifest, place)
        try:
            for key in _extract_attached(path, archive, manifest, ids, above):
                added.append(key)
            with storage.transaction() as connection:
                _require_new(study.name, rows.names(connection))
                rows.write(connection, study)
        except BaseException:
            place.discard()
            for key in added:
                above.remove(key)
            raise
    finally:
        storage.close()


def _require_new(name: str, there: list[str]) -> None:
    if name in there:
        raise UsageError(
            f"--study: the storage has a study {name!r} already; accepted: --study NEWNAME"
        )


@contextmanager
def _read_archive(path: Path) -> Iterator[tuple[zipfile.ZipFile, Mapping[str, Any]]]:
    """An archive and its manifest, once the one holds exactly what the other says."""
    if not path.is_file():
        raise UsageError(f"FILE: there is no file {path}")
    try:
        with path.open("rb") as file:
            if file.read(4) != b"PK\x03\x04":
                raise UsageError(f"FILE: {path} is not a study packed by visweep")
        archive = zipfile.ZipFile(path)
    except _DAMAGE as e:
        raise _damaged(path, e) from e
    except OSError as e:
        raise UsageError(f"FILE: {path} cannot be read ({e.strerror})") from e
    with archive:
        yield archive, _manifest(path, archive)


def _manifest(path: Path, archive: zipfile.ZipFile) -> Mapping[str, Any]:
    names = archive.namelist()
    if _MANIFEST not in names:
        raise UsageError(f"FILE: {path} is not a study packed by visweep")
    try:
        with archive.open(_MANIFEST) as file:
            manifest = json.loads(file.read(_LARGEST_MANIFEST))
        if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
            raise UsageError(f"FILE: {path} is not a study packed by visweep")
        if manifest["version"] > VERSION or manifest["schema"] > schema.VERSION:
            raise UsageError(
                f"FILE: {path} was packed by a newer visweep ({manifest['visweep']}, this is "
                f"{version('visweep')}); upgrade visweep"
            )
        members = manifest["members"]
        if sorted(names) != sorted([_MANIFEST, *members]) or _DATABASE not in members:
            raise ValueError("its members are not those that its manifest lists")
        for name in members:
            _check_member(name)
    except (*_DAMAGE, TypeError, AttributeError, OSError) as e:
        raise _damaged(path, e) from e
    return manifest


def _check_member(name: str) -> None:
    """See that a member's name stays within the folder that it is written to."""
    if name in (_DATABASE, _SPECIFICATION):
        return
    parts = name.split("/")
    harmless = len(parts) > 1 and all(
        part and not part.startswith(".") and not set(part) & set("\\:\0") for part in parts
    )
    if parts[0] != _ARTIFACTS or not harmless:
        raise ValueError(f"it has a member {name!r}")


def _damaged(path: Path, error: Exception) -> UsageError:
    reason = " ".join(str(error).split()) or type(error).__name__
    return UsageError(f"FILE: {path} is damaged ({reason}); copy it again or pack it anew")


def _study_in(
    path: Path, archive: zipfile.ZipFile, manifest: Mapping[str, Any], scratch: Path
) -> StudyRows:
    """The study in an archive, whose members have all been verified."""
    try:
        for name, described in manifest["members"].items():
            with (scratch / "member").open("wb") as file:
                _extract(archive, name, described, file)
            if name == _DATABASE:
                (scratch / "member").replace(scratch / _DATABASE)
        with closing(read_only(scratch / _DATABASE)) as connection:
            if connection.execute("PRAGMA integrity_check").fetchone() != ("ok",):
                raise ValueError(f"{_DATABASE} is malformed")
        with opened_file(scratch / _DATABASE) as storage, storage.reading() as connection:
            names = rows.names(connection)
            if names != [manifest["study"]]:
                raise ValueError(f"{_DATABASE} holds other studies")
            return rows.read(connection, names[0])
    except (*_DAMAGE, TypeError, LookupError, sqlite3.Error, StorageError, UsageError) as e:
        raise _damaged(path, e) from e


def _extract(
    archive: zipfile.ZipFile, name: str, described: Mapping[str, Any], target: IO[bytes]
) -> None:
    """Write a member, as long as it is what the manifest says.

    Raises:
        ValueError: it is not.
    """
    checksum, size = hashlib.sha256(), 0
    with archive.open(name) as member:
        while chunk := member.read(_CHUNK):
            size += len(chunk)
            if size > described["size"]:
                break
            checksum.update(chunk)
            target.write(chunk)
    if (checksum.hexdigest(), size) != (described["sha256"], described["size"]):
        raise ValueError(f"the checksum of {name} does not match")


def _extract_artifacts(
    path: Path, archive: zipfile.ZipFile, manifest: Mapping[str, Any], place: Place
) -> None:
    """Write the artifacts of an archive into an empty place, whole or not at all."""
    members = {
        name: PurePosixPath(name).relative_to(_ARTIFACTS)
        for name in manifest["members"]
        if name.startswith(f"{_ARTIFACTS}/") and not name.startswith(f"{_ATTACHED}/")
    }
    if not members:
        return
    with place.filling() as made:
        for name, within in members.items():
            target = made.joinpath(*within.parts)
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("wb") as file:
                _extract_sound(path, archive, name, manifest, file)


def _extract_attached(
    path: Path,
    archive: zipfile.ZipFile,
    manifest: Mapping[str, Any],
    ids: Mapping[str, str],
    above: Place,
) -> Iterator[str]:
    """Write what is attached to the study, under its new ids; yields those that were not there."""
    with tempfile.TemporaryDirectory() as scratch:
        for key, new in sorted(ids.items()):
            name = f"{_ATTACHED}/{key}"
            if name not in manifest["members"]:
                continue
            with (Path(scratch) / key).open("wb") as file:
                _extract_sound(path, archive, name, manifest, file)
            if attached.copy_in(above, Path(scratch) / key, new):
                yield new


def _extract_sound(
    path: Path, archive: zipfile.ZipFile, name: str, manifest: Mapping[str, Any], file: IO[bytes]
) -> None:
    try:
        _extract(archive, name, manifest["members"][name], file)
    except _DAMAGE as e:
        raise _damaged(path, e) from e
