"""What is refused before anything is written: one line, and the folder stays as it was."""

from __future__ import annotations

import hashlib
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import optuna
import pytest

from visweep.errors import StorageError, VisweepError
from visweep.storage.opening import open_storage
from visweep.storage.overview import overview
from visweep.storage.url import apart, bare, parse, sqlite_path, without_password


def snapshot(folder: Path) -> dict[str, str]:
    """Every file below a folder, with its content."""
    return {
        str(path.relative_to(folder)): (
            hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        )
        for path in folder.rglob("*")
    }


def refusal(call: Callable[[], object], folder: Path) -> str:
    """The one line with which a call is refused, leaving the folder as it was."""
    before = snapshot(folder)
    with pytest.raises(VisweepError) as refused:
        call()
    assert snapshot(folder) == before
    assert "\n" not in str(refused.value)
    return f"{type(refused.value).__name__}: {refused.value}"


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("studies.db", "'studies.db' is not a URL; accepted: sqlite:///FILE or "),
        ("", "'' is not a URL"),
        ("oracle://host/db", "unknown scheme 'oracle'; accepted: sqlite, postgresql"),
        ("sqllite:///x.db", "unknown scheme 'sqllite'; accepted: sqlite"),
        ("sqlite://", "a study must outlive the command; accepted: sqlite:///FILE"),
        ("sqlite://x.db", "'sqlite://x.db' has two slashes; accepted: sqlite:///FILE, with three"),
        ("sqlite://a/x.db", "'sqlite://a/x.db' has two slashes; accepted: sqlite:///FILE"),
        ("sqlite:///:memory:", "a study must outlive the command"),
        ("sqlite:///missing/x.db", "there is no folder missing; create it first"),
    ],
)
@pytest.mark.parametrize("opened", [open_storage, overview], ids=["to write", "to look"])
def test_refused_urls(
    opened: Any, url: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if opened is overview and "missing" in url:
        reason = "there is no file missing/x.db"
    line = refusal(lambda: opened(url), tmp_path)
    assert line.startswith("UsageError: --storage: ")
    assert reason in line


WITHOUT_DRIVER = """
import sys
from visweep.errors import UsageError
from visweep.storage.opening import open_storage
from visweep.storage.overview import overview

sys.modules["psycopg"] = None
for function in (open_storage, overview):
    try:
        function("postgresql://ada:secret@localhost/db")
    except UsageError as e:
        print(e)
"""


def test_a_driver_that_is_not_installed_is_named() -> None:
    said = subprocess.run(
        [sys.executable, "-c", WITHOUT_DRIVER], capture_output=True, text=True, check=True
    ).stdout
    line = (
        "--storage: the driver for PostgreSQL is not installed; run: "
        "pip install 'visweep[postgresql]'"
    )
    assert said.splitlines() == [line] * 2


def as_folder(path: Path) -> None:
    path.mkdir()


def as_text(path: Path) -> None:
    path.write_text("study,accuracy\nmine,0.85\n")


def as_nothing(path: Path) -> None:
    path.touch()


def as_another_programs(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE bookmarks (url TEXT)")
        connection.commit()


def _changed(path: Path, statement: str) -> None:
    open_storage(f"sqlite:///{path}").close()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(statement)
        connection.commit()


def as_newer_visweeps(path: Path) -> None:
    _changed(path, "UPDATE visweep_version SET version = 99")


def as_newer_optunas(path: Path) -> None:
    _changed(path, "UPDATE alembic_version SET version_num = 'v9.0.0.a'")


def as_older_optunas(path: Path) -> None:
    _changed(path, "UPDATE alembic_version SET version_num = 'v3.0.0.a'")


def as_newer_optunas_own(path: Path) -> None:
    """Never touched by visweep, and not in the log mode that we set."""
    storage = optuna.storages.RDBStorage(f"sqlite:///{path}")
    storage.remove_session()
    storage.engine.dispose()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("UPDATE alembic_version SET version_num = 'v9.0.0.a'")
        connection.commit()


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (as_folder, "is not a file"),
        (as_text, "is not an SQLite file"),
        (as_nothing, "is empty (0 bytes); delete it if it never held a study"),
        (as_another_programs, "is another program's database"),
        (as_newer_visweeps, "made by a newer visweep (schema 99, this one knows 3)"),
        (as_newer_optunas, "was made by a newer Optuna (schema v9.0.0.a); upgrade optuna"),
        (as_newer_optunas_own, "was made by a newer Optuna (schema v9.0.0.a); upgrade optuna"),
        (as_older_optunas, "older Optuna (schema v3.0.0.a); run: optuna storage upgrade "),
    ],
)
@pytest.mark.parametrize("must_exist", [False, True])
def test_refused_files(
    tmp_path: Path, make: Callable[[Path], None], reason: str, must_exist: bool
) -> None:
    path = tmp_path / "studies.db"
    make(path)
    line = refusal(lambda: open_storage(f"sqlite:///{path}", must_exist=must_exist), tmp_path)
    assert line.startswith("UsageError: --storage: ")
    assert reason in line


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (as_folder, "is not a file"),
        (as_text, "is not an SQLite file"),
        (as_nothing, "is empty (0 bytes)"),
        (as_another_programs, "holds no studies"),
    ],
)
def test_files_that_hold_nothing_to_look_at(
    tmp_path: Path, make: Callable[[Path], None], reason: str
) -> None:
    path = tmp_path / "studies.db"
    make(path)
    line = refusal(lambda: overview(f"sqlite:///{path}"), tmp_path)
    assert line.startswith("UsageError: --storage: ")
    assert reason in line


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "studies.db"
    open_storage(f"sqlite:///{path}").close()
    path.write_bytes(path.read_bytes()[: 4096 * 2])
    with pytest.raises(StorageError, match="malformed"):
        open_storage(f"sqlite:///{path}")
    with pytest.raises(StorageError, match="malformed"):
        overview(f"sqlite:///{path}")


