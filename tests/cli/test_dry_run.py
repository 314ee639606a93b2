"""A dry run tells what each size of model would cost, also where one cannot be had."""

from __future__ import annotations

import io
from pathlib import Path

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
    asked = SweepOptions(
        trials=5,
        study=None,
        storage=f"sqlite:///{tmp_path}/studies.db",
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
    (largest,) = (line for line in told.getvalue().splitlines() if "largest" in line)
    assert "does not fit in memory" in largest
    assert f"embed_dim={TOO_WIDE}" in largest
    assert "5 trials like the middle one" in told.getvalue()
