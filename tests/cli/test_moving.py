"""Moving a study between machines, as a person does it: real commands in real processes."""

from __future__ import annotations

import csv
import io
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

NAME = "night-run"


def searched(launcher: Any, script: Path, folder: Path, trials: int, **arguments: Any) -> Any:
    folder.mkdir(exist_ok=True)
    return launcher.run(
        script, "--trials", trials, "--train-size", 300, "--epochs", 2,
        "--study", NAME, "--storage", f"sqlite:///{folder}/studies.db", **arguments,
    )  # fmt: skip


def visweep(launcher: Any, *arguments: object, folder: Path, status: int = 0) -> Any:
    """Run a command on the storage of one machine."""
    process = launcher.run(
        "visweep", *arguments, cwd=folder, VISWEEP_STORAGE=f"sqlite:///{folder}/studies.db"
    )
    assert process.status == status, (process.status, process.stdout, process.stderr)
    if status == 0:
        assert process.stderr == ""
    return process


def table(launcher: Any, folder: Path) -> list[dict[str, str]]:
    listed = visweep(launcher, "trials", NAME, "--csv", folder=folder).stdout
    return list(csv.DictReader(io.StringIO(listed)))


def points(rows: list[dict[str, str]]) -> list[tuple[str, ...]]:
    return [tuple(row[n] for n in ("drop", "patch_size", "depth", "num_heads")) for row in rows]


@pytest.fixture
def here(finished_study: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished_study, tmp_path / "here"))


@pytest.fixture
def there(tmp_path: Path) -> Path:
    (tmp_path / "there").mkdir()
    return tmp_path / "there"


@pytest.mark.slow
def test_two_machines_go_on_apart_and_are_united(
    launcher: Any, tiny_search: Path, here: Path, there: Path
) -> None:
    packed = visweep(launcher, "pack", NAME, folder=here).stdout
    assert f"packed {NAME} into {NAME}.visweep (" in packed
    unpacked = visweep(launcher, "unpack", here / f"{NAME}.visweep", folder=there).stdout
    assert f"unpacked {NAME} with 3 finished trials; it goes on as branch " in unpacked
    assert table(launcher, there) == table(launcher, here)
    for folder in (here, there):
        process = searched(launcher, tiny_search, folder, 5)
        assert (process.status, process.stderr) == (0, "")
    ours, theirs = points(table(launcher, here)), points(table(launcher, there))
    assert ours[:3] == theirs[:3]
    assert not set(ours[3:]) & set(theirs[3:])
    merged = here.parent / "merged"
    said = visweep(
        launcher, "merge", here / "studies.db", there / "studies.db", "-o", merged / "studies.db",
        folder=here,
    ).stdout  # fmt: skip
    assert said.splitlines() == [
        f"{NAME}: 7 of 7 trials finished", f"wrote {merged / 'studies.db'}",
    ]  # fmt: skip
    assert points(table(launcher, merged)) == [*ours, *theirs[3:]]
    assert visweep(launcher, "check", folder=merged).stdout == "nothing is wrong\n"
    # The same command goes on, also from a state that was carried over.
    process = searched(launcher, tiny_search, merged, 8)
    assert (process.status, process.stderr) == (0, "")
    assert len(table(launcher, merged)) == 8
    best = visweep(launcher, "train", "--study", NAME, folder=merged).stdout
    assert "%" in best


ARMS = '''\
"""Two widths of a tiny ViT."""

from visweep import Ablation, TrainConfig, ViTConfig, run

TABLE = Ablation(
    name="table",
    image_size=16,
    baselines={"vit": ViTConfig(patch_size=4, embed_dim=8, depth=1, num_heads=2)},
    changes={"vit": [{"embed_dim": 16}]},
    train=TrainConfig(epochs=1, precision="float32"),
)

if __name__ == "__main__":
    run(TABLE)
'''


