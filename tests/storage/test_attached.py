"""What is attached to a study: shown by optuna-dashboard, moved and deleted with its study."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.artifacts import FileSystemArtifactStore, get_all_artifact_meta, upload_artifact
from optuna.trial import create_trial
from optuna_dashboard import get_note, save_note

from visweep.cli.studies import delete_study
from visweep.errors import StorageError
from visweep.storage import attached
from visweep.storage.attached import File, attach, with_ours
from visweep.storage.backup import file_url
from visweep.storage.check import check, repair
from visweep.storage.folder import Folder
from visweep.storage.merge import merge
from visweep.storage.opening import open_storage
from visweep.storage.pack import pack, unpack
from visweep.storage.whereabouts import artifact_folder

PAGE = File("report.html", "text/html", b"<!DOCTYPE html><p>the page")
IMAGE = File("history.png", "image/png", b"\x89PNG of the history")
NAME = "night-run"


@pytest.fixture
def one(tmp_path: Path, sweep: Any) -> Any:
    """A study with a finished trial."""
    (tmp_path / "here").mkdir()
    made = sweep(tmp_path / "here" / "studies.db")
    made.want(2)
    made.run()
    return made


def above(one: Any) -> Folder:
    return Folder(artifact_folder(one.url))


def put(one: Any, *files: File, note: str = "our note") -> None:
    attach(one.storage, one.study._study_id, above(one), files, note)


def shown(url: str, name: str = NAME) -> dict[str, bytes | None]:
    """What Optuna says is attached, by the file's name, with what is there under its id."""
    storage = open_storage(url)
    try:
        study = optuna.load_study(study_name=name, storage=storage)
        found: dict[str, bytes | None] = {}
        for meta in get_all_artifact_meta(study):
            assert meta.filename not in found, "it is there twice"
            path = artifact_folder(url) / meta.artifact_id
            found[meta.filename] = path.read_bytes() if path.exists() else None
        return found
    finally:
        storage.close()


def files(url: str) -> list[str]:
    """The files beside the folders of studies."""
    return sorted(p.name for p in artifact_folder(url).iterdir() if p.is_file())


def upload_to_trial(one: Any) -> None:
    """Attach a file to a trial that runs, and end it."""
    lease = one.begin()
    one.train(lease, 4)
    upload(one, "of-trial.txt", b"of the trial", trial=one.storage.get_trial(lease.trial_id))
    one.finish(lease)


def upload(one: Any, name: str, content: bytes, trial: Any = None) -> str:
    """Attach a file as any program that uses Optuna does."""
    source = Path(one.folder.parents[1]) / name
    source.write_bytes(content)
    folder = artifact_folder(one.url)
    folder.mkdir(exist_ok=True)
    found: str = upload_artifact(
        artifact_store=FileSystemArtifactStore(folder),
        file_path=str(source),
        study_or_trial=trial or one.study,
        storage=one.storage,
    )
    return found


# Attaching --------------------------------------------------------------------------------------


def test_what_is_attached_is_what_optuna_finds(one: Any) -> None:
    put(one, PAGE, IMAGE)
    assert shown(one.url) == {"report.html": PAGE.content, "history.png": IMAGE.content}
    kinds = {m.filename: m.mimetype for m in get_all_artifact_meta(one.study)}
    assert kinds == {"report.html": "text/html", "history.png": "image/png"}
    assert "our note" in get_note(one.study)


def test_attaching_again_replaces(one: Any) -> None:
    put(one, PAGE, IMAGE)
    put(one, File("report.html", "text/html", b"newer"), note="newer note")
    assert shown(one.url) == {"report.html": b"newer"}
    assert len(files(one.url)) == 1
    assert "newer note" in get_note(one.study)
    assert "our note" not in get_note(one.study)


def test_what_others_attached_stays(one: Any) -> None:
    upload(one, "theirs.txt", b"theirs")
    save_note(one.study, "What I think of it.")
    put(one, PAGE)
    put(one, IMAGE)
    assert shown(one.url) == {"theirs.txt": b"theirs", "history.png": IMAGE.content}
    note = get_note(one.study)
    assert note.startswith("What I think of it.\n")
    assert note.count("our note") == 1


def test_a_long_note_grows_and_shrinks(one: Any) -> None:
    for length in (5000, 10, 9000):
        put(one, note="ä" * length)
        assert get_note(one.study).count("ä") == length


def test_two_studies_of_a_storage_are_told_apart(one: Any, sweep: Any) -> None:
    other = sweep(one.url, name="other")
    put(one, PAGE)
    put(other, File("report.html", "text/html", b"of the other"))
    assert shown(one.url) == {"report.html": PAGE.content}
    assert shown(one.url, "other") == {"report.html": b"of the other"}


