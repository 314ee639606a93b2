"""The commands on a PostgreSQL server, and its password, which nothing ever shows."""

from __future__ import annotations

import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote_plus

import pytest

from postgres import PASSWORD, Server

SECRETS = (PASSWORD, quote_plus(PASSWORD), PASSWORD.partition("@")[2])
SMALL = ("--train-size", 300, "--epochs", 2)


def everything(server: Server, url: str) -> str:
    """All that a database holds, as text."""
    name = url.rpartition("/")[2]
    tables = server.execute(
        "SELECT table_name FROM information_schema.tables WHERE table_schema = 'public'", name
    )
    return str([server.execute(f'SELECT * FROM "{table}"', name) for (table,) in tables])


def show_no_password(*texts: str) -> None:
    for text in texts:
        for secret in SECRETS:
            assert secret not in text


@pytest.mark.slow
def test_a_study_from_its_beginning_to_its_end(
    launcher: Any, tiny_search: Path, tmp_path: Path, empty_postgres: str, postgres: Server
) -> None:
    url = empty_postgres

    def run(*arguments: object, **environment: str) -> Any:
        own = {"XDG_DATA_HOME": str(tmp_path / "data"), **environment}
        process = launcher.run(*arguments, cwd=tmp_path, **own)
        assert "Traceback" not in process.stderr, process.stderr
        show_no_password(process.stdout, process.stderr)
        return process

    found = run(tiny_search, "--trials", 2, *SMALL, "--study", "night", "--storage", url)
    assert (found.status, found.stderr) == (0, "")
    assert "--storage postgresql+psycopg://visweep@127.0.0.1:" in found.stdout
    # The same by the environment, and stopped: what to type to go on.
    found = run(
        tiny_search, "--trials", 40, *SMALL, "--study", "night", "--timeout", "2s",
        f"--storage={url}",
    )  # fmt: skip
    assert found.status == 0
    assert "--storage=postgresql+psycopg://visweep@127.0.0.1:" in found.stdout.replace("\n", "")
    found = run(tiny_search, "--trials", 2, *SMALL, "--study", "night", VISWEEP_STORAGE=url)
    assert found.status == 0
    assert "--storage" not in found.stdout
    for arguments in (
        ("status",),
        ("status", "night"),
        ("trials", "night"),
        ("trials", "night", "--csv"),
        ("report", "night"),
        ("train", "--study", "night", "--trial", "0"),
        ("pack", "night", "-o", "night.visweep"),
        ("unpack", "night.visweep", "--study", "copy"),
        ("resume", "copy"),
        ("check",),
        ("check", "copy", "--repair"),
        ("stop", "night"),
    ):
        found = run("visweep", *arguments, "--storage", url)
        assert found.status == 0, found.stderr
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any(path.suffix == ".html" for path in files)
    assert any(path.suffix == ".ckpt" for path in files)
    show_no_password(*(path.read_bytes().decode(errors="replace") for path in files))
    show_no_password(everything(postgres, url))
    assert run("visweep", "delete", "night", "--yes", "--storage", url).status == 0
    assert run("visweep", "delete", "copy", "--yes", "--storage", url).status == 0
    assert postgres.execute("SELECT * FROM visweep_slots", url.rpartition("/")[2]) == []


def family(pid: int) -> list[int]:
    """A process and all that it has started, and they."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has ended
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
    found = [pid]
    for one in found:
        found += [child for child, parent in parents.items() if parent == one]
    return found


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="it reads /proc")
def test_workers_are_started_with_no_password_in_sight(
    launcher: Any, tiny_search: Path, tmp_path: Path, postgres_url: str, wait_for: Any
) -> None:
    process = launcher.start(
        tiny_search, "--trials", 40, *SMALL, "--workers", 2, "--storage", postgres_url,
        cwd=tmp_path, XDG_DATA_HOME=str(tmp_path / "data"),
    )  # fmt: skip
    wait_for(lambda: "[1/40]" in process.stdout, about=process)
    _, *children = family(process.pid)
    shown = [Path(f"/proc/{child}/cmdline").read_bytes().decode() for child in children]
    # Two workers, and the server that they are forked from.
    assert sum("forkserver" in arguments for arguments in shown) >= 3
    show_no_password(*shown, process.stdout, process.stderr)


@pytest.mark.parametrize(
    ("change", "status", "reason"),
    [
        ((quote_plus(PASSWORD), "pa%3Aother"), 1, "password authentication failed for user"),
        (("127.0.0.1", "nowhere.invalid"), 1, "nowhere.invalid"),
        (("/db", "/nope"), 1, "does not exist"),
        (("+psycopg:", "+psycopg2:"), 2, "unknown scheme 'postgresql+psycopg2'"),
        (("postgresql+psycopg:", "mysql:"), 2, "unknown scheme 'mysql'; accepted: sqlite, postgr"),
        ((":", ";"), 2, "is not a URL"),
        (("127.0.0.1:", "127.0.0.1:x"), 2, "is not a URL"),
    ],
    ids=["password", "host", "database", "driver", "scheme", "no URL", "port"],
)
def test_what_is_wrong_is_said_in_one_line(
    launcher: Any, tiny_search: Path, postgres_url: str, change: Any, status: int, reason: str
) -> None:
    url = postgres_url.replace(*change)
    for command in (
        (tiny_search, "--trials", 2, *SMALL, "--storage", url),
        ("visweep", "status", "--storage", url),
        ("visweep", "trials", "night", "--storage", url),
    ):
        begun = time.monotonic()
        found = launcher.run(*command)
        assert time.monotonic() - begun < 10
        assert found.status == status
        assert reason in found.stderr
        assert found.stderr.startswith("error: ")
        assert found.stderr.count("\n") == 1
        show_no_password(found.stderr, found.stdout)
        assert "other" not in found.stderr


def test_a_url_in_the_wrong_place_shows_no_password(launcher: Any, postgres_url: str) -> None:
    found = launcher.run("visweep", "status", "night", postgres_url)
    assert found.status == 2
    show_no_password(found.stderr, found.stdout)
    found = launcher.run("visweep", "stop", postgres_url, "--storage", postgres_url)
    assert found.status == 2
    show_no_password(found.stderr, found.stdout)
