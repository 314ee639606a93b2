"""Commands that only look at studies change nothing, whoever made the database."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import optuna
import pytest

from visweep.training.results import TRAINER_VERSION

OLDER = (
    "DROP INDEX ix_visweep_slots_study_id_uuid",
    *(
        f"ALTER TABLE visweep_slots DROP COLUMN {name}"
        for name in ("uuid", "renewed", "lost", "reached")
    ),
    "UPDATE visweep_version SET version = 1",
)


def changed(path: Path, *statements: str) -> None:
    with closing(sqlite3.connect(path)) as connection:
        for statement in statements:
            connection.execute(statement)
        connection.commit()


@pytest.fixture
def study(finished_study: Path, tmp_path: Path) -> Path:
    """A copy of a finished study, to be changed."""
    shutil.copytree(finished_study, tmp_path / "storage")
    return tmp_path / "storage" / "studies.db"


@pytest.fixture
def run(launcher: Any, study: Path, tmp_path: Path) -> Any:
    def run_it(*arguments: object) -> Any:
        url = f"sqlite:///{study}"
        process = launcher.run("visweep", *arguments, "--storage", url, cwd=tmp_path)
        assert (process.status, process.stderr) == (0, "")
        return process

    return run_it


def test_an_older_database_stays_as_it_is(run: Any, study: Path, snapshot: Any) -> None:
    changed(study, *OLDER)
    before = snapshot(study.parent)
    for command in (
        ("status",),
        ("trials", "night-run"),
        ("report", "night-run", "-o", "page.html"),
        ("check",),
        ("train", "--study", "night-run", "--epochs", 1),
    ):
        run(*command)
        assert snapshot(study.parent) == before, command
    run("resume", "night-run")
    with closing(sqlite3.connect(study)) as connection:
        assert connection.execute("SELECT version FROM visweep_version").fetchone() == (3,)


def test_the_lookup_of_who_judges_changes_nothing(study: Path, snapshot: Any) -> None:
    from visweep.cli.limits import _stored_judge

    changed(study, *OLDER)
    before = snapshot(study.parent)
    assert _stored_judge(f"sqlite:///{study}", "night-run") is None
    assert _stored_judge(f"sqlite:///{study}", "other") is None
    assert snapshot(study.parent) == before


def test_optunas_own_database_stays_as_it_is(run: Any, study: Path, snapshot: Any) -> None:
    study.unlink()
    plain = optuna.storages.RDBStorage(f"sqlite:///{study}")
    optuna.create_study(study_name="theirs", storage=plain).optimize(lambda _: 0.5, n_trials=1)
    plain.remove_session()
    plain.engine.dispose()
    before = snapshot(study.parent)
    assert "50.0 %" in run("trials", "theirs").stdout
    run("report", "theirs", "-o", "page.html")
    assert snapshot(study.parent) == before


def test_another_version_of_the_trainer_is_told(
    run: Any, study: Path, launcher: Any, tiny_search: Path
) -> None:
    older = TRAINER_VERSION - 1
    begun = f"night-run was begun by trainer version {older}, and this is {TRAINER_VERSION}"
    assert begun not in run("status").stdout
    changed(
        study,
        f"UPDATE study_user_attributes SET value_json = '{older}' WHERE key = 'visweep:trainer'",
        "UPDATE trial_user_attributes SET value_json = "
        f"json_set(value_json, '$.trainer', {older}) WHERE key = 'provenance'",
    )
    assert begun not in run("status").stdout, "nothing is left to go on with"
    more = launcher.run(
        tiny_search, "--trials", 4, "--train-size", 300, "--epochs", 2, "--workers", 1,
        "--study", "night-run", "--storage", f"sqlite:///{study}", "--timeout", "0s",
    )  # fmt: skip
    assert "Traceback" not in more.stderr
    said = [line for line in more.stdout.splitlines() if "version of the trainer" in line]
    assert len(said) == 1
    assert (
        f"3 finished trials of this study come from another version of the trainer ({older};"
        in (said[0])
    )
    assert begun in run("status").stdout
