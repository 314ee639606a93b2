"""Merging two databases whose studies went on apart from each other; see `unite` for the laws."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from visweep.errors import SpecificationMismatch, StorageError, UsageError
from visweep.sealed import sync_folder, write_atomically
from visweep.storage import rows
from visweep.storage.artifacts import Checkpoints, folder_name
from visweep.storage.backup import copy_files, file_url, frozen_copy, opened_file
from visweep.storage.engine import artifact_folder
from visweep.storage.rows import ENDED, StudyRows, TrialRows
from visweep.storage.specification import BUDGET, SPECIFICATION, STUDY_ID, difference
from visweep.storage.unite import United, unite

_SET_ASIDE = "set-aside"
"""The folder, in the study's artifacts, of what lost against the same trial's other copy."""


@dataclass(frozen=True)
class Merged:
    """What came of one study of two files.

    Attributes:
        name: of the study.
        finished: how many of its trials are finished.
        budget: how many it is to finish; None for a study of another tool.
        set_aside: how many copies of trials are kept as artifacts.
    """

    name: str
    finished: int
    budget: int | None
    set_aside: int


def merge(first: Path, second: Path, target: Path) -> list[Merged]:
    """Write a new database that holds the studies of two others, and its artifacts beside it.

    Raises:
        UsageError: a file is no storage of ours, the target is there, or two studies of one name
            do not belong together.
        StorageError: a file is damaged, or the target cannot be written.
    """
    if target.exists():
        raise UsageError(f"--output: {target} is there already; give another name")
    united = [
        (name, *_pair(name, first, second, *found)) for name, found in _studies(first, second)
    ]
    places = {name: _folder(target, made.study) for name, made, _ in united}
    for place in places.values():
        if place.exists():
            raise UsageError(
                f"--output: {place} is there already; give a file in a folder of its own, such "
                f"as merged/{target.name}"
            )
    made_folders: list[Path] = []
    try:
        for name, made, folders in united:
            _write_artifacts(places[name], made, folders)
            made_folders.append(places[name])
        _write_database(target, [made.study for _, made, _ in united])
    except OSError as e:
        _remove(made_folders)
        raise StorageError(f"{e.filename or target}: cannot be written ({e.strerror})") from e
    except BaseException:
        _remove(made_folders)
        raise
    return [_summary(made) for _, made, _ in united]


def _remove(folders: Iterable[Path]) -> None:
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


def _summary(united: United) -> Merged:
    study = united.study
    return Merged(
        name=study.name,
        finished=sum(t.slot is not None and t.state in ENDED for t in study.trials),
        budget=study.attributes.get(BUDGET),
        set_aside=len(united.set_aside),
    )


def _studies(
    first: Path, second: Path
) -> Iterator[tuple[str, tuple[StudyRows | None, StudyRows | None]]]:
    found = [_read(first), _read(second)]
    _require_equal_names(*found)
    for name in dict.fromkeys([*found[0], *found[1]]):
        yield name, (found[0].get(name), found[1].get(name))


def _require_equal_names(here: Mapping[str, StudyRows], there: Mapping[str, StudyRows]) -> None:
    names = {s.attributes[STUDY_ID]: s.name for s in here.values() if STUDY_ID in s.attributes}
    for study in there.values():
        name = names.get(study.attributes.get(STUDY_ID))
        if name is not None and study.name not in here and name not in there:
            raise UsageError(
                f"study {name!r} of the first file is called {study.name!r} in the second; "
                "only copies of one name unite"
            )


def _read(path: Path) -> dict[str, StudyRows]:
    with frozen_copy(file_url(path)) as connection:
        return {name: rows.read(connection, name) for name in rows.names(connection)}


def _pair(
    name: str, first: Path, second: Path, one: StudyRows | None, other: StudyRows | None
) -> tuple[United, tuple[Path, Path]]:
    """The united study and the two folders that its artifacts come from."""
    here, there = one or other, other or one
    assert here is not None
    assert there is not None
    folders = (
        _folder(first if one is not None else second, here),
        _folder(second if other is not None else first, there),
    )
    _require_related(name, here, there)
    return unite(here, there), folders


def _folder(database: Path, study: StudyRows) -> Path:
    return artifact_folder(file_url(database)) / folder_name(study.name, study.attributes)


def _require_related(name: str, one: StudyRows, other: StudyRows) -> None:
    if one == other:
        return
    here, there = one.attributes, other.attributes
    if SPECIFICATION not in here or SPECIFICATION not in there:
        raise UsageError(f"study {name!r} was not made by visweep in both files, and differs")
    differing = difference(
        here[SPECIFICATION]["identity"],
        there[SPECIFICATION]["identity"],
        "is in the first file",
        "in the second",
    )
    if differing is not None:
        raise SpecificationMismatch(f"study {name!r}: {differing}; only copies of one study unite")
    if here.get(STUDY_ID) != there.get(STUDY_ID):
        raise UsageError(
            f"study {name!r} was begun separately in the two files; only copies of one study unite"
        )


def _write_artifacts(target: Path, united: United, folders: tuple[Path, Path]) -> None:
    """Checkpoints under the numbers that their trials have now, and everything else as it was."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".merge-", dir=target.parent) as scratch:
        made = Path(scratch) / target.name
        for folder in reversed(folders):
            copy_files(folder, made)
        for _, _, path in Checkpoints(made).all():
            path.unlink()
        for number, sources in united.sources.items():
            _copy_checkpoint(made, number, [(folders[s.side], s.number) for s in sources])
        for trial in united.set_aside:
            _set_aside(made / _SET_ASIDE, trial)
        if made.exists():
            made.rename(target)
            sync_folder(target.parent)


def _copy_checkpoint(target: Path, number: int, sources: list[tuple[Path, int]]) -> None:
    for folder, before in sources:
        found = [(g, path) for n, g, path in Checkpoints(folder).all() if n == before]
        if found:
            generation, path = max(found)
            target.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, Checkpoints(target).path(number, generation))
            return


def _set_aside(folder: Path, trial: TrialRows) -> None:
    content = rows.plain({"uuid": trial.uuid, **trial.row, "tables": trial.released().parts})
    name = f"trial-{trial.uuid or 'unnamed'}-{rows.digest(content)[:12]}.json"
    write_atomically(folder / name, json.dumps(content, indent=2, sort_keys=True).encode() + b"\n")


def _write_database(target: Path, studies: list[StudyRows]) -> None:
    with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as folder:
        made = Path(folder) / target.name
        with opened_file(made) as storage, storage.transaction() as connection:
            for study in studies:
                rows.write(connection, study)
        made.rename(target)
    sync_folder(target.parent)
