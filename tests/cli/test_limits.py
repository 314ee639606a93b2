"""`--max-params`, `--max-flops` and `--max-epoch-seconds` as a user meets them: real commands."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from visweep.config import ViTConfig
from visweep.training.counts import flops, num_params

BASELINE = ViTConfig(patch_size=16, embed_dim=16, depth=1, num_heads=2)
SMALL = ("--train-size", 300, "--epochs", 1, "--workers", 1, "--sampler", "random")


def options(script: Path, folder: Path, *more: object) -> list[object]:
    url = f"sqlite:///{folder}/studies.db"
    return [script, *SMALL, "--storage", url, "--study", "limited", *more]


def stored(folder: Path) -> dict[str, Any]:
    with closing(sqlite3.connect(folder / "studies.db")) as connection:
        query = "SELECT value_json FROM study_user_attributes WHERE key = 'visweep:specification'"
        found: dict[str, Any] = json.loads(connection.execute(query).fetchone()[0])
        return found


def depths(folder: Path) -> list[int]:
    with closing(sqlite3.connect(folder / "studies.db")) as connection:
        query = "SELECT param_value FROM trial_params WHERE param_name = 'depth'"
        return [int(row[0]) for row in connection.execute(query)]


def test_a_search_keeps_its_limits(launcher: Any, tiny_search: Path, tmp_path: Path) -> None:
    """Parameters that leave one block only."""
    limit = num_params(BASELINE)
    run = options(tiny_search, tmp_path, "--trials", 8)
    done = launcher.run(*run, "--max-params", limit, "--max-flops", "2M")
    assert (done.status, done.stderr) == (0, "")
    assert depths(tmp_path) == [1] * 8
    limits = stored(tmp_path)["identity"]["limits"]
    assert limits == {"max_params": limit, "max_flops": 2_000_000}
    # Under another limit, or none, it is another study; nothing is trained.
    other = launcher.run(*run, "--max-params", limit, "--max-flops", "3M").refusal()
    assert other.startswith("study 'limited': --max-flops was 2000000, now 3000000; start another")
    assert "--max-flops was 2000000, now not given" in launcher.run(*run).refusal()
    resumed = launcher.run(
        "visweep", "resume", "limited", "--storage", run[run.index("--storage") + 1]
    )
    assert resumed.status == 0, resumed.stderr


def test_a_limit_that_excludes_the_baseline_is_refused(
    launcher: Any, tiny_search: Path, tmp_path: Path, snapshot: Any
) -> None:
    needed = flops(BASELINE.replace(image_size=32))
    run = options(tiny_search, tmp_path, "--trials", 2, "--max-flops", needed - 1)
    line = launcher.run(*run).refusal()
    assert line.startswith(f"--max-flops: {needed - 1} excludes")
    assert line.endswith(f"accepted: {needed} or more")
    assert snapshot(tmp_path) == {}
    assert launcher.run(*run[:-1], needed).status == 0


@pytest.mark.slow
def test_seconds_are_judged_as_when_the_study_began(
    launcher: Any, tiny_search: Path, tmp_path: Path
) -> None:
    run = options(tiny_search, tmp_path, "--trials", 2, "--max-epoch-seconds", 60)
    done = launcher.run(*run)
    assert (done.status, done.stderr) == (0, "")
    assert "trying some models for up to a minute, once on this machine" in done.stdout
    judge = stored(tmp_path)["judge"]
    assert judge["train_images"] == 300
    assert any(price > 0 for price in judge["calibration"]["step"].values())
    # As if another machine went on, of which nothing is known yet.
    elsewhere = {"VISWEEP_CACHE": str(tmp_path / "cache")}
    more = launcher.run(*run, "--trials", 3, **elsewhere)
    assert (more.status, more.stderr) == (0, "")
    assert "trying some models" not in more.stdout
    assert stored(tmp_path)["judge"] == judge
    assert not (tmp_path / "cache" / "calibrations").exists()
