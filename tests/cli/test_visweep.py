"""The commands that look at studies, tidy up, and train one configuration again."""

from __future__ import annotations

import csv
import io
import os
import re
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest

import visweep
from visweep.storage.opening import open_storage
from visweep.storage.owner import this_process
from visweep.storage.slots import Slots

SMALL = ("--train-size", "300")


@pytest.fixture
def study(finished_study: Path, tmp_path: Path) -> Path:
    """A copy of a finished study, to be changed."""
    shutil.copytree(finished_study, tmp_path / "storage")
    return tmp_path / "storage" / "studies.db"


@pytest.fixture
def run(launcher: Any, study: Path) -> Any:
    def run_it(*arguments: object, **how: Any) -> Any:
        process = launcher.run("visweep", *arguments, "--storage", f"sqlite:///{study}", **how)
        assert "Traceback" not in process.stderr, process.stderr
        return process

    return run_it


@contextmanager
def held_elsewhere(file: Path) -> Iterator[None]:
    """A fourth trial, run by a worker on another machine."""
    storage = open_storage(f"sqlite:///{file}")
    study = optuna.load_study(study_name="night-run", storage=storage)
    slots = Slots(storage, study._study_id, replace(this_process(), host="workhorse/1/2"))
    slots.set_budget(4)
    lease = slots.take()
    assert lease is not None
    slots.begin(lease, study.trials[0].params, study.trials[0].distributions)
    storage.close()
    yield


def trials_of(file: Path) -> list[optuna.trial.FrozenTrial]:
    storage = optuna.storages.RDBStorage(f"sqlite:///{file}")
    try:
        return optuna.load_study(study_name="night-run", storage=storage).trials
    finally:
        storage.remove_session()
        storage.engine.dispose()