@pytest.mark.slow
def test_two_machines_train_the_same_arms_and_are_united(
    launcher: Any, tmp_path: Path, there: Path
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    (tmp_path / "table.py").write_text(ARMS)

    def compare(folder: Path, seeds: int) -> str:
        process = launcher.run(
            tmp_path / "table.py", "--train-size", 300, "--seeds", seeds, "--workers", 1,
            "--study", "table", "--storage", f"sqlite:///{folder}/studies.db",
        )  # fmt: skip
        assert (process.status, process.stderr) == (0, "")
        return str(process.stdout)

    compare(here, 1)
    visweep(launcher, "pack", "table", "-o", there / "a.visweep", folder=here)
    said = visweep(launcher, "unpack", there / "a.visweep", folder=there).stdout
    assert "with the same runs: what two copies train both counts once" in said
    compare(here, 2)
    compare(there, 3)
    merged = tmp_path / "merged"
    said = visweep(
        launcher, "merge", here / "studies.db", there / "studies.db", "-o", merged / "studies.db",
        folder=here,
    ).stdout  # fmt: skip
    assert said.splitlines()[0] == (
        "table: 6 of 6 trials finished; 2 runs trained twice, once in each file: one of them "
        "counts, the other is kept in set-aside"
    )
    assert visweep(launcher, "check", folder=merged).stdout == "nothing is wrong\n"
    again = compare(merged, 3)
    assert "trial 6" not in again
    rows = visweep(launcher, "trials", "table", "--csv", folder=merged).stdout
    trained = [(row["arm"], row["seed"]) for row in csv.DictReader(io.StringIO(rows))]
    assert len(trained) == len(set(trained)) == 6
    compare(merged, 4)
    assert (
        len(visweep(launcher, "trials", "table", "--csv", folder=merged).stdout.splitlines()) == 9
    )


def test_a_study_goes_on_where_it_was_as_another_copy_would_not(
    launcher: Any, tiny_search: Path, here: Path, there: Path, tmp_path: Path
) -> None:
    """A copy proposes points of its own; what it was copied from does as if it never was."""
    (tmp_path / "untouched").mkdir()
    untouched = Path(shutil.copytree(here, tmp_path / "untouched", dirs_exist_ok=True))
    visweep(launcher, "pack", NAME, "-o", there / "a.visweep", folder=here)
    visweep(launcher, "unpack", there / "a.visweep", folder=there)
    for folder in (here, there, untouched):
        assert searched(launcher, tiny_search, folder, 4).status == 0
    packed, branch, alone = (points(table(launcher, f)) for f in (here, there, untouched))
    assert packed == alone
    assert branch[3] != alone[3]


def test_check_finds_and_repairs(launcher: Any, here: Path) -> None:
    assert visweep(launcher, "check", folder=here).stdout == "nothing is wrong\n"
    assert visweep(launcher, "check", NAME, folder=here).stdout == "nothing is wrong\n"
    with closing(sqlite3.connect(here / "studies.db")) as connection:
        connection.execute("DELETE FROM trial_values WHERE trial_id = 1")
        connection.commit()
    before = (here / "studies.db").read_bytes()
    found = visweep(launcher, "check", folder=here, status=1)
    assert found.stdout.splitlines() == [
        f"wrong: study '{NAME}', trial 0: is finished and has no value; "
        "repair: given that of its last epoch",
        "found 1 fault; repair with: visweep check --repair",
    ]
    assert found.stderr == ""
    assert (here / "studies.db").read_bytes() == before
    repaired = visweep(launcher, "check", NAME, "--repair", folder=here).stdout
    assert f"backup: {here / 'studies.db.backup-1'}" in repaired
    assert repaired.endswith("repaired, nothing is wrong\n")
    assert visweep(launcher, "check", folder=here).stdout == "nothing is wrong\n"


def test_what_is_stale_is_not_wrong(launcher: Any, here: Path) -> None:
    budget = "UPDATE study_user_attributes SET value_json = '9' WHERE key = 'visweep:budget'"
    with closing(sqlite3.connect(here / "studies.db")) as connection:
        connection.execute(budget)
        connection.commit()
    *found, last = visweep(launcher, "check", folder=here).stdout.splitlines()
    assert {line.partition(":")[0] for line in found} == {"stale"}
    assert last == "nothing is wrong; what is stale does no harm"


def test_what_cannot_be_repaired_is_said(launcher: Any, here: Path) -> None:
    with closing(sqlite3.connect(here / "studies.db")) as connection:
        connection.execute("UPDATE trials SET number = 0 WHERE number = 1")
        connection.commit()
    for options in ([], ["--repair"]):
        found = visweep(launcher, "check", *options, folder=here, status=1)
        assert "repair: none; go back to a copy, or save what can still be read" in found.stdout


CASES = {
    "no such study": (["pack", "nigth-run"], "STUDY 'nigth-run' 'night-run'?"),
    "no folder for the pack": (["pack", NAME, "-o", "no/x"], "--output no folder no"),
    "a folder as the pack": (["pack", NAME, "-o", "."], "--output . folder"),
    "no storage": (["pack", NAME, "--storage", "sqlite:///no.db"], "--storage no.db"),
    "no such pack": (["unpack", "no.visweep"], "FILE no.visweep"),
    "not a pack": (["unpack", "text.visweep"], "FILE text.visweep not a study packed"),
    "an empty name": (["unpack", "study.visweep", "--study", " "], "--study empty"),
    "a study that is there": (["unpack", "study.visweep"], "--study 'night-run' NEWNAME"),
    "half a pack": (["unpack", "half.visweep"], "FILE half.visweep damaged"),
    "no such database": (["merge", "no.db", "studies.db", "-o", "c.db"], "no.db"),
    "no database": (["merge", "text.visweep", "studies.db", "-o", "c.db"], "text.visweep SQLite"),
    "a server": (
        ["merge", "postgresql://ada:secret@db/x", "studies.db", "-o", "c.db"],
        "postgresql:/ada:***@db/x SQLite pack",
    ),
    "no target": (["merge", "studies.db", "studies.db"], "--output"),
    "a target that is there": (
        ["merge", "studies.db", "studies.db", "-o", "studies.db"],
        "--output studies.db another",
    ),
    "artifacts that are there": (
        ["merge", "studies.db", "studies.db", "-o", "c.db"],
        "--output artifacts c/c.db",
    ),
    "nothing to check": (["check", "nigth-run"], "STUDY 'nigth-run' 'night-run'?"),
    "nothing to check in": (["check", "--storage", "sqlite:///no.db"], "--storage no.db"),
    "a truncated study": (["check", "--storage", "sqlite:///empty.db"], "--storage 0 bytes held"),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_input(case: str, launcher: Any, here: Path, snapshot: Any) -> None:
    arguments, words = CASES[case]
    (here / "text.visweep").write_text("not a pack")
    (here / "empty.db").touch()
    visweep(launcher, "pack", NAME, "-o", "study.visweep", folder=here)
    content = (here / "study.visweep").read_bytes()
    (here / "half.visweep").write_bytes(content[: len(content) // 2])
    before = snapshot(here)
    line = visweep(launcher, *arguments, folder=here, status=2).refusal()
    assert [word for word in words.split() if word not in line] == [], line
    assert snapshot(here) == before


TORCHLESS = """
import sys
from visweep.cli.app import app
from visweep.cli.errors import call

for arguments in (
    ["pack", "night-run", "-o", "study.visweep"],
    ["unpack", "study.visweep", "--study", "again"],
    ["check"],
    ["merge", "studies.db", "studies.db", "-o", "merged/c.db"],
):
    try:
        call(app, arguments)
    except SystemExit as e:
        assert not e.code, arguments
loaded = {"torch", "torchvision", "sklearn", "scipy"} & set(sys.modules)
assert not loaded, loaded
"""


def test_nothing_waits_for_torch(here: Path, environment: dict[str, str]) -> None:
    (here / "merged").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", TORCHLESS],
        cwd=here,
        env={**environment, "VISWEEP_STORAGE": f"sqlite:///{here}/studies.db"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
