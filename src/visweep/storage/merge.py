"""Merging two databases whose studies went on apart from each other; see `unite` for the laws."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from visweep.errors import SpecificationMismatch, StorageError, UsageError
from visweep.sealed import sync_folder, write_atomically
from visweep.storage import attached, rows
from visweep.storage.artifacts import Checkpoints, folder_name
from visweep.storage.backup import file_url, frozen_copy, opened_file
from visweep.storage.folder import Folder
from visweep.storage.place import Place
from visweep.storage.rows import StudyRows, TrialRows
from visweep.storage.specification import (
    ARTIFACTS,
    BUDGET,
    SPECIFICATION,
    STUDY_ID,
    difference,
)
from visweep.storage.tables import FINISHED
from visweep.storage.unite import United, unite
from visweep.storage.whereabouts import Artifacts, artifact_folder

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
        twice: how many of them are of an arm and a seed that both files had trained.
    """

    name: str
    finished: int
    budget: int | None
    set_aside: int
    twice: int = 0


@dataclass(frozen=True)
class _Pair:
    """Two copies of a study, and what is to be copied of each.

    Attributes:
        united: the study that they make.
        places: their artifacts.
        above: the places above these.
        ids: of the files that are attached to them, what each is called in the united study.
    """

    united: United
    places: tuple[Place, ...]
    above: tuple[Place, ...]
    ids: Mapping[str, str]

    @property
    def study(self) -> StudyRows:
        return self.united.study


def merge(first: Path, second: Path, target: Path) -> list[Merged]:
    """Write a new database that holds the studies of two others, and its artifacts beside it.

    Raises:
        UsageError: a file is no storage of ours, the target is there, or two studies of one name
            do not belong together.
        StorageError: a file is damaged, or the target cannot be written.
    """
    if target.exists():
        raise UsageError(f"--output: {target} is there already; give another name")
    united = {name: _pair(name, first, second, *found) for name, found in _studies(first, second)}
    beside = Folder(artifact_folder(file_url(target)))
    folders = {
        name: beside.folder / folder_name(name, pair.study.attributes)
        for name, pair in united.items()
    }
    for folder in folders.values():
        if folder.exists():
            raise UsageError(
                f"--output: {folder} is there already; give a file in a folder of its own, such "
                f"as {target.with_suffix('')}/{target.name}"
            )
    target.parent.mkdir(exist_ok=True)
    made_folders: list[Path] = []
    attached_files: list[str] = []
    try:
        for name, pair in united.items():
            _write_artifacts(folders[name], pair)
            made_folders.append(folders[name])
            for key in _copy_attached(beside, pair):
                attached_files.append(key)
        _write_database(target, [pair.study for pair in united.values()])
    except OSError as e:
        _remove(made_folders, beside, attached_files)
        raise StorageError(f"{e.filename or target}: cannot be written ({e.strerror})") from e
    except BaseException:
        _remove(made_folders, beside, attached_files)
        raise
    return [_summary(pair) for pair in united.values()]


def _remove(folders: Iterable[Path], beside: Place, attached_files: Iterable[str]) -> None:
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
    for key in attached_files:
        beside.remove(key)


def _summary(pair: _Pair) -> Merged:
    study = pair.study
    return Merged(
        name=study.name,
        finished=sum(t.slot is not None and t.state in FINISHED for t in study.trials),
        budget=study.attributes.get(BUDGET),
        set_aside=len(pair.united.set_aside),
        twice=pair.united.twice,
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
) -> _Pair:
    here, there = one or other, other or one
    assert here is not None
    assert there is not None
    sides = (
        (Artifacts(file_url(first if one is not None else second)), here),
        (Artifacts(file_url(second if other is not None else first)), there),
    )
    places, above = (
        tuple(look(artifacts, study.name, study.attributes) for artifacts, study in sides)
        for look in (Artifacts.of, Artifacts.above)
    )
    _require_related(name, here, there)
    united = unite(here, there)
    if ARTIFACTS in united.study.attributes:
        # They are copied: those of the new database lie beside it.
        united = replace(united, study=united.study.with_attributes(**{ARTIFACTS: None}))
    study, ids = attached.settled(united.study, here, there)
    return _Pair(replace(united, study=study), places, above, ids)


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


def _write_artifacts(target: Path, pair: _Pair) -> None:
    """Checkpoints under the numbers that their trials have now, and everything else as it was."""
    united, places = pair.united, pair.places
    with Folder(target).filling() as made:
        for place in reversed(places):
            place.copy_to(made)
        for _, _, name in Checkpoints(Folder(made)).all():
            (made / name).unlink()
        # Of several, the newest.
        states = [{n: (g, name) for n, g, name in Checkpoints(p).all()} for p in places]
        for number, sources in united.sources.items():
            source = next((s for s in sources if s.number in states[s.side]), None)
            if source is not None:
                generation, name = states[source.side][source.number]
                content = places[source.side].read(name)
                Checkpoints(Folder(made)).path(number, generation).write_bytes(content)
        for trial in united.set_aside:
            _set_aside(made / _SET_ASIDE, trial)


def _copy_attached(beside: Place, pair: _Pair) -> Iterator[str]:
    """Copy what is attached, of two of one name the first one's; yields what was not there."""
    with tempfile.TemporaryDirectory() as scratch:
        for number, place in enumerate(pair.above):
            folder = Path(scratch) / str(number)
            attached.copy_out(place, pair.ids.keys(), folder)
            for key in sorted(pair.ids):
                if (folder / key).is_file() and attached.copy_in(
                    beside, folder / key, pair.ids[key]
                ):
                    yield pair.ids[key]


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
