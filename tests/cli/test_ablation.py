"""Comparing configurations as a person does: real commands, resumed, extended and refused."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

TINY_TABLE = '''\
"""One change of a tiny ViT.

python sweeps/table.py
"""

from visweep import Ablation, ConvNetConfig, TrainConfig, ViTConfig, run

TABLE = Ablation(
    name="table",
    image_size=32,
    baselines={
        "vit": ViTConfig(patch_size=16, embed_dim=16, depth=1, num_heads=2),
        "convnet": ConvNetConfig(widths=(4,), depths=(1,)),
    },
    changes={"vit": [{"depth": 2}], "convnet": [{"block": "late_relu"}]},
    train=TrainConfig(epochs=2, precision="float32"),
)

if __name__ == "__main__":
    run(TABLE)
'''


@pytest.fixture
def table(tmp_path: Path) -> Path:
    script = tmp_path / "table.py"
    script.write_text(TINY_TABLE)
    return script


def options(folder: Path, *more: object) -> list[object]:
    url = f"sqlite:///{folder}/studies.db"
    return ["--train-size", 300, "--storage", url, "--study", "table", *more]


def trials(folder: Path, study: str) -> list[optuna.trial.FrozenTrial]:
    storage = optuna.storages.RDBStorage(f"sqlite:///{folder}/studies.db")
    try:
        return optuna.load_study(study_name=study, storage=storage).get_trials()
    finally:
        storage.engine.dispose()


@pytest.mark.slow
def test_a_table_is_trained_resumed_and_extended(
    launcher: Any, wait_for: Any, table: Path, tmp_path: Path
) -> None:
    """Killed at some point, by two workers, then run again; then with one more seed."""
    run = [table, *options(tmp_path, "--workers", 2)]
    killed = launcher.start(*run, "--seeds", 2)
    wait_for(lambda: "[2/8]" in killed.stdout, about=killed)
    killed.kill()
    done = launcher.run(*run, "--seeds", 2)
    assert (done.status, done.stderr) == (0, "")
    pairs = [(t.params["arm"], t.params["seed"]) for t in trials(tmp_path, "table")]
    assert len(pairs) == len(set(pairs)) == 8
    assert "no difference shown" in done.stdout or "better" in done.stdout
    more = launcher.run(*run, "--seeds", 3)
    assert (more.status, more.stderr) == (0, "")
    found = trials(tmp_path, "table")
    assert {t.state for t in found} == {TrialState.COMPLETE}
    assert len({(t.params["arm"], t.params["seed"]) for t in found}) == len(found) == 12
    assert re.search(r"depth \d+ → 2 +\S+ % → \S+ %", more.stdout)
    assert "The p-value alone decides a verdict" in more.stdout


def test_what_a_table_would_cost(launcher: Any, table: Path, tmp_path: Path) -> None:
    shown = launcher.run(table, *options(tmp_path, "--seeds", 2, "--dry-run"))
    assert (shown.status, shown.stderr) == (0, "")
    for name in ("vit", "vit: depth=2", "convnet", "convnet: block=late_relu"):
        assert name in shown.stdout
    assert "8 trials: about" in shown.stdout
    assert not (tmp_path / "studies.db").exists()


@pytest.mark.slow
def test_the_winner_of_a_search_is_ablated(
    launcher: Any, finished_study: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(finished_study, folder)
    where = ["--storage", f"sqlite:///{folder}/studies.db"]
    run = ["visweep", "ablate", "night-run", *where, "--workers", 1]
    done = launcher.run(*run, "--to", "neighbours", "--seeds", 2)
    assert (done.status, done.stderr) == (0, "")
    found = trials(folder, "night-run-neighbours")
    assert {t.params["seed"] for t in found} == {1, 2}, "not those that it was chosen by"
    best, *changes = dict.fromkeys(t.params["arm"] for t in found)
    assert all(name.startswith(f"{best}: ") for name in changes)
    changed = {name.partition(": ")[2].partition("=")[0] for name in changes}
    assert changed == {"drop", "patch_size", "depth", "num_heads"}
    taken = launcher.run(*run, "--to", "neighbours", "--name", "night-run").refusal()
    assert "is there already" in taken
    assert "give another --name" in taken


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--to", "base"], "--to: unknown value 'base'; accepted: baseline, neighbours"),
        (["--trial", 9], "--trial: study 'night-run' has no completed trial 9"),
        (["--trial", 0], "--to: trial 0 is the baseline itself; accepted here: neighbours"),
        (["--to", "neighbours", "--device", "gpu"], "--device: "),
    ],
)
def test_bad_input_is_refused(
    launcher: Any, finished_study: Path, tmp_path: Path, snapshot: Any, arguments: list[object],
    said: str,
) -> None:  # fmt: skip
    folder = tmp_path / "copy"
    shutil.copytree(finished_study, folder)
    before = snapshot(folder)
    where = ["--storage", f"sqlite:///{folder}/studies.db"]
    line = launcher.run("visweep", "ablate", "night-run", *where, *arguments).refusal()
    assert said in line
    assert snapshot(folder) == before


def test_a_table_refuses_bad_options(launcher: Any, table: Path, tmp_path: Path) -> None:
    line = launcher.run(table, *options(tmp_path, "--image-size", 40)).refusal()
    assert line.startswith("--image-size: vit cannot take such images: patch_size: 16")
    line = launcher.run(table, *options(tmp_path, "--study", " ")).refusal()
    assert line.startswith("--study: the name is empty")
    assert not (tmp_path / "studies.db").exists()