@pytest.mark.parametrize("before", [False, True], ids=["the first time", "again"])
@pytest.mark.parametrize("failing", ["file", "rows"])
def test_a_failure_leaves_what_was(
    one: Any, monkeypatch: pytest.MonkeyPatch, failing: str, before: bool
) -> None:
    if before:
        put(one, PAGE)

    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    if failing == "file":
        written = attached.write_atomically
        calls: list[Path] = []

        def second_fails(path: Path, content: bytes) -> None:
            calls.append(path)
            if len(calls) == 2:
                fail()
            written(path, content)

        monkeypatch.setattr(attached, "write_atomically", second_fails)
    else:
        monkeypatch.setattr(attached, "_write_note", fail)
    with pytest.raises((StorageError, OSError), match="No space left"):
        put(one, PAGE, IMAGE, note="not this")
    assert shown(one.url) == ({"report.html": PAGE.content} if before else {})
    assert len(files(one.url)) == (1 if before else 0)
    assert "not this" not in get_note(one.study)


@given(
    before=st.text("ab \n#*", max_size=30),
    after=st.text("ab \n#*", max_size=30),
    first=st.text("xy \n#", max_size=30),
    second=st.text("xy \n#", max_size=30),
)
def test_a_note_keeps_what_a_person_wrote(
    before: str, after: str, first: str, second: str
) -> None:
    once = with_ours(before, first)
    edited = f"{once}\n{after}" if after.strip() else once
    again = with_ours(edited, second)
    assert with_ours(again, second) == again
    assert again.startswith(before.rstrip()) or not before.strip()
    assert again.rstrip().endswith(after.strip())
    # As if the first had never been written.
    directly = with_ours(before, second)
    assert again == (f"{directly}\n{after.strip(chr(10))}\n" if after.strip() else directly)


# The dashboard ----------------------------------------------------------------------------------


@contextmanager
def dashboard(one: Any) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        sys.executable, "-c", "from optuna_dashboard._cli import main; main()",
        "--host", "127.0.0.1", "--port", str(port), one.url,
        "--artifact-dir", str(artifact_folder(one.url)),
    ]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(30)


def fetch(url: str, method: str = "GET") -> tuple[bytes, str | None]:
    request = urllib.request.Request(url, headers={"Accept-Encoding": "gzip"}, method=method)
    with urllib.request.urlopen(request, timeout=30) as answer:
        return answer.read(), answer.headers["Content-Type"]


def test_the_dashboard_shows_them(one: Any) -> None:
    put(one, PAGE, IMAGE)
    study = one.study._study_id
    with dashboard(one) as address:
        told = json.loads(fetch(f"{address}/api/studies/{study}")[0])
        assert "our note" in told["note"]["body"]
        ids = {a["filename"]: a["artifact_id"] for a in told["artifacts"]}
        assert set(ids) == {"report.html", "history.png"}
        for file in (PAGE, IMAGE):
            served = fetch(f"{address}/artifacts/{study}/{ids[file.name]}")
            assert served == (file.content, file.mimetype)
        # One that a person deletes there stays deleted until it is attached again.
        fetch(f"{address}/api/artifacts/{study}/{ids['report.html']}", "DELETE")
        assert len(files(one.url)) == 1
        assert check(one.url) == []
        put(one, PAGE)
        told = json.loads(fetch(f"{address}/api/studies/{study}")[0])
        assert [a["filename"] for a in told["artifacts"]] == ["report.html"]
        assert told["note"]["version"] == 2


# Moving, checking, deleting ---------------------------------------------------------------------


def moved(one: Any, folder: str, url: str | None = None, name: str | None = None) -> str:
    file = one.folder.parents[2] / f"{folder}.visweep"
    pack(one.url, NAME, file)
    if url is None:
        target = file.parent / folder / "studies.db"
        target.parent.mkdir()
        url = file_url(target)
    unpack(file, url, name)
    return url


def test_a_pack_takes_them_along(one: Any) -> None:
    put(one, PAGE, IMAGE)
    upload(one, "theirs.txt", b"theirs")
    upload_to_trial(one)
    there = moved(one, "there")
    assert shown(there) == {
        "report.html": PAGE.content,
        "history.png": IMAGE.content,
        "theirs.txt": b"theirs",
    }
    assert len(files(there)) == 4
    assert check(there) == []


