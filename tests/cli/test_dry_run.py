"""A dry run tells what each size of model would cost, also where one cannot be had."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import pytest
from optuna.distributions import CategoricalDistribution
from rich.console import Console

from visweep.cli.dry_run import print_dry_run
from visweep.cli.prepare import prepare
from visweep.cli.sweep import SweepOptions
from visweep.config import DataConfig, TrainConfig, ViTConfig
from visweep.search.recipe import Recipe

TOO_WIDE = 2**22
"""No machine holds the weights: torch's own allocator refuses them."""


def test_a_model_that_does_not_fit_is_a_row_like_others(tmp_path: Path) -> None:
    recipe = Recipe(
        name="wide",
        baseline=ViTConfig(patch_size=16, embed_dim=8, depth=1, num_heads=2),
        spaces={"small": lambda _: {"embed_dim": CategoricalDistribution([8, 16, TOO_WIDE])}},
    )
    said = dry_run(recipe, tmp_path, trials=5)
    (largest,) = (line for line in said.splitlines() if "largest" in line)
    assert "does not fit in memory" in largest
    assert f"embed_dim={TOO_WIDE}" in largest
    assert "study wide-cluttered-digits-small, 5 trials\n" in said
    assert "5 trials like the middle one" in said
    assert "block=pre_norm" in said, "also what the study does not store"


@pytest.mark.parametrize(
    ("trials", "extent", "cost"),
    [
        (5, "5 trials, 3 of them finished: 2 left", "2 trials like the middle one"),
        (3, "3 trials, 3 of them finished: 0 left", None),
        (2, "2 trials, and has 3 finished: none left", None),
    ],
)
def test_only_what_is_left_of_a_study_is_counted(
    tmp_path: Path, finished_study: Path, trials: int, extent: str, cost: str | None
) -> None:
    shutil.copyfile(finished_study / "studies.db", tmp_path / "studies.db")
    recipe = Recipe(
        name="narrow",
        baseline=ViTConfig(patch_size=16, embed_dim=8, depth=1, num_heads=2),
        spaces={"small": lambda _: {"embed_dim": CategoricalDistribution([8, 16])}},
    )
    before = (tmp_path / "studies.db").read_bytes()
    said = dry_run(recipe, tmp_path, trials=trials, study="night-run")
    assert f"study night-run, {extent}\n" in said
    assert (cost in said) if cost else ("like the middle one" not in said)
    assert (tmp_path / "studies.db").read_bytes() == before


def dry_run(recipe: Recipe, folder: Path, *, trials: int, study: str | None = None) -> str:
    """What it prints."""
    asked = SweepOptions(
        trials=trials,
        study=study,
        storage=f"sqlite:///{folder}/studies.db",
        artifacts=None,
        data=DataConfig(train_size=256),
        train=TrainConfig(batch_size=64),
        space="small",
        seeds=1,
        device="cpu",
        workers=1,
        sampler="tpe",
        pruner="none",
        duplicates="run",
        timeout=None,
        seed=0,
    )
    told = io.StringIO()
    print_dry_run(Console(file=told, width=200), prepare(recipe, asked))
    return told.getvalue()
