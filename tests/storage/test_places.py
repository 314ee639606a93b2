"""What every place of artifacts promises, whichever machine looks at it."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import fsspec
import pytest

from visweep.errors import CheckpointError
from visweep.sealed import read_sealed, write_sealed
from visweep.storage.artifacts import Checkpoints
from visweep.storage.folder import Folder
from visweep.storage.place import Place
from visweep.storage.remote import Remote

Machine = Callable[[str], Checkpoints]


@pytest.fixture(params=["folder", "local", "memory", "s3"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def root(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> str:
    if kind == "s3":
        return str(request.getfixturevalue("s3_url")).removeprefix("s3://") + "/study"
    return f"/{request.node.name}/study" if kind == "memory" else f"{tmp_path}/place/study"


@pytest.fixture
def files(kind: str, request: pytest.FixtureRequest) -> Any:
    """What the place is made of."""
    if kind == "s3":
        return request.getfixturevalue("s3").files()
    return fsspec.filesystem("local" if kind == "folder" else kind)


@pytest.fixture
def on(kind: str, files: Any, root: str, tmp_path: Path, request: Any) -> Machine:
    """The checkpoints as a machine of this name sees them."""

    @cache
    def look(machine: str) -> Checkpoints:
        if kind == "folder":
            return Checkpoints(Folder(Path(root)))
        # Each remembers by itself what it has listed.
        own = request.getfixturevalue("s3").files() if kind == "s3" else files
        return Checkpoints(Remote(own, root, f"{kind}:{root}", tmp_path / machine))

    return look


def leave(checkpoints: Checkpoints, number: int, generation: int, content: str) -> None:
    """Write and keep a checkpoint, as a worker does after an epoch."""
    write_sealed(checkpoints.path(number, generation), content.encode())
    checkpoints.keep(number, generation)


def content(path: Path) -> str:
    return read_sealed(path).decode()


def names(checkpoints: Checkpoints) -> list[str]:
    return [name for _, _, name in checkpoints.all()]


def test_a_new_trial_inherits_nothing(on: Machine) -> None:
    path = on("here").inherit(3, 1)
    assert path == on("here").path(3, 1)
    assert not path.exists()
    assert on("there").all() == []


def test_another_machine_inherits_the_newest_state_under_its_own_generation(on: Machine) -> None:
    here, there = on("here"), on("there")
    for generation in (2, 9, 10):
        leave(here, 3, generation, f"of generation {generation}")
    leave(here, 4, 11, "of another trial")
    assert content(there.inherit(3, 12)) == "of generation 10"
    assert names(here) == ["trial-00003.g12.ckpt", "trial-00004.g11.ckpt"]
    assert content(there.inherit(3, 12)) == "of generation 10"


def test_every_epoch_replaces_the_one_before(on: Machine) -> None:
    here, there = on("here"), on("there")
    for epoch in range(3):
        leave(here, 0, 1, f"epoch {epoch}")
        assert names(there) == ["trial-00000.g1.ckpt"]
    assert content(there.inherit(0, 2)) == "epoch 2"


def test_a_state_is_inherited_once_and_again(on: Machine) -> None:
    leave(on("a"), 0, 1, "epoch 1")
    for generation, machine in enumerate("bcb", start=2):
        checkpoints = on(machine)
        assert content(checkpoints.inherit(0, generation)) == f"epoch {generation - 1}"
        leave(checkpoints, 0, generation, f"epoch {generation}")
    assert names(on("a")) == ["trial-00000.g4.ckpt"]


def test_what_a_fenced_worker_keeps_later_is_not_read(on: Machine) -> None:
    here, there = on("here"), on("there")
    leave(here, 3, 1, "epoch 4")
    there.inherit(3, 2)
    leave(here, 3, 1, "epoch 5, by the worker that lost the lease")
    assert content(on("elsewhere").inherit(3, 3)) == "epoch 4"
    assert names(here) == ["trial-00003.g3.ckpt"]


def test_what_was_written_and_not_kept_is_not_gone_on_from(on: Machine, kind: str) -> None:
    if kind == "folder":
        return  # what is written is kept
    here = on("here")
    write_sealed(here.path(3, 1), b"epoch 1")
    assert not here.inherit(3, 1).exists()
    leave(here, 3, 1, "epoch 1")
    write_sealed(here.path(3, 1), b"epoch 2")
    assert content(here.inherit(3, 1)) == "epoch 1"
    assert content(here.inherit(3, 2)) == "epoch 1"
    assert not here.path(3, 1).exists()


def test_what_a_killed_worker_was_writing_is_removed(on: Machine, files: Any, root: str) -> None:
    leave(on("here"), 3, 1, "whole")
    for number, token in ((3, "growing"), (4, "growing"), (3, "ab12cd")):
        files.pipe_file(f"{root}/.trial-0000{number}.g1.ckpt.{token}", b"half")
    assert names(on("there")) == ["trial-00003.g1.ckpt"]
    assert content(on("there").inherit(3, 2)) == "whole"
    assert on("here").place.unfinished() == [".trial-00004.g1.ckpt.growing"]


@pytest.mark.parametrize("damage", ["half", "foreign", "empty"])
def test_what_is_damaged_or_foreign_is_refused_by_its_seal(
    on: Machine, files: Any, root: str, damage: str
) -> None:
    leave(on("here"), 3, 1, "the state of a trial")
    name = f"{root}/trial-00003.g1.ckpt"
    whole = bytes(files.cat_file(name))
    changed = {"half": whole[: len(whole) - 9], "foreign": b"PK\x03\x04", "empty": b""}
    files.pipe_file(name, changed[damage])
    there = on("there")
    path = there.inherit(3, 2)
    with pytest.raises(CheckpointError):
        read_sealed(path)
    there.remove(3, 2)
    assert not path.exists()
    assert not on("elsewhere").inherit(3, 3).exists()


def test_thinning_keeps_the_best_and_the_running(on: Machine) -> None:
    here = on("here")
    for number in range(5):
        leave(here, number, 1, str(number))
    leave(here, 0, 2, "0, adopted")
    write_sealed(here.path(9, 9).with_name("notes.txt"), b"the user's own")
    here.place.keep("notes.txt")
    on("there").thin(finished={0, 1, 2, 3}, keep={2})
    left = ["notes.txt", "trial-00002.g1.ckpt", "trial-00004.g1.ckpt"]
    assert here.place.names() == left
    assert here.latest(0) is None
    here.thin(finished={0, 1, 2, 3}, keep={2})
    if here.place.copies is not None:
        # Its own copies are needed for what still runs alone.
        assert here.place.copies.names() == ["notes.txt", "trial-00004.g1.ckpt"]


def test_discarding_leaves_nothing(on: Machine) -> None:
    here = on("here")
    leave(here, 0, 1, "a state")
    on("there").inherit(0, 2)
    on("there").discard()
    assert here.place.names() == []
    assert here.all() == []
    here.discard()
    here.discard()


class TestFiles:
    """The names and contents below the checkpoints."""

    @pytest.fixture
    def place(self, on: Machine) -> Place:
        place = on("here").place
        with place.filling() as made:
            (made / "set-aside" / "deep").mkdir(parents=True)
            (made / "set-aside" / "deep" / "one.json").write_text("1")
            (made / "two").write_text("2")
        return place

    def test_a_filled_place_has_what_it_was_filled_with(self, place: Place, on: Machine) -> None:
        assert on("there").place.names() == ["set-aside/deep/one.json", "two"]
        assert place.read("set-aside/deep/one.json") == b"1"

    def test_it_is_filled_as_a_whole_or_not_at_all(self, on: Machine) -> None:
        place = on("here").place

        class Interrupted(Exception):
            pass

        def fill() -> None:
            with place.filling() as made:
                (made / "one").write_text("1")
                raise Interrupted

        with pytest.raises(Interrupted):
            fill()
        assert place.names() == []
        assert place.unfinished() == []

    def test_all_is_copied_but_what_is_unfinished(
        self, place: Place, files: Any, root: str, tmp_path: Path
    ) -> None:
        files.pipe_file(f"{root}/.two.growing", b"half")
        place.copy_to(tmp_path / "copy")
        found = (p for p in (tmp_path / "copy").rglob("*") if p.is_file())
        copied = {p.relative_to(tmp_path / "copy").as_posix(): p.read_text() for p in found}
        assert copied == {"set-aside/deep/one.json": "1", "two": "2"}

    def test_a_new_name_replaces_what_had_it(self, place: Place) -> None:
        place.rename("two", "set-aside/deep/one.json")
        assert place.names() == ["set-aside/deep/one.json"]
        assert place.read("set-aside/deep/one.json") == b"2"

    def test_what_is_not_there(self, place: Place) -> None:
        place.remove("three")
        with pytest.raises(FileNotFoundError):
            place.read("three")
        with pytest.raises(FileNotFoundError):
            place.rename("three", "four")
        assert not place.fetch("three").exists()

    def test_a_look_whether_it_is_usable_leaves_nothing(self, place: Place) -> None:
        before = place.names()
        place.require_usable()
        assert (place.names(), place.unfinished()) == (before, [])