def test_a_copy_beside_its_original_has_its_own(one: Any) -> None:
    put(one, PAGE)
    upload(one, "theirs.txt", b"theirs")
    moved(one, "file", one.url, "copy")
    assert shown(one.url, "copy") == shown(one.url)
    assert len(files(one.url)) == 3
    storage = open_storage(one.url)
    try:
        copy = optuna.load_study(study_name="copy", storage=storage)
        new = File("report.html", "text/html", b"newer")
        attach(storage, copy._study_id, above(one), [new], "note")
        assert shown(one.url, "copy") == {"report.html": b"newer", "theirs.txt": b"theirs"}
        assert shown(one.url) == {"report.html": PAGE.content, "theirs.txt": b"theirs"}
        delete_study(copy, storage)
    finally:
        storage.close()
    assert shown(one.url) == {"report.html": PAGE.content, "theirs.txt": b"theirs"}
    assert len(files(one.url)) == 2


def test_unpacking_that_fails_leaves_nothing(
    one: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(one, PAGE)
    packed = tmp_path / "packed.visweep"
    pack(one.url, NAME, packed)
    (tmp_path / "there").mkdir()
    there = file_url(tmp_path / "there" / "studies.db")

    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("visweep.storage.rows.write_trials", fail)
    with pytest.raises(StorageError, match="No space left"):
        unpack(packed, there)
    assert files(there) == []


def test_a_hostile_name_goes_nowhere(one: Any, tmp_path: Path) -> None:
    """An id is a file's name, and a pack may come from anywhere."""
    hostile = {"artifact_id": "../../stolen", "filename": "x", "mimetype": "a", "encoding": None}
    one.storage.set_study_system_attr(
        one.study._study_id, "artifacts:../../stolen", json.dumps(hostile)
    )
    (tmp_path / "stolen").write_text("a secret")
    pack(one.url, NAME, tmp_path / "packed.visweep")
    with zipfile.ZipFile(tmp_path / "packed.visweep") as archive:
        assert not any("stolen" in name for name in archive.namelist())
    delete_study(one.study, one.storage)
    assert (tmp_path / "stolen").read_text() == "a secret"


def test_a_merge_has_each_once(one: Any, tmp_path: Path, sweep: Any) -> None:
    put(one, PAGE, note="of the first")
    other = sweep_at(moved(one, "there"), sweep)
    put(other, File("report.html", "text/html", b"of the second"), IMAGE, note="of the second")
    upload(other, "theirs.txt", b"theirs")
    target = tmp_path / "both" / "studies.db"
    merge(path_of(one), path_of(other), target)
    assert shown(file_url(target)) == {
        "report.html": PAGE.content,
        "history.png": IMAGE.content,
        "theirs.txt": b"theirs",
    }
    assert len(files(file_url(target))) == 3
    assert check(file_url(target)) == []
    both = sweep_at(file_url(target), sweep)
    # The pieces of two notes are not mixed: the one that was changed more often stands.
    assert get_note(both.study).count("of the second") == 1
    assert "of the first" not in get_note(both.study)
    put(both, File("report.html", "text/html", b"of both"))
    assert shown(both.url) == {"report.html": b"of both", "theirs.txt": b"theirs"}
    # Merging again changes nothing.
    both.close()
    again = tmp_path / "again" / "studies.db"
    merge(target, path_of(other), again)
    assert shown(file_url(again))["report.html"] == b"of both"


def sweep_at(url: str, sweep: Callable[..., Any]) -> Any:
    return sweep(Path(url.removeprefix("sqlite:///")))


def path_of(one: Any) -> Path:
    return Path(one.url.removeprefix("sqlite:///"))


def test_a_failed_merge_leaves_nothing(
    one: Any, tmp_path: Path, sweep: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(one, PAGE)
    shutil.copytree(path_of(one).parent, tmp_path / "there")

    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("visweep.storage.merge._write_database", fail)
    target = tmp_path / "both" / "studies.db"
    with pytest.raises(StorageError, match="No space left"):
        merge(path_of(one), tmp_path / "there" / "studies.db", target)
    assert files(file_url(target)) == []


def test_a_check_complains_of_a_missing_file_alone(one: Any) -> None:
    put(one, PAGE, IMAGE)
    assert check(one.url) == []
    (artifact_folder(one.url) / files(one.url)[0]).unlink()
    found = check(one.url)
    assert len(found) == 1
    assert not found[0].wrong
    assert found[0].what.endswith("is attached to it, and the file is missing")
    one.storage.close()
    repair(one.url)
    assert check(one.url) == []
    assert len(shown(one.url)) == 1


def test_they_are_deleted_with_their_study(one: Any, sweep: Any) -> None:
    other = sweep(one.url, name="other")
    put(one, PAGE, IMAGE)
    put(other, PAGE)
    upload_to_trial(one)
    one.study.add_trial(create_trial(value=0.1))
    delete_study(one.study, one.storage)
    assert shown(one.url, "other") == {"report.html": PAGE.content}
    assert len(files(one.url)) == 1