def test_a_missing_file_is_not_made_for_a_look(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/studies.db"
    line = refusal(lambda: open_storage(url, must_exist=True), tmp_path)
    assert line == f"UsageError: --storage: there is no file {tmp_path}/studies.db"


def test_a_folder_below_a_file_does_not_exist_even_for_root(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    line = refusal(lambda: open_storage(f"sqlite:///{tmp_path}/file/x.db"), tmp_path)
    assert line == f"UsageError: --storage: there is no folder {tmp_path}/file; create it first"


LOOK_AND_OPEN = """
import sys
from visweep.errors import VisweepError
from visweep.storage.opening import open_storage
from visweep.storage.overview import overview

for url in sys.argv[1:]:
    for function in (overview, open_storage):
        try:
            print(function(url))
        except VisweepError as e:
            print(type(e).__name__, e)
"""


@pytest.mark.parametrize("read_only_folder", [True, False])
def test_what_may_not_be_written(
    tmp_path: Path, bound_by_permissions: list[str], empty_database: Path, read_only_folder: bool
) -> None:
    folder = tmp_path / "storage"
    folder.mkdir()
    file = folder / "studies.db"
    shutil.copyfile(empty_database, file)
    file.chmod(0o444)
    folder.chmod(0o555 if read_only_folder else 0o755)
    before = snapshot(folder)
    urls = [f"sqlite:///{file}", *([f"sqlite:///{folder}/new.db"] if read_only_folder else [])]
    result = subprocess.run(
        [*bound_by_permissions, sys.executable, "-c", LOOK_AND_OPEN, *urls],
        capture_output=True,
        text=True,
        check=False,
    )
    folder.chmod(0o755)
    assert result.stderr == ""
    assert snapshot(folder) == before
    unwritable = f"the folder {folder}" if read_only_folder else str(file)
    assert (
        result.stdout.splitlines()
        == [
            "[]",
            f"UsageError --storage: {unwritable} cannot be written",
            f"UsageError --storage: there is no file {folder}/new.db",
            f"UsageError --storage: the folder {folder} cannot be written",
        ][: 2 * len(urls)]
    )


SECRET = "pa:ss@w/rd"


@pytest.mark.parametrize(
    "url",
    [
        "postgresql+psycopg://ada:pa%3Ass%40w%2Frd@db:5432/visweep",
        "postgresql://ada:pa%3Ass%40w%2Frd@db/visweep?sslmode=require",
        "postgres://db/visweep?user=ada&password=pa%3Ass%40w%2Frd&sslpassword=pa%3Ass%40w%2Frd",
    ],
)
def test_a_password_is_not_shown(url: str) -> None:
    parsed = parse(url)
    assert parsed.drivername == "postgresql+psycopg"
    assert sqlite_path(parsed) is None
    bare_url, environment = apart(parsed)
    assert environment == {"PGPASSWORD": SECRET}
    for shown in (without_password(parsed), bare_url, bare(url), bare(f"--storage={url}")):
        assert "pa%3A" not in shown
        assert SECRET not in shown
    assert parse(bare_url).host == "db"
    assert parse(bare_url).query.get("sslmode") == parsed.query.get("sslmode")


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("plain", "plain"),
        ("--storage", "--storage"),
        ("sqlite:///a b.db", "sqlite:///a b.db"),
        ("postgresql://ada@db/visweep", "postgresql://ada@db/visweep"),
        ("postgresql://ada:secret@db/visweep", "postgresql://ada@db/visweep"),
        ("--storage=postgresql://ada:secret@db/v", "--storage=postgresql://ada@db/v"),
        ("postgresql://ada:sec@ret@db:port/v", "postgresql://ada:***@db:port/v"),
    ],
)
def test_an_argument_loses_its_password_and_nothing_else(given: str, shown: str) -> None:
    assert bare(given) == shown


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://ada:secret@db:port/visweep",
        "postgresql:/ada:secret@db/visweep",
        "oracle://ada:secret@db/visweep",
        "postgresql+psycopg2://ada:secret@db/visweep",
        "ada:secret@db/visweep",
    ],
)
def test_a_refused_url_shows_no_password(url: str, tmp_path: Path) -> None:
    line = refusal(lambda: open_storage(url), tmp_path)
    assert line.startswith("UsageError: --storage: ")
    assert "secret" not in line


def test_without_a_password_there_is_nothing_to_supply() -> None:
    url = "postgresql+psycopg://ada@db/visweep?passfile=%2Fhome%2Fada%2Fkey"
    assert apart(parse(url)) == (url, {})
