"""Attaching again: what was attached before is whole until the new is, whatever fails on the way.

With real databases and places of every kind, and with failures of theirs.
"""

from __future__ import annotations

import secrets
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy as sa
from optuna.artifacts import get_all_artifact_meta
from optuna_dashboard import get_note

from postgres import Server, everywhere
from proxy import Proxy
from visweep.errors import StorageError
from visweep.storage.attached import File, attach
from visweep.storage.backup import file_url
from visweep.storage.check import check
from visweep.storage.engine import Storage
from visweep.storage.folder import Folder
from visweep.storage.merge import merge
from visweep.storage.pack import pack, unpack
from visweep.storage.place import Place
from visweep.storage.remote import Remote
from visweep.storage.turns import turn

BEFORE = {"report.html": b"<p>before", "history.png": b"\x89PNG before"}
AFTER = {"report.html": b"<p>after", "slices.png": b"\x89PNG after"}


@pytest.fixture
def one(url: str, sweep: Any) -> Any:
    return sweep(url)


@pytest.fixture(params=["folder", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    if request.param == "folder":
        return Folder(tmp_path / "artifacts")
    root = str(request.getfixturevalue("s3_url")).removeprefix("s3://")
    files = request.getfixturevalue("s3").files()
    return Remote(files, root, f"s3://{root}", tmp_path / "copies")


def put(
    one: Any, place: Place, contents: dict[str, bytes], storage: Storage | None = None
) -> None:
    files = [File(name, "text/plain", content) for name, content in contents.items()]
    note = f"note of {contents['report.html'].decode()}"
    attach(storage or one.storage, one.study._study_id, place, files, note)


def shown(one: Any, place: Place) -> dict[str, bytes]:
    """What a reader of the study finds."""
    return {m.filename: place.read(m.artifact_id) for m in get_all_artifact_meta(one.study)}


def is_shown(one: Any, place: Place, contents: dict[str, bytes]) -> bool:
    """All of this, a note that speaks of it, and no other file."""
    return is_shown_among_others(one, place, contents) and len(place.names()) == len(contents)


def is_shown_among_others(one: Any, place: Place, contents: dict[str, bytes]) -> bool:
    """The same, but somebody may be writing files that nothing speaks of yet."""
    return shown(
        one, place
    ) == contents and f"note of {contents['report.html'].decode()}" in get_note(one.study)


def refuse_notes(one: Any) -> Callable[[], None]:
    """Make the database fail in the middle of the transaction; returns what mends it."""
    # A connection of the pool may not have heard that a trigger of the same name is gone.
    name = f"refused_{secrets.token_hex(4)}"
    if one.storage.engine.dialect.name == "sqlite":
        make = [
            f"CREATE TRIGGER {name} BEFORE INSERT ON study_system_attributes "
            "WHEN NEW.key LIKE 'dashboard:note%' BEGIN SELECT RAISE(ABORT, 'no notes'); END"
        ]
        drop = [f"DROP TRIGGER {name}"]
    else:
        make = [
            f"CREATE FUNCTION {name}() RETURNS trigger AS "
            "$$ BEGIN RAISE EXCEPTION 'no notes'; END $$ LANGUAGE plpgsql",
            f"CREATE TRIGGER {name} BEFORE INSERT ON study_system_attributes FOR EACH ROW "
            f"WHEN (NEW.key LIKE 'dashboard:note%') EXECUTE FUNCTION {name}()",
        ]
        drop = [f"DROP TRIGGER {name} ON study_system_attributes", f"DROP FUNCTION {name}"]

    def run(statements: Sequence[str]) -> None:
        with one.storage.transaction() as connection:
            for statement in statements:
                connection.execute(sa.text(statement.replace(":", "\\:")))

    run(make)
    return lambda: run(drop)


@everywhere
def test_a_refused_transaction_leaves_what_was(one: Any, place: Place) -> None:
    put(one, place, BEFORE)
    for _ in range(2):
        mend = refuse_notes(one)
        with pytest.raises(StorageError, match="no notes"):
            put(one, place, AFTER)
        assert is_shown(one, place, BEFORE)
        mend()
    put(one, place, AFTER)
    assert is_shown(one, place, AFTER)
    put(one, place, BEFORE)
    assert is_shown(one, place, BEFORE)


@everywhere
def test_the_first_time_that_fails_leaves_nothing(one: Any, place: Place) -> None:
    mend = refuse_notes(one)
    with pytest.raises(StorageError, match="no notes"):
        put(one, place, AFTER)
    assert (shown(one, place), place.names(), get_note(one.study)) == ({}, [], "")
    mend()
    put(one, place, AFTER)
    assert is_shown(one, place, AFTER)


def test_a_locked_database_leaves_what_was(
    one: Any, place: Place, monkeypatch: pytest.MonkeyPatch, open_url: Callable[[str], Storage]
) -> None:
    put(one, place, BEFORE)
    monkeypatch.setattr("visweep.storage.transactions.LOCK_TIMEOUT", 0.2)
    impatient = open_url(one.url)
    other = sqlite3.connect(one.url.removeprefix("sqlite:///"), isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    try:
        with pytest.raises(StorageError, match="locked"):
            put(one, place, AFTER, impatient)
        assert is_shown(one, place, BEFORE)
    finally:
        other.close()
    put(one, place, AFTER, impatient)
    assert is_shown(one, place, AFTER)


@pytest.mark.parametrize("backend", ["postgresql"], indirect=True)
def test_a_read_only_database_leaves_what_was(
    one: Any, place: Place, postgres: Server, open_url: Callable[[str], Storage]
) -> None:
    put(one, place, BEFORE)
    name = one.storage.engine.url.database
    later = open_url(one.url)
    postgres.execute(f'ALTER DATABASE "{name}" SET default_transaction_read_only = on')
    later.engine.dispose()
    try:
        with pytest.raises(StorageError, match="read-only"):
            put(one, place, AFTER, later)
        assert is_shown(one, place, BEFORE)
    finally:
        postgres.execute(f'ALTER DATABASE "{name}" RESET default_transaction_read_only')
    later.engine.dispose()
    put(one, place, AFTER, later)
    assert is_shown(one, place, AFTER)


@pytest.mark.parametrize("backend", ["postgresql"], indirect=True)
def test_what_is_committed_stays_though_the_answer_is_lost(
    one: Any, place: Place, proxy: Proxy, postgres: Server, open_url: Callable[[str], Storage]
) -> None:
    put(one, place, BEFORE)
    through = open_url(one.url.replace(f":{postgres.port}/", f":{proxy.port}/"))
    proxy.lose_commits(1)
    with pytest.raises(StorageError):
        put(one, place, AFTER, through)
    assert proxy.commits_to_lose() == 0
    assert shown(one, place) == AFTER
    assert "note of <p>after" in get_note(one.study)
    put(one, place, BEFORE)
    assert shown(one, place) == BEFORE


class Cutting(Folder):
    """A place while files are written to which the link to the database breaks."""

    def __init__(self, folder: Path, proxy: Proxy) -> None:
        super().__init__(folder)
        self._proxy = proxy

    def keep(self, name: str) -> None:
        super().keep(name)
        self._proxy.cut()
        time.sleep(0.2)
        self._proxy.restore()


@pytest.mark.parametrize("backend", ["postgresql"], indirect=True)
def test_a_link_that_breaks_while_files_are_written_does_not_matter(
    one: Any, tmp_path: Path, proxy: Proxy, postgres: Server, open_url: Callable[[str], Storage]
) -> None:
    place = Folder(tmp_path / "artifacts")
    put(one, place, BEFORE)
    through = open_url(one.url.replace(f":{postgres.port}/", f":{proxy.port}/"))
    put(one, Cutting(place.folder, proxy), AFTER, through)
    assert is_shown(one, place, AFTER)


@pytest.mark.slow
def test_a_place_that_fails_half_way_leaves_what_was(
    one: Any, tmp_path: Path, s3: Any, s3_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server goes away after the first file; nobody waits for it here."""
    root = s3_url.removeprefix("s3://")
    place = Remote(s3.files(), root, s3_url, tmp_path / "copies")
    put(one, place, BEFORE)
    kept = Remote.keep
    written: list[str] = []

    def keep(self: Remote, name: str) -> None:
        if written:
            s3.stop()
        kept(self, name)
        written.append(name)

    monkeypatch.setattr(Remote, "keep", keep)
    monkeypatch.setattr("visweep.storage.waiting.LIMIT", 1.0)
    try:
        with pytest.raises(StorageError):
            put(one, Remote(s3.files(), root, s3_url, tmp_path / "others"), AFTER)
    finally:
        s3.start()
    monkeypatch.undo()
    assert shown(one, place) == BEFORE
    assert "note of <p>before" in get_note(one.study)
    put(one, place, AFTER)
    assert shown(one, place) == AFTER


def test_one_that_was_killed_leaves_nothing_for_good(one: Any, place: Place) -> None:
    """Killed before the transaction, or after it: the next time finds what it left."""
    put(one, place, BEFORE)
    former = {m.filename: m.artifact_id for m in get_all_artifact_meta(one.study)}
    put(one, place, AFTER)
    present = {m.filename: m.artifact_id for m in get_all_artifact_meta(one.study)}
    assert former["report.html"] != present["report.html"]
    # As if killed before it removed the old page.
    place.path(former["report.html"]).write_bytes(b"half")
    place.keep(former["report.html"])
    assert shown(one, place) == AFTER
    put(one, place, BEFORE)
    assert is_shown(one, place, BEFORE)


@pytest.fixture
def child(one: Any, tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Begin a process that attaches; see `attaching_child.py`."""
    begun: list[subprocess.Popen[str]] = []

    def begin(*arguments: str) -> subprocess.Popen[str]:
        script = Path(__file__).with_name("attaching_child.py")
        begun.append(
            subprocess.Popen(
                [sys.executable, script, one.url, tmp_path / "artifacts", *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
        assert said(begun[-1]) == "begins"
        return begun[-1]

    yield begin
    for process in begun:
        process.kill()
        process.communicate()


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def complained(process: subprocess.Popen[str]) -> str:
    """Its next line of errors; none if it ends without."""
    assert process.stderr is not None
    return process.stderr.readline().strip()


def files_of(label: str) -> dict[str, bytes]:
    """As `attaching_child.py` has them."""
    names = ("report.html", "figure-0.png", "figure-1.png", "figure-2.png")
    return {name: f"<p>{label}".encode() for name in names}


@everywhere
@pytest.mark.parametrize("killed", [False, True], ids=["goes on", "killed"])
def test_two_processes_take_turns(
    one: Any, tmp_path: Path, child: Callable[..., subprocess.Popen[str]], killed: bool
) -> None:
    """They would write to the same ids, and of one's page and the other's figures make a mix."""
    place = Folder(tmp_path / "artifacts")
    put(one, place, files_of("before"))
    first = child("first", "half")
    assert said(first) == "half"
    second = child("second")
    assert complained(second).startswith("waiting for another process that attaches to ")
    assert second.poll() is None
    assert is_shown_among_others(one, place, files_of("before"))
    # Workers need not wait.
    one.want(1)
    one.run()
    if killed:
        first.kill()
    else:
        first.communicate("\n")
        assert first.returncode == 0
    assert second.wait(60) == 0
    assert is_shown(one, place, files_of("second"))


@everywhere
@pytest.mark.parametrize("anew", [False, True], ids=["gone", "begun anew"])
def test_a_study_that_is_deleted_meanwhile(
    one: Any, tmp_path: Path, child: Callable[..., subprocess.Popen[str]], sweep: Any, anew: bool
) -> None:
    """By one that writes files, and by one that waits; SQLite gives the new one the same id."""
    first = child("first", "half")
    assert said(first) == "half"
    second = child("second")
    assert complained(second).startswith("waiting for another process")
    optuna.delete_study(study_name="night-run", storage=one.storage)
    after = [sweep(one.url)] if anew else []
    for process in (first, second):
        _, errors = process.communicate("\n")
        assert errors.splitlines()[-1].endswith("StorageError: the study was deleted meanwhile")
        assert "NoResultFound" not in errors
    place = Folder(tmp_path / "artifacts")
    assert place.names() == []
    assert [(shown(a, place), get_note(a.study)) for a in after] == [({}, "")] * len(after)


def test_copies_of_which_one_was_attached_to_again_unite(
    one: Any, file: Path, tmp_path: Path, sweep: Any
) -> None:
    here = Folder(file.parent / "artifacts")
    put(one, here, BEFORE)
    pack(one.url, "night-run", tmp_path / "p.visweep")
    there = tmp_path / "there" / "studies.db"
    there.parent.mkdir()
    unpack(tmp_path / "p.visweep", file_url(there))
    put(one, here, AFTER)
    target = tmp_path / "both" / "studies.db"
    merge(file, there, target)
    both = sweep(file_url(target))
    found = shown(both, Folder(target.parent / "artifacts"))
    assert found == {**BEFORE, **AFTER}
    assert check(both.url) == []
    names = [m.filename for m in get_all_artifact_meta(both.study)]
    assert len(names) == len(set(names)) == 3


@pytest.mark.parametrize("backend", ["postgresql"], indirect=True)
def test_the_command_on_postgresql_and_s3(
    one: Any, s3: Any, s3_url: str, tmp_path: Path, launcher: Any
) -> None:
    """`visweep report --attach`, without a browser: then the page holds the figures."""
    page = tmp_path / "report.html"
    command = ["visweep", "report", "night-run", "-o", page, "--attach", "--storage", one.url]
    here = {**s3.environment, "BROWSER_PATH": f"{tmp_path}/chrome"}
    here["VISWEEP_CACHE"] = f"{tmp_path}/cache"

    def report() -> Any:
        return launcher.run(*command, "--artifacts", s3_url, **here)

    one.want(2)
    one.run()
    done = report()
    assert (done.status, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-2:] == [
        "attached 1 file and a note to night-run",
        f"they lie in {s3_url}, where optuna-dashboard must be configured to look",
    ]
    root = s3_url.removeprefix("s3://")
    place = Remote(s3.files(), root, s3_url, tmp_path / "copies")
    first = page.read_bytes()
    assert shown(one, place) == {"report.html": first}
    assert "1 of 2 trials finished" in get_note(one.study)
    one.run()
    mend = refuse_notes(one)
    failed = report()
    assert failed.status == 1
    assert "no notes" in failed.stderr
    assert shown(one, place) == {"report.html": first}
    assert "1 of 2 trials finished" in get_note(one.study)
    assert page.read_bytes() != first
    mend()
    assert report().status == 0
    assert shown(one, place) == {"report.html": page.read_bytes()}
    assert "2 of 2 trials finished" in get_note(one.study)
    assert len(place.names()) == 1


def test_the_command_says_that_it_waits(
    one: Any, tmp_path: Path, launcher: Any, wait_for: Any
) -> None:
    command = ["visweep", "report", "night-run", "-o", tmp_path / "r.html", "--attach"]
    one.want(1)
    one.run()
    with turn(one.storage, one.study._study_id):
        waiting = launcher.start(*command, "--storage", one.url, BROWSER_PATH=f"{tmp_path}/chrome")
        wait_for(lambda: waiting.stderr, about=waiting)
    assert waiting.wait().status == 0
    folder = Path(one.url.removeprefix("sqlite:///")).parent
    assert waiting.stderr == (
        f"waiting for another process that attaches to a study in {folder}\n"
    )
