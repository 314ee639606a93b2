"""The scripts of `benchmarks/` that measure the storage do what they say, at a tiny size."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
FASHION = Path("/usr/share/datasets/fashion-mnist")


def _table(output: str) -> list[dict[str, str]]:
    """The rows of the one table that a script prints, by its headings."""
    cells = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in output.splitlines()
        if line.startswith("|") and not line.startswith("|---")
    ]
    return [dict(zip(cells[0], row, strict=True)) for row in cells[1:]]


def _run(launcher: Any, script: str, *arguments: object) -> list[dict[str, str]]:
    process = launcher.start(BENCHMARKS / f"{script}.py", *arguments).wait(280)
    assert (process.status, process.stderr) == (0, "")
    assert " CPUs, load " in process.stdout.splitlines()[0]
    return _table(process.stdout)


def test_double_runs_are_counted_on_both_sides(launcher: Any) -> None:
    ours, theirs = _run(launcher, "double_runs", "--trials", 6, "--workers", 2)
    assert ours["trials that ran"] == "6 of 6"
    assert (ours["double runs"], ours["finished"], ours["errors"]) == ("0", "6", "none")
    assert (ours["left running"], ours["left waiting"]) == ("0", "0")
    assert int(theirs["finished"]) >= 6


@pytest.mark.parametrize("backend", ["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)])
def test_a_small_storm(launcher: Any, backend: str) -> None:
    (row,) = _run(
        launcher, "storm", "--trials", 6, "--workers", 2, "--epochs", 2, "--storage", backend
    )
    assert row["finished"] == "6 of 6"
    assert {row[name] for name in ("double ends", "gaps", "foreign", "repeated")} == {"0"}


def test_checkpoints_do_not_go_to_the_user_s_own_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, postgres_url: str
) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "of the user"))
    import pausing_worker

    folder = tmp_path / "of the benchmark"
    folder.mkdir()
    plan = pausing_worker.Plan(url=postgres_url, folder=folder, trials=2, epochs=2, seconds=0.0)
    pausing_worker.work(plan)
    assert len(list(folder.rglob("trial-*.ckpt"))) >= 1
    assert not (tmp_path / "of the user").exists()


def test_a_storm_would_tell_what_went_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    import pausing_worker
    import storm

    url = f"sqlite:///{tmp_path}/studies.db"
    plan = pausing_worker.Plan(url=url, folder=tmp_path, trials=3, epochs=2, seconds=0.0)
    pausing_worker.work(plan)
    assert storm.judge(plan) == storm.Outcome(3, 0, 0, 0, 0, 0)
    with closing(sqlite3.connect(tmp_path / "studies.db")) as connection, connection:
        connection.execute("DELETE FROM trial_intermediate_values WHERE trial_id = 1 AND step = 1")
        connection.execute(
            "UPDATE trial_intermediate_values SET intermediate_value = 0 "
            "WHERE trial_id = 2 AND step = 1"
        )
    pausing_worker.write_line(plan, "ended", 0)
    pausing_worker.write_line(plan, "trained", 2, 2, 1)
    found = storm.judge(plan)
    assert (found.double_ends, found.gaps, found.repeated) == (1, 1, 1)
    assert found.foreign == 2  # the changed value, and the epoch that was trained again
    assert found.found_by_check >= 1
    assert not found.exact(3)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["sqlite", "postgresql"])
def test_report_latency(launcher: Any, backend: str) -> None:
    rows = _run(
        launcher, "report_latency", "--workers", 2, "--seconds", 4, "--warm-up", 0,
        "--storage", backend,
    )  # fmt: skip
    assert [row["ms"] for row in rows] == [f"{backend}, slots", f"{backend}, plain Optuna"]
    for row in rows:
        assert int(row["reports"]) >= 2
        assert 0 < float(row["report, median"]) < float(row["report and prune, median"])
        assert row["errors"] == "0"


@pytest.mark.slow
def test_estimates(launcher: Any) -> None:
    """That they are told; how far they are off is for a machine that does nothing else."""
    few = ("--points", 1, "--processes", 1)
    process = launcher.start(BENCHMARKS / "estimates.py", *few).wait(280)
    assert (process.status, process.stderr) == (0, "")
    rows = _table(process.stdout)
    assert [row["configuration"].split()[0] for row in rows] == ["vit", "convnet"]
    for row in rows:
        assert float(row["s per epoch, estimated"]) > 0
        assert row["memory, estimated"].endswith("MiB")
    for what in ("seconds per epoch", "memory"):
        assert f"{what}: median error" in process.stdout


@pytest.mark.slow
def test_a_step_on_a_gpu(launcher: Any) -> None:
    """Here operations take the place of kernels."""
    process = launcher.start(
        BENCHMARKS / "gpu_step.py",
        *("--device", "cpu", "--models", "ViT(64, 6, patch 16)", "--batch-size", 8),
    ).wait(280)
    assert process.status == 0, process.stderr
    rows = _table(process.stdout)
    assert len(rows) == 3
    assert all(int(row["kernels"].replace(",", "")) > 100 for row in rows)


@pytest.mark.slow
@pytest.mark.skipif(not FASHION.is_dir(), reason="dataset-fashion-mnist is not installed")
def test_images(launcher: Any) -> None:
    rows = _run(launcher, "images", "--train-size", 128, 256, "--repetitions", 1)
    assert [(row["model"], row["images"]) for row in rows] == [
        (model, images) for model in ("ViT", "ConvNet") for images in ("128", "256")
    ]


@pytest.mark.slow
def test_what_a_gpu_is_measured_by(tmp_path: Path) -> None:
    """The one step that no other test runs. Here without a GPU, and so without figures."""
    ended = subprocess.run(
        ["sh", BENCHMARKS / "gpu.sh", tmp_path],
        env={**os.environ, "DEVICE": "cpu", "STEPS": "packing", "PYTHON": sys.executable},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    told = (tmp_path / "results.md").read_text()
    assert "benchmarks/packing.py --seconds 10" in told
    assert [row["side"] for row in _table(told)] == ["--pack 1", "--pack 4"]
    assert "0 step(s) failed, 0 not begun." in told


@pytest.mark.slow
def test_large_study(launcher: Any) -> None:
    rows = _run(launcher, "large_study", "--trials", 20, "--repetitions", 1)
    assert len(rows) == 8
    assert all(float(row["seconds"]) > 0 for row in rows)


@pytest.mark.skipif(sys.platform != "linux", reason="it reads /proc")
def test_memory_of_a_command(launcher: Any) -> None:
    def measured(*arguments: object) -> Any:
        return launcher.run(BENCHMARKS / "memory.py", *arguments)

    shown = measured("--help")
    assert (shown.status, shown.stderr) == (0, "")
    assert "program" in shown.stdout
    ended = measured(sys.executable, "-c", "import sys; sys.exit(3)")
    assert "; exit status 3" in ended.stdout
    for wrong in ((), ("no-such-program", "--help")):
        refused = measured(*wrong)
        assert refused.status == 2
        assert "Traceback" not in refused.stderr
        assert "usage:" in refused.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="it reads /proc")
@pytest.mark.slow
def test_start_up(launcher: Any) -> None:
    rows = _run(launcher, "startup", "--repeats", 1)
    of = {row[""]: float(row["of the processor"].split()[0]) for row in rows}
    assert len(rows) == 5
    for workers in ("1 workers", "2 workers"):
        beyond = of[workers] - of["import"]
        assert of[f"{workers}, beyond the import"] == pytest.approx(beyond, abs=0.02)
        assert beyond < of[workers]
