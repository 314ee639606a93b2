"""What a search does where memory is short, on a machine that was never probed."""

from __future__ import annotations

from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from rich.console import Console

from visweep.cli.train import Wanted, train_once
from visweep.config import TrainConfig, ViTConfig
from visweep.sealed import read_sealed
from visweep.search import room
from visweep.search.threads import cores
from visweep.training.estimate import pass_memory, step_memory, usual_memory

MODEL = ViTConfig(patch_size=16, embed_dim=16, depth=1, num_heads=2)
TRAIN = TrainConfig(precision="float32", seeds=(0, 1, 2))


@pytest.fixture
def short(tiny_search: Path, tmp_path: Path) -> Path:
    """A search in which the system tells of little more than one replica of the baseline takes."""
    one = pass_memory(MODEL, TRAIN, usual_memory("cpu", "float32", 1), 1)
    (tmp_path / "meminfo").write_text(f"MemAvailable: {1.52 * one / 1024:.0f} kB\n")
    begin = 'if __name__ == "__main__":\n'
    told = (
        "from pathlib import Path",
        "from visweep.search import room",
        f"room._MEMINFO, room._LEAST = Path({str(tmp_path / 'meminfo')!r}), 1",
    )
    script = tmp_path / "short.py"
    lines = begin + "".join(f"    {line}\n" for line in told)
    script.write_text(tiny_search.read_text().replace(begin, lines))
    return script


def search(launcher: Any, script: Path, folder: Path, *arguments: object) -> tuple[str, Any]:
    url = f"sqlite:///{folder}/studies.db"
    small = ("--train-size", 300, "--epochs", 1, "--study", "night", "--storage", url)
    process = launcher.start(script, *small, *arguments).wait()
    assert (process.status, process.stderr) == (0, "")
    return process.stdout, optuna.load_study(study_name="night", storage=url).trials


def test_seeds_that_do_not_fit_together_train_a_few_at_a_time(
    launcher: Any, short: Path, tmp_path: Path
) -> None:
    said, (trial,) = search(launcher, short, tmp_path, "--trials", 1, "--seeds", 3)
    assert "train in parts, fewer seeds or images at a time" in said
    assert trial.user_attrs["replicas_at_once"] == 1
    assert "micro_batch" not in trial.user_attrs
    assert len(trial.user_attrs["val_accuracy_per_seed"]) == 3


def test_a_single_run_takes_its_batches_in_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    half = TRAIN.replace(batch_size=TRAIN.batch_size // 2, seeds=(0,))
    model = MODEL.replace(patch_size=4)
    enough = step_memory(model, half, usual_memory("cpu", "float32", 1), divided=True)
    (tmp_path / "meminfo").write_text(f"MemAvailable: {1.52 * enough / 1024:.0f} kB\n")
    monkeypatch.setattr(room, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(room, "_LEAST", 1)
    shown = StringIO()
    train_once(
        Console(file=shown),
        Wanted(
            study=None,
            trial=None,
            model="vit",
            changes=(
                "patch_size=4",
                f"embed_dim={model.embed_dim}",
                f"depth={model.depth}",
                f"num_heads={model.num_heads}",
                "precision=float32",
            ),
            seed=0,
            epochs=1,
            dataset=None,
            data_dir=None,
            image_size=None,
            train_size=300,
            device="cpu",
            checkpoint=tmp_path / "run",
            train_curves=None,
            storage=None,
        ),
    )
    assert "completed" in shown.getvalue()
    whole = TRAIN.replace(seeds=(0,))
    kept = torch.load(BytesIO(read_sealed(tmp_path / "run")), weights_only=True)
    assert kept["tensors"]["micro_batch"] == whole.batch_size // 2


@pytest.mark.skipif(cores() == 1, reason="one worker is all that a single core gets")
def test_fewer_workers_begin(launcher: Any, short: Path, tmp_path: Path) -> None:
    said, trials = search(launcher, short, tmp_path, "--trials", 3)
    assert "1 worker instead of " in said
    assert [trial.state.name for trial in trials] == ["COMPLETE"] * 3
