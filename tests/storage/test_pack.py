"""A study as one file: complete, safe to make while the study runs, refused when it is damaged."""

from __future__ import annotations

import hashlib
import json
import random
import threading
import zipfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from optuna.trial import TrialState, create_trial

from visweep.errors import UsageError
from visweep.storage import rows
from visweep.storage.artifacts import Checkpoints, folder_name
from visweep.storage.backup import file_url, frozen_copy
from visweep.storage.folder import Folder
from visweep.storage.opening import open_storage
from visweep.storage.pack import pack, unpack
from visweep.storage.rows import StudyRows
from visweep.storage.specification import BRANCH
from visweep.storage.whereabouts import artifact_folder

NAME = "night-run"


def read(url: str, name: str = NAME) -> StudyRows:
    with frozen_copy(url) as connection:
        return rows.read(connection, name)


def leaseless(study: StudyRows) -> list[Any]:
    return [trial.released() for trial in study.trials]


def artifacts(url: str, name: str = NAME) -> dict[str, bytes]:
    folder = artifact_folder(url) / folder_name(name, read(url, name).attributes)
    files = (p for p in folder.rglob("*") if p.is_file())
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in files}


@pytest.fixture
def here(tmp_path: Path, sweep: Any) -> Any:
    """A study with every kind of trial, beside another one."""
    (tmp_path / "here").mkdir()
    other = sweep(tmp_path / "here" / "studies.db", name="other")
    other.want(1)
    other.run()
    one = sweep(tmp_path / "here" / "studies.db")
    one.want(5)
    one.run(drop=0.1)
    lease = one.begin(0.2)
    one.finish(lease, TrialState.FAIL)
    lease = one.begin(0.3)
    one.train(lease, 2)
    one.finish(lease, TrialState.PRUNED)
    one.study.enqueue_trial({"drop": 0.05})
    one.study.add_trial(create_trial(state=TrialState.COMPLETE, value=0.25))
    one.study.set_user_attr("note", "the user's own")
    one.train(one.begin(0.2), 3, accuracy=float("nan"))
    (one.folder / "set-aside").mkdir()
    (one.folder / "set-aside" / "old.json").write_text("{}")
    (one.folder / ".trial-00004.g1.ckpt.xyz").write_text("half-written")
    return one


@pytest.fixture
def there(tmp_path: Path) -> str:
    """The storage of another machine."""
    (tmp_path / "there").mkdir()
    return file_url(tmp_path / "there" / "studies.db")


@pytest.fixture
def packed(here: Any, tmp_path: Path) -> Path:
    target = tmp_path / "study.visweep"
    pack(here.url, NAME, target)
    return target


def test_a_study_arrives_complete(here: Any, packed: Path, there: str) -> None:
    done = unpack(packed, there)
    before, after = read(here.url), read(there)
    assert (done.study, done.finished) == (NAME, 3)
    assert repr(leaseless(after)) == repr(leaseless(before))  # NaN is not equal to itself
    assert (
        after.with_attributes(**{BRANCH: ""}).parts == before.with_attributes(**{BRANCH: ""}).parts
    )
    expected = artifacts(here.url)
    del expected[".trial-00004.g1.ckpt.xyz"]
    assert artifacts(there) == expected
    assert len(expected) == 4


