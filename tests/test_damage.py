"""Damage under a study, as a person meets it: a clear line, and whatever was finished is kept."""

from __future__ import annotations

import re
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import FrozenTrial

from searches import NAME, MakeSearch, Search
from stub_study import StubStudy
from visweep.storage.transactions import LOCK_TIMEOUT

PAGE = 4096


def one_line(process: Any, status: int) -> str:
    """What it said on its only line of errors, without whom it is from."""
    assert process.status == status, (process.stdout, process.stderr)
    (line,) = process.stderr.splitlines()
    assert line.startswith("error: ")
    return str(line.removeprefix("error: "))


def resumed(mine: Search) -> Any:
    return mine.launcher.run("visweep", "resume", NAME, "--storage", mine.url, "--workers", 1)


def killed_in_mid_trial(mine: Search, trials: int, number: int, wait_for: Any) -> None:
    process = mine.start(trials)
    wait_for(lambda: mine.is_in_mid_trial(4, number), about=process)
    process.kill()


def result(trial: FrozenTrial) -> tuple[Any, ...]:
    return trial.state, trial.params, trial.intermediate_values, trial.value


@pytest.mark.slow
class TestCheckpoints:
    @staticmethod
    def deleted(path: Path, _: Path) -> str:
        path.unlink()
        return "its checkpoint is missing"

    @staticmethod
    def truncated(path: Path, _: Path) -> str:
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
        return f"{path}: damaged or half-written (its checksum does not match)"

    @staticmethod
    def another_trials(path: Path, another: Path) -> str:
        shutil.copyfile(another, path)
        return f"{path}: belongs to another run (its model differs)"

    @pytest.mark.parametrize("damage", ["deleted", "truncated", "another_trials"])
    def test_a_trial_begins_anew_and_says_why(
        self, search: MakeSearch, wait_for: Any, damage: str
    ) -> None:
        options = ("--epochs", 16, "--pruner", "none")
        undisturbed = search(*options, folder="undisturbed").finish(2)
        mine = search(*options)
        (first,) = mine.finish(1)
        killed_in_mid_trial(mine, 2, 1, wait_for)
        path, another = mine.checkpoint(1), mine.checkpoint(0)
        assert path is not None
        assert another is not None
        reason = getattr(self, damage)(path, another)
        process = resumed(mine)
        assert (process.status, process.stderr) == (0, "")
        # It is named as who goes on with it would.
        said = " ".join(process.stdout.split()).replace(".g2.ckpt", ".g1.ckpt")
        assert f"trial 1 begins anew: {reason}" in said
        trials = mine.trials()
        assert trials[0] == first
        assert [result(t) for t in trials] == [result(t) for t in undisturbed]

    def test_a_folder_that_is_deleted_under_a_worker(
        self, search: MakeSearch, wait_for: Any
    ) -> None:
        mine = search("--epochs", 40, "--pruner", "none")
        process = mine.start(2)
        wait_for(lambda: mine.is_in_mid_trial(4, 1), about=process)
        shutil.rmtree(mine.file.parent / "artifacts", ignore_errors=True)
        process.wait()
        assert (process.status, process.stderr) == (0, "")
        assert mine.states() == ["COMPLETE", "COMPLETE"]
        assert [len(t.intermediate_values) for t in mine.trials()] == [40, 40]


def page_of(path: Path, table: str) -> int:
    """Where the first page of a table lies in its file."""
    with closing(sqlite3.connect(path)) as connection:
        query = "SELECT rootpage FROM sqlite_master WHERE name = ?"
        return (int(connection.execute(query, (table,)).fetchone()[0]) - 1) * PAGE


