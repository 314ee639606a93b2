"""`visweep shift`: trained models see shifted images, and the study keeps what came of it."""

from __future__ import annotations

import io
import re
import shutil
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import FrozenTrial
from rich.console import Console

TABLE = '''\
"""A tiny ViT and a tiny ConvNet, one change each."""

from visweep import Ablation, ConvNetConfig, TrainConfig, ViTConfig, run

TABLE = Ablation(
    name="table",
    image_size=16,
    baselines={
        "vit": ViTConfig(patch_size=4, embed_dim=8, depth=1, num_heads=2),
        "convnet": ConvNetConfig(widths=(4, 8), depths=(1, 1)),
    },
    changes={"vit": [{"depth": 2}], "convnet": [{"block": "late_relu"}]},
    train=TrainConfig(epochs=2, precision="float32"),
)

if __name__ == "__main__":
    run(TABLE)
'''


def trials(folder: Path, study: str) -> list[FrozenTrial]:
    storage = optuna.storages.RDBStorage(f"sqlite:///{folder}/studies.db")
    try:
        return optuna.load_study(study_name=study, storage=storage).get_trials()
    finally:
        storage.engine.dispose()


@pytest.fixture
def study(finished_study: Path, tmp_path: Path) -> Path:
    """A copy of a finished search, to be written to."""
    folder = tmp_path / "copy"
    shutil.copytree(finished_study, folder)
    return folder


def where(folder: Path) -> list[object]:
    return ["--storage", f"sqlite:///{folder}/studies.db"]


def test_the_best_of_a_search_is_measured_and_reported(launcher: Any, study: Path) -> None:
    before = trials(study, "night-run")
    best = max(before, key=lambda t: (t.value, -t.number))
    shown = launcher.run("visweep", "shift", "night-run", *where(study))
    assert (shown.status, shown.stderr) == (0, "")
    after = trials(study, "night-run")
    for old, new in zip(before, after, strict=True):
        assert (old.state, old.values, old.params) == (new.state, new.values, new.params)
        kept = dict(new.user_attrs)
        assert ("shift" in kept) == (new.number == best.number)
        kept.pop("shift", None)
        assert kept == old.user_attrs
    measured = after[best.number].user_attrs["shift"]
    assert measured["pixels"] == list(range(9))
    assert measured["accuracy"][0] == pytest.approx(best.value, abs=0.002)
    assert measured["invariance"][0] == 0.0
    assert set(measured["strides"].values()) == {best.params["patch_size"]}
    assert f"trial {best.number}" in shown.stdout
    row = re.search(r"accuracy +(\S+ %)", shown.stdout)
    assert row is not None
    assert row[1] == f"{100 * measured['accuracy'][0]:.1f} %"
    # Measured again, it takes the other's place.
    again = launcher.run("visweep", "shift", "night-run", *where(study), "--trial", best.number)
    assert again.stdout == shown.stdout
    assert trials(study, "night-run")[best.number].user_attrs["shift"] == measured
    page = study / "page.html"
    made = launcher.run("visweep", "report", "night-run", *where(study), "-o", page)
    assert (made.status, made.stderr) == (0, "")
    assert "Shift robustness" in page.read_text()
    assert launcher.run("visweep", "check", *where(study)).status == 0


def test_a_terminal_shows_how_far_it_is_and_a_pipe_does_not(
    study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from visweep.cli import shift as command

    monkeypatch.setattr(torch, "set_num_threads", lambda threads: None)
    wanted = command.Wanted(
        study="night-run",
        trials=(),
        data_dir=None,
        device="cpu",
        storage=f"sqlite:///{study}/studies.db",
        artifacts=None,
    )
    screens = {}
    for is_terminal in (True, False):
        screen = io.StringIO()
        console = Console(file=screen, width=80, force_terminal=is_terminal, color_system=None)
        command.shift(console, wanted)
        screens[is_terminal] = screen.getvalue()
    shown, plain = screens[True], screens[False]
    told = [int(percent) for percent in re.findall(r"(\d+)%", shown)]
    assert told == sorted(told)
    assert told[-1] == 100
    assert "\x1b[2K" in shown.partition("accuracy, and error")[0], "it is taken away again"
    assert "\x1b" not in plain
    assert re.search(r"\d%", plain) is None


@pytest.mark.slow
def test_of_arms_the_best_of_each_baseline_is_measured(launcher: Any, tmp_path: Path) -> None:
    script = tmp_path / "table.py"
    script.write_text(TABLE)
    made = launcher.run(
        script, "--train-size", 300, "--seeds", 2, "--workers", 1, "--study", "table",
        *where(tmp_path),
    )  # fmt: skip
    assert (made.status, made.stderr) == (0, "")
    shown = launcher.run("visweep", "shift", "table", *where(tmp_path))
    assert (shown.status, shown.stderr) == (0, "")
    found = trials(tmp_path, "table")
    measured = [t for t in found if "shift" in t.user_attrs]
    assert [t.params["arm"] for t in measured] == ["vit", "convnet"]
    for trial in measured:
        alike = [t.value for t in found if t.params["arm"] == trial.params["arm"]]
        assert trial.value == max(alike)
        assert trial.user_attrs["shift"]["accuracy"][0] == pytest.approx(trial.value, abs=0.002)
        assert f"{trial.params['arm']} (trial {trial.number})" in shown.stdout
    vit, convnet = (t.user_attrs["shift"] for t in measured)
    assert list(vit["equivariance"]) == ["embedding", "block 1"]
    assert list(convnet["equivariance"]) == ["stem", "block 1", "block 2"]
    assert convnet["equivariance"]["stem"] < 1e-4 < vit["equivariance"]["embedding"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["night-run", "--trial", 9], "--trial: the weights of trial 9 are not in "),
        (["night-ran"], "STUDY: unknown value 'night-ran'"),
        (["night-run", "--device", "gpu"], "--device: "),
    ],
)
def test_bad_input_is_refused(
    launcher: Any, study: Path, snapshot: Any, arguments: list[object], said: str
) -> None:
    before = snapshot(study)
    line = launcher.run("visweep", "shift", *arguments, *where(study)).refusal()
    assert said in line
    assert snapshot(study) == before


def test_weights_that_are_elsewhere_are_asked_for(
    launcher: Any, study: Path, tmp_path: Path
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    line = launcher.run(
        "visweep", "shift", "night-run", *where(study), "--artifacts", empty
    ).refusal()
    assert "STUDY: no weights of 'night-run' are in " in line
    assert line.endswith("--artifacts tells where they are")
