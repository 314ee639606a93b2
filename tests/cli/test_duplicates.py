"""`--duplicates` as a user meets it: real commands over a space of four points."""

from __future__ import annotations

import csv
import io
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import FrozenTrial

from visweep.storage.replicates import REPLICATE, configuration, originals, seeds_of

BUDGET = 10
SCRIPT = '''\
"""A search of four points."""

from optuna.distributions import CategoricalDistribution as Choice

from visweep import Recipe, TrainConfig, ViTConfig, run

SEARCH = Recipe(
    name="four",
    baseline=ViTConfig(patch_size=16, embed_dim=16, depth=1, num_heads=2),
    spaces={"four": lambda size: {"patch_size": Choice([8, 16]), "num_heads": Choice([1, 2])}},
    train=TrainConfig(epochs=3, precision="float32"),
)

if __name__ == "__main__":
    run(SEARCH)
'''


@pytest.fixture(scope="session")
def four_points(tmp_path_factory: pytest.TempPathFactory) -> Path:
    script = tmp_path_factory.mktemp("four") / "four_points.py"
    script.write_text(SCRIPT)
    return script


def search(script: Path, file: Path, *options: object) -> list[object]:
    return [
        script, "--trials", BUDGET, "--train-size", 300, "--workers", 1, "--sampler", "random",
        "--pruner", "none", "--study", "four", "--storage", f"sqlite:///{file}", *options,
    ]  # fmt: skip


def trials_of(file: Path) -> list[FrozenTrial]:
    return optuna.load_study(study_name="four", storage=f"sqlite:///{file}").trials


def curves(trials: list[FrozenTrial]) -> list[Any]:
    return [(t.number, t.params, seeds_of(t), t.intermediate_values) for t in trials]


def points(trials: list[FrozenTrial]) -> list[str]:
    return [configuration(t.params, t.distributions) for t in trials]


@pytest.fixture(scope="session")
def replicated(_launcher: Any, four_points: Path, tmp_path_factory: Any) -> Path:
    """A finished search under the default; do not write there."""
    file: Path = tmp_path_factory.mktemp("replicated") / "studies.db"
    done = _launcher.run(*search(four_points, file))
    assert (done.status, done.stderr) == (0, ""), done.stderr
    return file


class TestReplicate:
    def test_what_is_proposed_again_has_new_seeds(self, replicated: Path) -> None:
        trials = trials_of(replicated)
        assert len(trials) == BUDGET
        distinct = len(set(points(trials)))
        assert len(originals(trials)) == BUDGET - distinct >= 6
        assert len({seeds_of(t) for t in trials if seeds_of(t)}) == BUDGET - distinct

    def test_the_list_and_the_table_say_so(self, launcher: Any, replicated: Path) -> None:
        trials = trials_of(replicated)
        first = originals(trials)
        storage = ["--storage", f"sqlite:///{replicated}"]
        listed = launcher.run("visweep", "trials", "four", *storage)
        assert listed.stdout.count("(replicate of ") == len(first)
        shown = launcher.run("visweep", "trials", "four", "--csv", *storage)
        rows = list(csv.DictReader(io.StringIO(shown.stdout)))
        assert [row["replicate_of"] for row in rows] == [
            str(first.get(t.number, "")) for t in trials
        ]
        assert [row["replicate_seeds"] for row in rows] == [
            " ".join(map(str, seeds_of(t))) for t in trials
        ]

    def test_one_is_trained_again_to_its_result(self, launcher: Any, replicated: Path) -> None:
        trial = max((t for t in trials_of(replicated) if seeds_of(t)), key=lambda t: t.number)
        shown = launcher.run(
            "visweep", "train", "--study", "four", "--trial", trial.number, "--storage",
            f"sqlite:///{replicated}",
        )  # fmt: skip
        assert (shown.status, shown.stderr) == (0, "")
        epochs = [line.split(",")[0] for line in shown.stdout.splitlines()[1:-1]]
        assert epochs == [
            f"epoch {epoch}/3: validation accuracy {100 * value:.1f} %"
            for epoch, value in trial.intermediate_values.items()
        ]

    def test_the_report_says_so(self, launcher: Any, replicated: Path, tmp_path: Path) -> None:
        page = tmp_path / "four.html"
        made = launcher.run(
            "visweep", "report", "four", "-o", page, "--storage", f"sqlite:///{replicated}"
        )
        assert (made.status, made.stderr) == (0, "")
        assert "were run again, with new seeds each time" in page.read_text()

    @pytest.mark.slow
    def test_killed_and_adopted_it_keeps_its_seeds(
        self,
        launcher: Any,
        four_points: Path,
        replicated: Path,
        tmp_path: Path,
        wait_for: Callable[..., None],
    ) -> None:
        file = tmp_path / "studies.db"
        command = search(four_points, file)
        for kills in range(1, 4):
            process = launcher.start(*command)
            wait_for(lambda kills=kills: replicates_begun(file) >= kills, about=process)
            process.kill()
        done = launcher.run(*command)
        assert (done.status, done.stderr) == (0, "")
        assert curves(trials_of(file)) == curves(trials_of(replicated))


def replicates_begun(file: Path) -> int:
    if not file.exists():
        return 0
    query = "SELECT count(*) FROM trial_user_attributes WHERE key = ?"
    with closing(sqlite3.connect(file, timeout=30)) as connection:
        tables = "SELECT count(*) FROM sqlite_master WHERE name = 'trial_user_attributes'"
        if not connection.execute(tables).fetchone()[0]:
            return 0
        return int(connection.execute(query, [REPLICATE]).fetchone()[0])


@pytest.mark.slow
def test_run_trains_the_same_again(launcher: Any, four_points: Path, tmp_path: Path) -> None:
    done = launcher.run(*search(four_points, tmp_path / "studies.db", "--duplicates", "run"))
    assert (done.status, done.stderr) == (0, "")
    trials = trials_of(tmp_path / "studies.db")
    pairs = zip(points(trials), trials, strict=True)
    results = {(point, *trial.intermediate_values.values()) for point, trial in pairs}
    assert len(trials) == BUDGET
    assert len(results) == len(set(points(trials))) <= 4
    assert originals(trials) == {}


@pytest.mark.slow
def test_skip_tries_what_is_new_first(launcher: Any, four_points: Path, tmp_path: Path) -> None:
    file = tmp_path / "studies.db"
    done = launcher.run(*search(four_points, file, "--duplicates", "skip"))
    assert (done.status, done.stderr) == (0, "")
    trials = trials_of(file)
    assert len(trials) == BUDGET
    assert len(set(points(trials[:4]))) == 4
    assert sorted(originals(trials)) == list(range(4, BUDGET))
    assert done.stdout.count("all 4 points of the space have been tried") == 1


@pytest.mark.slow
def test_two_workers_train_nothing_twice(launcher: Any, four_points: Path, tmp_path: Path) -> None:
    file = tmp_path / "studies.db"
    done = launcher.run(*search(four_points, file, "--workers", 2, "--duplicates", "skip"))
    assert (done.status, done.stderr) == (0, "")
    trials = trials_of(file)
    trained = {(point, seeds_of(t)) for point, t in zip(points(trials), trials, strict=True)}
    assert len(trained) == len(trials) == BUDGET
    assert len(originals(trials)) == BUDGET - 4