class TestTheDatabase:
    @pytest.fixture
    def mine(self, search: MakeSearch) -> Search:
        made = search("--epochs", 3, "--pruner", "none")
        made.finish(3)
        shutil.copyfile(made.file, made.file.with_name("copy"))
        return made

    def require_recovery(self, mine: Search) -> None:
        """Put the copy back, as the error says, and go on."""
        mine.file.with_name("copy").replace(mine.file)
        for left in mine.file.parent.glob("studies.db-*"):
            left.unlink()
        before = mine.trials()
        after = mine.finish(4)
        assert after[:3] == before[:3]
        assert [t.state.name for t in after] == ["COMPLETE"] * 4

    @pytest.mark.parametrize("part", [0, 0.5])
    def test_cut_off_it_is_not_taken_for_a_new_one(self, mine: Search, part: float) -> None:
        content = mine.file.read_bytes()
        cut = content[: int(part * len(content))]
        mine.file.write_bytes(cut)
        reason = "malformed" if cut else "is empty (0 bytes); it held studies"
        expected = 1 if cut else 2
        assert reason in one_line(mine.run(4), expected)
        assert reason in one_line(resumed(mine), expected)
        looks = ["status"], ["trials", NAME], ["report", NAME], ["worker"]
        for command in looks:
            process = mine.launcher.run("visweep", *command, "--storage", mine.url)
            assert reason in one_line(process, expected)
        assert mine.file.read_bytes() == cut
        self.require_recovery(mine)

    @pytest.mark.slow
    @pytest.mark.parametrize("part", [0, 0.5])
    def test_cut_off_after_a_kill_it_is_whole_or_refused(
        self, search: MakeSearch, wait_for: Any, part: float
    ) -> None:
        """A log is left, in which some or all of its pages may be."""
        mine = search("--epochs", 40, "--pruner", "none")
        mine.finish(1)
        killed_in_mid_trial(mine, 3, 1, wait_for)
        assert mine.file.with_name("studies.db-wal").stat().st_size > 0
        before = mine.trials()
        content = mine.file.read_bytes()
        mine.file.write_bytes(content[: int(part * len(content))])
        process = resumed(mine)
        if process.status:
            assert re.search("malformed|is empty", one_line(process, 2 - (part > 0)))
            return
        after = mine.trials()
        assert after[0] == before[0]
        assert [t.state.name for t in after] == ["COMPLETE"] * 3
        found = mine.launcher.run("visweep", "check", "--storage", mine.url)
        assert (found.status, found.stdout) == (0, "nothing is wrong\n")

    @pytest.mark.slow
    @pytest.mark.parametrize(
        "table",
        [
            "studies", "study_user_attributes", "trials", "trial_user_attributes", "trial_params",
            "trial_intermediate_values", "trial_values", "visweep_slots", "visweep_version",
        ],
    )  # fmt: skip
    def test_a_page_of_it_is_overwritten(self, mine: Search, table: str) -> None:
        with mine.file.open("r+b") as file:
            file.seek(page_of(mine.file, table))
            file.write(b"\xa5" * PAGE)
        assert "malformed" in one_line(resumed(mine), 1)
        assert "malformed" in one_line(mine.run(4), 1)
        found = mine.launcher.run("visweep", "check", "--storage", mine.url)
        assert found.status == 1
        assert "repair: none; go back to a copy, or save what can still be read" in found.stdout
        self.require_recovery(mine)