class TestStatus:
    def test_one_line_per_study(self, run: Any) -> None:
        shown = run("status")
        assert (shown.status, shown.stderr) == (0, "")
        row = next(line for line in shown.stdout.splitlines() if "night-run" in line)
        assert "3 of 3" in row
        assert "%" in row
        assert run("status", "night-run").stdout == shown.stdout

    def test_the_names_can_be_read_in_a_narrow_terminal(self, study: Path, launcher: Any) -> None:
        import pty

        master, slave = pty.openpty()
        try:
            process = launcher.run(
                "visweep", "status", "--storage", f"sqlite:///{study}",
                terminal=os.ttyname(slave), COLUMNS="80", TERM="dumb",
            )  # fmt: skip
            shown = os.read(master, 65536).decode()
        finally:
            os.close(master)
            os.close(slave)
        assert process.status == 0
        assert "night-run" in shown
        assert "3 of 3" in shown
        assert max(len(line.rstrip("\r")) for line in shown.split("\n")) <= 80

    def test_nothing_searched_yet(self, launcher: Any, tmp_path: Path) -> None:
        # As installed without a checkout: the default is a folder below the current one.
        library = tmp_path / "library"
        source = Path(visweep.__file__).parent
        shutil.copytree(source, library / "visweep", ignore=shutil.ignore_patterns("__pycache__"))
        elsewhere = tmp_path / "elsewhere"
        elsewhere.mkdir()
        environment = {k: v for k, v in os.environ.items() if not k.startswith("VISWEEP")}
        main = "from visweep.cli import main; main()"

        def visweep_there(*arguments: str) -> subprocess.CompletedProcess[str]:
            return subprocess.run(
                [sys.executable, "-c", main, *arguments],
                cwd=elsewhere,
                env={**environment, "PYTHONPATH": str(library)},
                capture_output=True,
                text=True,
                check=False,
            )

        fresh = visweep_there("status")
        assert (fresh.returncode, fresh.stderr) == (0, "")
        assert "no studies yet; begin one with: python sweeps/vit_search.py" in fresh.stdout
        refused = visweep_there("trials", "night-run")
        assert refused.returncode == 2
        file = elsewhere / "storage" / "studies.db"
        assert refused.stderr == f"error: --storage: there is no file {file}\n"
        assert list(elsewhere.iterdir()) == []

    def test_a_file_that_may_only_be_read(
        self, study: Path, bound_by_permissions: list[str], environment: dict[str, str]
    ) -> None:
        study.chmod(0o444)
        study.parent.chmod(0o555)
        command = [str(Path(sys.executable).with_name("visweep")), "status"]
        shown = subprocess.run(
            [*bound_by_permissions, *command, "--storage", f"sqlite:///{study}"],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        study.parent.chmod(0o755)
        assert (shown.returncode, shown.stderr) == (0, "")
        assert "3 of 3" in shown.stdout
        assert sorted(p.name for p in study.parent.iterdir()) == ["artifacts", "studies.db"]

    def test_who_works_on_it(self, run: Any, study: Path) -> None:
        assert "lease" not in run("status").stdout
        with held_elsewhere(study):
            shown = run("status").stdout
        row = next(line for line in shown.splitlines() if "workhorse" in line)
        assert re.search(rf"workhorse, process {os.getpid()} +3 +0 +renewed \d", row)


class TestTrials:
    def test_as_a_table(self, run: Any, study: Path) -> None:
        shown = run("trials", "night-run")
        assert (shown.status, shown.stderr) == (0, "")
        assert shown.stdout.count("depth=") == 3
        assert "(baseline)" in shown.stdout
        with held_elsewhere(study):
            listed = run("trials", "night-run").stdout.splitlines()
        assert [line.split()[5] for line in listed if "depth=" in line].count("running") == 1
        with closing(sqlite3.connect(study)) as connection:
            connection.execute("UPDATE visweep_slots SET owner = NULL")
            connection.commit()
        left = run("trials", "night-run").stdout.splitlines()
        assert [line.split()[5] for line in left if "depth=" in line].count("interrupted") == 1

    def test_as_comma_separated_values(self, run: Any, study: Path) -> None:
        shown = run("trials", "night-run", "--csv")
        assert (shown.status, shown.stderr) == (0, "")
        rows = list(csv.DictReader(io.StringIO(shown.stdout)))
        trials = trials_of(study)
        assert [int(row["trial"]) for row in rows] == [0, 1, 2]
        for row, trial in zip(rows, trials, strict=True):
            assert row["state"] == trial.state.name
            assert float(row["val_accuracy"]) == trial.value
            assert {name: row[name] for name in trial.params} == {
                name: str(value) for name, value in trial.params.items()
            }
            assert row["ended"] == trial.user_attrs["ended"]
            assert float(row["val_loss"]) == trial.user_attrs["val_loss"]

    def test_a_reader_that_has_seen_enough(self, study: Path, environment: Any) -> None:
        command = f"{Path(sys.executable).with_name('visweep')} trials night-run --csv"
        shown = subprocess.run(
            [
                "bash",
                "-c",
                f"{command} --storage sqlite:///{study} | head -1; exit ${{PIPESTATUS[1]}}",
            ],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        assert shown.stdout.startswith("trial,state,val_accuracy,")
        assert shown.stderr == ""


class TestReport:
    def test_it_writes_one_file(self, run: Any, tmp_path: Path, study: Path) -> None:
        written = run("report", "night-run", cwd=tmp_path)
        assert (written.status, written.stderr) == (0, "")
        assert written.stdout == "wrote night-run.html\n"
        run("report", "night-run", "-o", tmp_path / "another.html")
        for name in ("night-run.html", "another.html"):
            page = (tmp_path / name).read_text()
            assert "visweep train --study night-run --trial" in page
            assert f"--storage sqlite:///{study}" in page


class TestDelete:
    def test_it_asks_first(self, run: Any, study: Path) -> None:
        refused = run("delete", "night-run", stdin="n\n")
        assert (refused.status, refused.stderr) == (0, "")
        assert "Delete 'night-run' with its 3 trials for good? [y/N]" in refused.stdout
        assert "nothing was deleted" in refused.stdout
        assert len(trials_of(study)) == 3

    def test_what_another_machine_holds_is_spared(self, run: Any, study: Path) -> None:
        with held_elsewhere(study):
            refused = run("delete", "night-run", "--yes")
            assert refused.status == 2
            assert f"is being worked on (process {os.getpid()} on workhorse)" in refused.stderr
            assert len(trials_of(study)) == 4
            assert run("delete", "night-run", "--yes", "--force").status == 0

    def test_what_another_machine_held_long_ago_is_not(self, run: Any, study: Path) -> None:
        with held_elsewhere(study), closing(sqlite3.connect(study)) as connection:
            connection.execute("UPDATE visweep_slots SET renewed = renewed - 90")
            connection.commit()
        assert run("delete", "night-run", "--yes").status == 0

    def test_no_answer_is_no(self, run: Any, study: Path) -> None:
        refused = run("delete", "night-run", stdin="")
        assert refused.status == 130
        assert len(trials_of(study)) == 3

    @pytest.mark.parametrize("how", [{"stdin": "y\n"}, {"arguments": ["--yes"]}])
    def test_it_deletes_the_study_its_slots_and_its_checkpoints(
        self, run: Any, study: Path, how: dict[str, Any], tiny_search: Path, launcher: Any
    ) -> None:
        assert len(list(study.parent.glob("artifacts/*/*"))) > 0
        deleted = run("delete", "night-run", *how.pop("arguments", []), **how)
        assert (deleted.status, deleted.stderr) == (0, "")
        assert list(study.parent.glob("artifacts/*")) == []
        with closing(sqlite3.connect(study)) as connection:
            for table in ("studies", "trials", "visweep_slots"):
                assert connection.execute(f"SELECT COUNT(*) FROM {table}").fetchone() == (0,)
        # And it can be begun again under its name, as something else.
        again = launcher.run(
            tiny_search, "--trials", 1, *SMALL, "--epochs", 1, "--study", "night-run",
            "--storage", f"sqlite:///{study}",
        )  # fmt: skip
        assert (again.status, again.stderr) == (0, "")


class TestTrain:
    def test_the_best_of_a_study_is_trained_to_its_result(self, run: Any, study: Path) -> None:
        shown = run("train", "--study", "night-run")
        assert (shown.status, shown.stderr) == (0, "")
        best = max(trials_of(study), key=lambda t: (t.value or 0.0, -t.number))
        lines = shown.stdout.splitlines()
        assert lines[0].startswith("vit on cluttered-digits (cpu): ")
        assert f"depth={best.params['depth']}" in lines[0]
        assert f"validation accuracy {100 * (best.value or 0):.1f} %" in lines[-1]
        assert [line.split(":")[0] for line in lines[1:-1]] == ["epoch 1/2", "epoch 2/2"]

    def test_one_of_its_trials_changed(self, run: Any) -> None:
        shown = run(
            "train", "--study", "night-run", "--trial", 0, "--set", "depth=2", "--set",
            "drop=0.25", "--epochs", 1, "--seed", 11,
        )  # fmt: skip
        assert (shown.status, shown.stderr) == (0, "")
        first, *epochs, last = shown.stdout.splitlines()
        assert "depth=2" in first
        assert "drop=0.25" in first
        assert len(epochs) == 1
        assert last.startswith("completed: ")

    def test_shows_training_accuracy_by_epoch_where_asked_to(self, run: Any) -> None:
        shown = run("train", "--study", "night-run", "--trial", 0, "--train-curves")
        assert (shown.status, shown.stderr) == (0, "")
        _, *epochs, last = shown.stdout.splitlines()
        found = [
            re.search(
                r"training accuracy (\d+\.\d %) \(\d+\.\d % augmented\), training loss", line
            )
            for line in epochs
        ]
        assert len(found) == 2
        assert found[-1] is not None
        assert f"training accuracy {found[-1][1]}, " in last
        plain = run("train", "--study", "night-run", "--trial", 0)
        assert "augmented" not in plain.stdout
        assert (
            plain.stdout.splitlines()[-1].partition(" parameters")[0]
            == (last.partition(" parameters")[0])
        )

    @pytest.mark.parametrize("block", ["pre_norm", "post_norm", "single_residual", "parallel"])
    def test_with_types_of_blocks(self, launcher: Any, tmp_path: Path, block: str) -> None:
        chosen = () if block == "pre_norm" else ("--set", f"block={block}")
        shown = launcher.run(
            "visweep", "train", *SMALL, "--set", "depth=1", *chosen, "--epochs", 1, cwd=tmp_path
        )
        assert (shown.status, shown.stderr) == (0, "")
        first, *_, last = shown.stdout.splitlines()
        assert f"block={block}" in first
        assert last.startswith("completed: ")

    def test_a_configuration_spelled_out_goes_on_from_its_checkpoint(
        self, launcher: Any, tmp_path: Path
    ) -> None:
        command = [
            "visweep", "train", "--model", "convnet", *SMALL, "--set", "widths=[4,8]", "--set",
            "depths=[1,1]", "--checkpoint", tmp_path / "run.ckpt", "--epochs",
        ]  # fmt: skip
        whole = launcher.run(*command, 3, cwd=tmp_path)
        assert (whole.status, whole.stderr) == (0, "")
        assert whole.stdout.startswith("convnet on cluttered-digits (cpu): ")
        again = launcher.run(*command, 3, cwd=tmp_path)
        assert again.stdout.splitlines()[-1] == whole.stdout.splitlines()[-1]
        assert [p.name for p in tmp_path.iterdir()] == ["run.ckpt"]
        other = launcher.run(*command, 2, cwd=tmp_path)
        assert other.status == 1
        (line,) = other.stderr.splitlines()
        assert "belongs to another run" in line