def test_only_this_study_is_packed(packed: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(packed) as archive:
        archive.extract("study.db", tmp_path)
        assert json.loads(archive.read("specification.json"))["identity"]["seed"] == 0
    with closing(open_storage(file_url(tmp_path / "study.db"))) as storage:
        assert [s.study_name for s in storage.get_all_studies()] == [NAME]
        with storage.reading() as connection:
            count = connection.execute(sa.text("SELECT COUNT(*) FROM trials")).scalar_one()
    assert count == len(storage_trials(packed, tmp_path))
    assert b"other" not in (tmp_path / "study.db").read_bytes()


def storage_trials(packed: Path, tmp_path: Path) -> list[Any]:
    (tmp_path / "again").mkdir()
    url = file_url(tmp_path / "again" / "x.db")
    unpack(packed, url)
    return list(read(url).trials)


def test_the_copy_goes_on(packed: Path, there: str, sweep: Any) -> None:
    unpack(packed, there)
    one = sweep(there)
    lease = one.begin()
    assert lease.adopted
    assert Checkpoints(Folder(one.folder)).latest(lease.number) is not None
    one.train(lease, 4)
    one.finish(lease)
    assert [t.state.name for t in one.trials].count("COMPLETE") == 3


def test_each_copy_is_a_branch_of_its_own(packed: Path, there: str, tmp_path: Path) -> None:
    first = unpack(packed, there).branch
    second = unpack(packed, there, "again").branch
    assert first != second
    assert read(there).attributes[BRANCH] == first
    folders = sorted(p.name for p in artifact_folder(there).iterdir())
    assert len(folders) == 2


def test_a_lease_does_not_hold_in_the_copy(packed: Path, there: str) -> None:
    unpack(packed, there)
    assert [t.slot["owner"] for t in read(there).trials if t.slot] == [None] * 6


def test_a_study_of_that_name_is_refused_and_can_be_renamed(
    here: Any, packed: Path, snapshot: Callable[[Path], Any]
) -> None:
    folder = packed.parent / "here"
    here.close()
    before = snapshot(folder)
    with pytest.raises(UsageError) as refused:
        unpack(packed, here.url)
    assert str(refused.value) == (
        "--study: the storage has a study 'night-run' already; accepted: --study NEWNAME"
    )
    assert snapshot(folder) == before
    unpack(packed, here.url, "morning-run")
    assert len(read(here.url, "morning-run").trials) == len(read(here.url).trials)
    assert len(artifacts(here.url, "morning-run")) == 4


@pytest.fixture
def snapshot() -> Callable[[Path], dict[str, str]]:
    def take(folder: Path) -> dict[str, str]:
        return {
            str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
            for p in folder.rglob("*")
            if p.is_file()
        }

    return take


def refusal(packed: Path, there: str) -> str:
    """The one line with which a file is refused, and nothing is written."""
    with pytest.raises(UsageError) as refused:
        unpack(packed, there)
    folder = packed.parent / "there"
    assert list(folder.iterdir()) == []
    assert "\n" not in str(refused.value)
    return str(refused.value)


def rewritten(packed: Path, change: Callable[[dict[str, bytes]], None]) -> None:
    """The archive with other members."""
    with zipfile.ZipFile(packed) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    change(members)
    with zipfile.ZipFile(packed, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def in_manifest(**changes: Any) -> Callable[[dict[str, bytes]], None]:
    def change(members: dict[str, bytes]) -> None:
        manifest = json.loads(members["manifest.json"])
        members["manifest.json"] = json.dumps({**manifest, **changes}).encode()

    return change


def with_member(name: str) -> Callable[[dict[str, bytes]], None]:
    def change(members: dict[str, bytes]) -> None:
        manifest = json.loads(members["manifest.json"])
        members[name] = b"evil"
        described = {"sha256": hashlib.sha256(b"evil").hexdigest(), "size": 4}
        manifest["members"][name] = described
        members["manifest.json"] = json.dumps(manifest).encode()

    return change


def another_checkpoint(members: dict[str, bytes]) -> None:
    name = next(n for n in members if n.endswith(".ckpt"))
    members[name] = members[name][:-1] + b"?"


def larger_checkpoint(members: dict[str, bytes]) -> None:
    name = next(n for n in members if n.endswith(".ckpt"))
    members[name] += b"?" * 5_000_000


def another_database(members: dict[str, bytes]) -> None:
    members["study.db"] = b"SQLite format 3\0" + b"nothing of the kind" * 50
    manifest = json.loads(members["manifest.json"])
    manifest["members"]["study.db"] = {
        "sha256": hashlib.sha256(members["study.db"]).hexdigest(),
        "size": len(members["study.db"]),
    }
    members["manifest.json"] = json.dumps(manifest).encode()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda m: m.pop("manifest.json"), "is not a study packed by visweep"),
        (in_manifest(format="something"), "is not a study packed by visweep"),
        (in_manifest(version=2), "was packed by a newer visweep"),
        (in_manifest(schema=99), "was packed by a newer visweep"),
        (in_manifest(study="another"), "is damaged (study.db holds other studies)"),
        (in_manifest(members={}), "is damaged (its members are not those that its manifest"),
        (in_manifest(members=[1]), "is damaged"),
        (in_manifest(version="one"), "is damaged"),
        (lambda m: m.pop("study.db"), "is damaged (its members are not those"),
        (lambda m: m.update({"manifest.json": b"{"}), "is damaged"),
        (lambda m: m.update({"manifest.json": b"[]"}), "is not a study packed by visweep"),
        (lambda m: m.update(extra=b""), "is damaged (its members are not those"),
        (another_checkpoint, "is damaged (the checksum of artifacts/trial-0000"),
        (larger_checkpoint, "is damaged (the checksum of artifacts/trial-0000"),
        (another_database, "is damaged"),
        *[
            (with_member(name), "is damaged (it has a member")
            for name in (
                "../evil", "artifacts/../../evil", "/evil", "artifacts//evil", "artifacts/.evil",
                "artifacts/a\\b", "artifacts/c:evil", "evil", "artifacts", "artifacts/x/../y",
            )
        ],
    ],
)  # fmt: skip
def test_what_is_refused(
    packed: Path, there: str, change: Callable[[Any], Any], reason: str
) -> None:
    rewritten(packed, change)
    assert reason in refusal(packed, there)
    assert not list(packed.parent.glob("**/*evil*"))


