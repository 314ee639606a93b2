"""What a search does where memory is short, on a machine that was never probed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
import pytest

from visweep.config import TrainConfig, ViTConfig
from visweep.search.threads import cores
from visweep.training.estimate import pass_memory, usual_memory

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


@pytest.mark.skipif(cores() == 1, reason="one worker is all that a single core gets")
def test_fewer_workers_begin(launcher: Any, short: Path, tmp_path: Path) -> None:
    said, trials = search(launcher, short, tmp_path, "--trials", 3)
    assert "1 worker instead of " in said
    assert [trial.state.name for trial in trials] == ["COMPLETE"] * 3