def test_a_lease_whose_owner_cannot_be_read(search: MakeSearch) -> None:
    mine = search("--epochs", 3, "--pruner", "none")
    before = mine.finish(1)
    with closing(sqlite3.connect(mine.file)) as connection:
        connection.execute("INSERT INTO trials (number, study_id, state) VALUES (1, 1, 'WAITING')")
        connection.execute(
            "INSERT INTO visweep_slots (trial_id, study_id, owner) VALUES (2, 1, '{half')"
        )
        connection.commit()
    expected = "trial 1: its lease has an owner that cannot be read; repair with: visweep check"
    assert one_line(mine.run(2), 1).startswith(expected)
    assert one_line(resumed(mine), 1).startswith(expected)
    mended = mine.launcher.run("visweep", "check", "--repair", "--storage", mine.url)
    assert mended.stdout.endswith("repaired, nothing is wrong\n")
    after = mine.finish(2)
    assert after[:1] == before
    assert [t.state.name for t in after] == ["COMPLETE"] * 2


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with room for four megabytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    options = ["-t", "tmpfs", "-o", "size=4m", "visweep-test", folder]
    try:
        subprocess.run(["mount", *options], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as e:
        pytest.skip(f"nothing can be mounted here: {getattr(e, 'stderr', e)}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_disk_that_becomes_full(small_disk: Path, search: MakeSearch, workers: int) -> None:
    mine = search("--epochs", 3, "--pruner", "none", folder=small_disk.name)
    before = mine.finish(2)
    ballast = small_disk / "ballast"
    free = shutil.disk_usage(small_disk).free
    ballast.write_bytes(bytes(free - 300_000))
    said = one_line(mine.run(60, "--workers", workers), 1)
    full = rf"No space left on device: {small_disk}/\S+; every finished trial is kept"
    assert re.fullmatch(
        rf"{full}|storage {mine.url}: (database or disk is full|disk I/O error)", said
    )
    ballast.unlink()
    kept = mine.trials()
    assert kept[:2] == before
    assert all("traceback" not in t.user_attrs for t in kept)
    done = sum(t.state.name == "COMPLETE" for t in kept)
    after = mine.finish(done + 3)
    finished = [t for t in after if t.state.name == "COMPLETE"]
    assert len(finished) == done + 3
    assert finished[:2] == before


@pytest.mark.slow
@pytest.mark.parametrize("what", ["artifacts", "all of it"])
def test_a_folder_that_becomes_read_only(
    search: MakeSearch, bound_by_permissions: list[str], wait_for: Any, what: str
) -> None:
    mine = search("--epochs", 2000, "--pruner", "none")
    arguments = ["--trials", 2, "--storage", mine.url, "--workers", 1, *mine.options]
    process = mine.launcher.start_apart(
        *bound_by_permissions, sys.executable, mine.script, *arguments
    )
    wait_for(lambda: mine.is_in_mid_trial(4), about=process)
    done = len(mine.trials()[0].intermediate_values)
    folders = [mine.file.parent / "artifacts", *mine.file.parent.glob("artifacts/*")]
    if what != "artifacts":
        folders.append(mine.file.parent)
    for folder in folders:
        folder.chmod(0o555)
    process.wait()
    said = one_line(process, 1)
    assert re.fullmatch(r"Permission denied: /\S+; every finished trial is kept", said)
    for folder in folders:
        folder.chmod(0o755)
    (trial, _) = mine.trials()
    assert len(trial.intermediate_values) >= done
    process = mine.launcher.start("visweep", "resume", NAME, "--storage", mine.url, "--workers", 1)
    wait_for(lambda: mine.is_in_mid_trial(done + 20), about=process)
    assert "begins anew" not in process.stdout


@pytest.mark.slow
def test_a_writer_that_holds_the_lock_for_longer_than_anybody_waits(
    launcher: Any, tmp_path: Path, wait_for: Callable[..., None]
) -> None:
    lease = 24.0
    file = tmp_path / "studies.db"
    mine = StubStudy(launcher, f"sqlite:///{file}", tmp_path, 40, 4, 0.05, lease)
    for _ in range(3):
        mine.start()
    for process in mine.processes:
        wait_for(lambda p=process: p.pid in mine.workers(), about=process)
    with closing(sqlite3.connect(file, timeout=30, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        before = len(mine.lines())
        time.sleep(max(lease, LOCK_TIMEOUT) + 5)
        assert len(mine.lines()) - before <= 2 * len(mine.processes)
        other.execute("ROLLBACK")
    for process in mine.processes:
        process.wait()
        assert (process.status, process.stdout) == (0, "done\n")
        waiting, back = process.stderr.splitlines()
        assert waiting == f"waiting for the storage {mine.url}: database is locked"
        assert back.startswith("the storage is back after ")
    mine.require_exact()
    # Nobody was taken for dead because nobody could show that they live.
    assert {generation for _, generation, _ in mine.trained()} == {1}
