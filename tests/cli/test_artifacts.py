"""`--artifacts` on the command line: bad places, a folder, an object store, another machine."""

from __future__ import annotations

import json
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from postgres import Server as Postgres
from s3 import BUCKET, KEY, SECRET
from s3 import Server as Store

SMALL = (
    "--train-size", 300, "--epochs", 2, "--study", "night", "--workers", 1, "--pruner", "none",
)  # fmt: skip
GIVEN = "wJalrXUtnFEMI/K7"


def checkpoints(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*/trial-*.ckpt"))


def stored_place(file: Path) -> str:
    query = "SELECT value_json FROM study_user_attributes WHERE key = 'visweep:artifacts'"
    with closing(sqlite3.connect(file)) as connection:
        return str(json.loads(connection.execute(query).fetchone()[0]))


@pytest.fixture
def run(launcher: Any, tiny_search: Path, tmp_path: Path) -> Any:
    """Run a sweep, or a command of visweep."""

    def run_it(command: str, *arguments: object, status: int = 0, **environment: str) -> Any:
        what = (tiny_search,) if command == "sweep" else ("visweep", command)
        more = SMALL if command == "sweep" else ()
        process = launcher.run(*what, *arguments, *more, cwd=tmp_path, **environment)
        assert process.status == status, process.stdout + process.stderr
        return process

    return run_it


BAD = {
    "scheme": ("s4://bucket/x", "unknown scheme 's4'; accepted: a folder, or a URL"),
    "package": ("gs://bucket/x", "pip install gcsfs"),
    "credentials": (f"s3://{KEY}:{GIVEN}@bucket/x", "credentials in the environment"),
    "one process": ("memory://x", "no other process would see memory://"),
    "no folder": ("no/such/place", "create it first"),
    "bucket": ("s3://no-such-bucket/x", "bucket does not exist"),
}


# A check reaches for no artifacts before it has found a study.
REFUSED = [("sweep", case) for case in BAD] + [("check", case) for case in BAD if case != "bucket"]


@pytest.mark.parametrize(("command", "case"), REFUSED)
def test_a_bad_place_is_refused_in_one_line(
    command: str, case: str, run: Any, s3: Store, tmp_path: Path, snapshot: Any
) -> None:
    given, reason = BAD[case]
    url = f"sqlite:///{tmp_path}/studies.db"
    found = run(command, "--storage", url, "--artifacts", given, status=2, **s3.environment)
    (line,) = found.stderr.splitlines()
    assert line.startswith("error: --artifacts: ")
    assert reason in line
    assert GIVEN not in line
    assert KEY not in line
    assert found.stdout == ""
    assert snapshot(tmp_path) == {}


def test_a_folder_that_cannot_be_written(
    bound_by_permissions: list[str], tiny_search: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    place = tmp_path / "place"
    place.mkdir(mode=0o555)
    url = f"sqlite:///{tmp_path}/studies.db"
    command = [sys.executable, str(tiny_search), *map(str, SMALL), "--storage", url]
    found = subprocess.run(
        [*bound_by_permissions, *command, "--artifacts", str(place)],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert found.returncode == 2
    assert found.stderr == f"error: --artifacts: the folder {place} cannot be written\n"
    assert [path.name for path in tmp_path.iterdir()] == ["place"]


@pytest.mark.slow
def test_a_folder_is_found_again_by_every_command(run: Any, tmp_path: Path) -> None:
    here = ("--storage", f"sqlite:///{tmp_path}/here.db")
    run("sweep", "--trials", 2, *here, "--artifacts", "share")
    first = checkpoints(tmp_path / "share")
    assert first == ["trial-00000.g1.ckpt", "trial-00001.g1.ckpt"]
    assert not (tmp_path / "artifacts").exists()
    # Neither the script nor any command has to be told again.
    run("sweep", "--trials", 3, *here)
    assert len(checkpoints(tmp_path / "share")) == 3
    (state,) = tmp_path.glob("share/*/trial-00000.g1.ckpt")
    state.write_bytes(state.read_bytes()[:-1])
    found = run("check", "night", *here, status=1)
    assert f"{state}: damaged or half-written" in found.stdout
    run("check", "night", "--repair", *here)
    assert state.with_name(f"{state.name}.damaged").exists()
    # A pack takes the artifacts along, and a merge reads them where they are.
    run("pack", "night", *here)
    there = ("--storage", f"sqlite:///{tmp_path}/there.db")
    run("unpack", "night.visweep", *there, "--artifacts", f"{tmp_path}/other")
    assert checkpoints(tmp_path / "other") == ["trial-00001.g1.ckpt", "trial-00002.g1.ckpt"]
    (tmp_path / "merged").mkdir()
    run("merge", "here.db", "there.db", "-o", "merged/c.db")
    assert len(checkpoints(tmp_path / "merged" / "artifacts")) == 2
    # Mounted elsewhere, it is found where this machine has it, and nowhere else.
    (tmp_path / "share").rename(tmp_path / "mounted")
    for command in ("worker", "check", "delete", "pack"):
        study = ("--study", "night") if command == "worker" else ("night",)
        # What cannot be looked at is no fault.
        status = 0 if command == "check" else 2
        yes = ("--yes",) if command == "delete" else ()
        found = run(command, *study, *yes, *here, status=status)
        assert "'night' keeps its artifacts in" in found.stdout + found.stderr
        assert not (tmp_path / "share").exists()
    run("check", "night", *here, "--artifacts", "mounted")
    run("delete", "night", "--yes", *here, "--artifacts", "mounted")
    assert list((tmp_path / "mounted").iterdir()) == []


def test_another_place_from_now_on_is_remembered_and_only_a_workers_own_is_not(
    run: Any, tmp_path: Path
) -> None:
    url = ("--storage", f"sqlite:///{tmp_path}/studies.db")
    run("sweep", "--trials", 1, *url)
    assert len(checkpoints(tmp_path / "artifacts")) == 1
    run("sweep", "--trials", 2, *url, "--artifacts", "a")
    run("sweep", "--trials", 3, *url)
    assert len(checkpoints(tmp_path / "a")) == 2
    run("resume", "night", *url, "--artifacts", "b")
    assert stored_place(tmp_path / "studies.db") == str(tmp_path / "b")
    # What one machine mounts elsewhere is its own business; and nothing is made where it is not.
    found = run("worker", *url, "--study", "night", "--artifacts", "c", status=2)
    assert found.stderr == f"error: --artifacts: there is no folder {tmp_path}/c\n"
    (tmp_path / "c").mkdir()
    run("worker", *url, "--study", "night", "--artifacts", "c")
    assert stored_place(tmp_path / "studies.db") == str(tmp_path / "b")


def test_a_server_without_a_common_place_is_told_of_once(
    run: Any, empty_postgres: str, tmp_path: Path
) -> None:
    said = "on this machine alone"
    own = {"XDG_DATA_HOME": str(tmp_path / "data")}
    found = run("sweep", "--trials", 1, "--storage", empty_postgres, **own)
    assert found.stdout.count(said) == 1
    assert "unless --artifacts names a place that all see" in found.stdout
    assert len(checkpoints(tmp_path / "data" / "visweep" / "artifacts")) == 1
    assert not (tmp_path / "storage").exists()
    found = run("sweep", "--trials", 1, "--storage", empty_postgres, **own)
    assert said not in found.stdout
    found = run("sweep", "--trials", 2, "--storage", empty_postgres, "--artifacts", "a", **own)
    assert said not in found.stdout
    found = run("sweep", "--trials", 1, "--storage", f"sqlite:///{tmp_path}/x.db", **own)
    assert said not in found.stdout


@pytest.mark.slow
def test_a_killed_search_goes_on_on_another_machine_through_an_object_store(
    launcher: Any,
    tiny_search: Path,
    tmp_path: Path,
    empty_postgres: str,
    postgres: Postgres,
    s3: Store,
    s3_url: str,
    run: Any,
    wait_for: Any,
) -> None:
    url = ("--storage", empty_postgres)
    here = {**s3.environment, "VISWEEP_CACHE": f"{tmp_path}/here"}
    there = {**s3.environment, "VISWEEP_CACHE": f"{tmp_path}/there"}
    long = ("--train-size", 2000, "--epochs", 12, "--study", "night", "--pruner", "none")
    first = launcher.start(
        tiny_search, "--trials", 3, *long, "--workers", 2, *url, "--artifacts", s3_url, **here
    )
    name = empty_postgres.rpartition("/")[2]
    reported = "SELECT count(*) FROM trial_intermediate_values"

    def begun() -> bool:
        tables = postgres.execute("SELECT 1 FROM pg_tables WHERE tablename = 'trials'", name)
        return bool(tables) and postgres.execute(reported, name)[0][0] >= 6

    wait_for(begun, about=first)
    first.signal(signal.SIGKILL)
    first.wait()
    said = run("worker", *url, "--workers", 2, **there)
    trials = run("trials", "night", "--csv", *url).stdout
    assert trials.count("COMPLETE") == 3
    adopted = postgres.execute("SELECT count(*) FROM visweep_slots WHERE generation > 1", name)
    assert adopted[0][0] >= 1
    assert "begins anew" not in said.stdout
    kept = [path.rpartition("/")[2] for path in s3.files().find(s3_url)]
    assert len(kept) == 3
    assert all(name.startswith("trial-") for name in kept)
    # What is checked, packed and deleted is there, too.
    assert "nothing is wrong" in run("check", "night", *url, **there).stdout
    run("pack", "night", *url, **there)
    run("unpack", "night.visweep", "--storage", f"sqlite:///{tmp_path}/copy.db")
    assert checkpoints(tmp_path / "artifacts") == sorted(kept)
    other = f"s3://{BUCKET}/{s3_url.rpartition('/')[2]}-copy"
    again = ("--storage", f"sqlite:///{tmp_path}/again.db")
    run("unpack", "night.visweep", *again, "--artifacts", other, **there)
    assert "nothing is wrong" in run("check", "night", *again, **there).stdout
    assert len(s3.files().find(other)) == 3
    tables = postgres.execute("SELECT * FROM study_user_attributes", name)
    assert s3_url in str(tables)
    run("delete", "night", "--yes", *url, **there)
    assert s3.files().find(s3_url) == []
    for text in (said.stdout, said.stderr, first.stdout, first.stderr, str(tables)):
        assert SECRET not in text
        assert KEY not in text