def test_no_file_and_other_files_are_refused(tmp_path: Path, there: str) -> None:
    assert "FILE: there is no file" in refusal(tmp_path / "missing", there)
    for content in (b"", b"PK", b"PK\x03\x04", b"SQLite format 3\0", b"\0" * 5000):
        (tmp_path / "other").write_bytes(content)
        line = refusal(tmp_path / "other", there)
        assert "is not a study packed by visweep" in line or "is damaged" in line


def test_a_truncated_file_is_refused(packed: Path, there: str) -> None:
    whole = packed.read_bytes()
    for length in [len(whole) * k // 8 for k in range(8)] + [len(whole) - 1]:
        packed.write_bytes(whole[:length])
        line = refusal(packed, there)
        assert "is not a study packed by visweep" in line or "is damaged" in line


def test_a_changed_byte_is_refused_or_does_not_matter(
    here: Any, packed: Path, tmp_path: Path
) -> None:
    whole = packed.read_bytes()
    chosen = random.Random(0)
    expected = repr(leaseless(read(here.url)))
    refused = 0
    for attempt in range(60):
        content = bytearray(whole)
        content[chosen.randrange(len(whole))] ^= 1 << chosen.randrange(8)
        packed.write_bytes(content)
        (tmp_path / str(attempt)).mkdir()
        url = file_url(tmp_path / str(attempt) / "studies.db")
        try:
            unpack(packed, url)
        except UsageError:
            refused += 1
            assert list((tmp_path / str(attempt)).iterdir()) == []
        else:
            assert repr(leaseless(read(url))) == expected
    assert refused > 40


def test_all_or_nothing(
    packed: Path, there: str, monkeypatch: pytest.MonkeyPatch, sweep: Any
) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("a power cut, say")

    sweep(there, name="mine").close()
    monkeypatch.setattr(rows, "write", broken)
    with pytest.raises(RuntimeError):
        unpack(packed, there)
    folder = packed.parent / "there"
    assert sorted(p.name for p in (folder / "artifacts").iterdir()) == []
    with frozen_copy(there) as connection:
        assert rows.names(connection) == ["mine"]


def test_a_study_is_packed_while_it_runs(tmp_path: Path, sweep: Any, there: str) -> None:
    """Whatever moment is packed, a trial's state is never older than what it reported."""
    one = sweep(tmp_path / "studies.db")
    one.want(200)
    rounds, under_way = threading.Semaphore(0), threading.Semaphore(0)
    ended = threading.Event()

    def work() -> None:
        while rounds.acquire() and not ended.is_set():
            for number in range(40):
                one.run()
                if number == 0:
                    under_way.release()

    worker = threading.Thread(target=work)
    worker.start()
    begun = []
    try:
        for count in range(5):
            rounds.release()
            assert under_way.acquire(timeout=60)
            target = tmp_path / f"{count}.visweep"
            pack(one.url, NAME, target)
            (tmp_path / str(count)).mkdir()
            url = file_url(tmp_path / str(count) / "studies.db")
            unpack(target, url)
            study = read(url)
            folder = artifact_folder(url) / folder_name(NAME, study.attributes)
            assert len(study.trials) == 200
            begun.append(sum(bool(trial.curve) for trial in study.trials))
            for trial in study.trials:
                assert list(trial.curve) == list(range(1, len(trial.curve) + 1))
                if trial.curve:
                    state = Checkpoints(Folder(folder)).latest(trial.number)
                    assert state is not None
                    assert int(state.read_bytes().split()[-1]) >= len(trial.curve)
    finally:
        ended.set()
        rounds.release()
        worker.join()
    assert any(number % 40 for number in begun), begun


def test_what_cannot_be_packed(here: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"STUDY: unknown value 'night-rum'.*'night-run'\?"):
        pack(here.url, "night-rum", tmp_path / "x")
    here.storage.create_new_study([here.study.direction], "foreign")
    with pytest.raises(UsageError, match="'foreign' was not made by visweep"):
        pack(here.url, "foreign", tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_a_study_moves_from_a_server_to_a_file_and_back(
    postgres_url: str, there: str, tmp_path: Path, sweep: Any
) -> None:
    one = sweep(postgres_url)
    one.want(3)
    one.run()
    one.train(one.begin(), 2)
    pack(postgres_url, NAME, tmp_path / "study.visweep")
    unpack(tmp_path / "study.visweep", there)
    assert leaseless(read(there)) == leaseless(read(postgres_url))
    assert artifacts(there) == artifacts(postgres_url)
    pack(there, NAME, tmp_path / "back.visweep")
    unpack(tmp_path / "back.visweep", postgres_url, "back")
    assert leaseless(read(postgres_url, "back")) == leaseless(read(postgres_url))
    again = sweep(postgres_url, name="back")
    lease = again.begin()
    again.train(lease, 4)
    again.finish(lease)
    assert again.run() == 2
