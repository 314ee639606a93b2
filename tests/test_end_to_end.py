"""Whole searches as a person runs them: killed, stopped, resumed, shared, moved, looked at.

The processes are real; see `conftest.py` for how they are started without importing torch each.
"""

from __future__ import annotations

import json
import os
import pty
import re
import select
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import FrozenTrial, TrialState
from PIL import Image

from searches import NAME, MakeSearch, Search

ROOT = Path(__file__).resolve().parents[1]


def seconds_per_epoch(checkpoint: Path) -> list[float]:
    """How long each epoch in a checkpoint took: no two trainings take equally long."""
    import torch

    payload = checkpoint.read_bytes().split(b"\n", 2)[2]
    copy = checkpoint.parent / "payload"
    copy.write_bytes(payload)
    saved = torch.load(copy, weights_only=True)
    copy.unlink()
    return [epoch["train_seconds"] for epoch in json.loads(saved["described"])["history"]]


def result(trial: FrozenTrial) -> tuple[Any, ...]:
    """What may not depend on interruptions."""
    kept = ("val_loss", "train_accuracy", "val_accuracy_per_seed", "epochs", "ended")
    attributes = [trial.user_attrs[name] for name in kept]
    return trial.number, trial.state, trial.params, trial.intermediate_values, attributes


def test_a_killed_search_goes_on_where_it_was(search: MakeSearch, wait_for: Any) -> None:
    mine = search("--epochs", 24, "--pruner", "none")
    killed = mine.start(3)
    wait_for(lambda: mine.is_in_mid_trial(5, number=1), about=killed)
    killed.kill()
    assert killed.status == -signal.SIGKILL
    assert mine.states() == ["COMPLETE", "RUNNING", "WAITING"]
    epochs_done = len(mine.trials()[1].intermediate_values)
    checkpoint = mine.checkpoint(1)
    assert checkpoint is not None
    before = seconds_per_epoch(checkpoint)
    assert len(before) - epochs_done in (0, 1)
    parameters = mine.trials()[1].params

    trials = mine.finish(3)
    assert [t.state.name for t in trials] == ["COMPLETE"] * 3
    assert trials[1].params == parameters
    assert [list(t.intermediate_values) for t in trials] == [list(range(1, 25))] * 3
    checkpoint = mine.checkpoint(1)
    assert checkpoint is not None
    assert seconds_per_epoch(checkpoint)[: len(before)] == before, "it was trained anew"

    # A larger number adds the difference, and the same one adds nothing.
    more = mine.finish(5)
    assert more[:3] == trials
    assert [t.state.name for t in more] == ["COMPLETE"] * 5
    assert mine.finish(5) == more
    assert mine.finish(2) == more
    # The last to leave folds the log in: one file is the study.
    assert sorted(p.name for p in mine.file.parent.iterdir()) == ["artifacts", "studies.db"]


@pytest.mark.slow
def test_killed_in_its_first_trial_it_is_resumed_by_name_with_its_own_images(
    launcher: Any, tiny_search: Path, tmp_path: Path, wait_for: Any
) -> None:
    for index in range(3):
        folder = tmp_path / "images" / f"class{index}"
        folder.mkdir(parents=True)
        for number in range(20):
            colour = (80 * index, 12 * number, 90)
            Image.new("RGB", (16, 16), colour).save(folder / f"{number}.png")
    options = ("--epochs", 150, "--pruner", "none", "--batch-size", 8)
    own = ("--dataset", "imagefolder", "--data-dir", "images", "--image-size", 16)
    mine = Search(launcher, tiny_search, tmp_path / "studies.db", (*own, *options))
    killed = mine.start(1, cwd=tmp_path)
    wait_for(lambda: mine.is_in_mid_trial(3, number=0), about=killed)
    killed.kill()
    name = "tiny-imagefolder-tiny"
    there = ("--storage", mine.url, "--workers", 1)
    others = shutil.copytree(tmp_path / "images", tmp_path / "others")
    Image.new("RGB", (16, 16)).save(others / "class1" / "7.png")
    for command in (("resume", name), ("worker",)):
        refused = launcher.run("visweep", *command, *there, "--data-dir", others)
        assert refused.refusal() == f"--data-dir: these are not the images of study {name!r}"
    process = launcher.run("visweep", "resume", name, *there)
    assert (process.status, process.stderr) == (0, "")
    assert "begins anew" not in process.stdout
    assert mine.states() == ["COMPLETE"]


def test_ctrl_c_stops_says_how_to_go_on_and_leaves_nothing_leased(
    search: MakeSearch, wait_for: Any
) -> None:
    mine = search("--epochs", 24, "--pruner", "none")
    process = mine.start(2)
    wait_for(lambda: mine.is_in_mid_trial(3), about=process)
    process.signal(signal.SIGINT)
    process.wait(20)
    assert process.status == 130
    assert process.stderr == (
        "interrupted: the running epoch is being finished; Ctrl-C again stops at once\n"
    )
    last = process.stdout.splitlines()[-1]
    assert last.startswith(f"stopped: interrupted. resume: python {mine.script} --trials 2 ")
    assert mine.leases() == []
    assert mine.states() == ["RUNNING", "WAITING"]
    assert sorted(p.name for p in mine.file.parent.iterdir()) == ["artifacts", "studies.db"]
    again = last.partition("resume: python ")[2].split()
    resumed = mine.launcher.run(*again)
    assert (resumed.status, resumed.stderr) == (0, "")
    assert mine.states() == ["COMPLETE", "COMPLETE"]


def test_a_second_ctrl_c_stops_at_once(search: MakeSearch, wait_for: Any) -> None:
    # Steps of many images: an epoch takes seconds.
    mine = search("--epochs", 50, "--pruner", "none", "--seeds", 32, "--batch-size", 16, size=4000)
    process = mine.start(1)
    wait_for(lambda: mine.is_in_mid_trial(1), about=process)
    process.signal(signal.SIGINT)
    time.sleep(0.15)
    assert not process.ended(), "the epoch was too short for this test"
    began = time.monotonic()
    process.signal(signal.SIGINT)
    process.wait(20)
    assert time.monotonic() - began < 5
    assert process.status == 130
    said, line = process.stderr.splitlines()
    assert said.startswith("interrupted: ")
    assert line.startswith(
        "error: stopped at once; the running epoch is lost, nothing else is; resume: python "
    )
    assert mine.leases() == []
    assert mine.states() == ["RUNNING"]


def test_termination_and_time_out_stop_as_well(search: MakeSearch, wait_for: Any) -> None:
    mine = search("--epochs", 300, "--pruner", "none")
    process = mine.start(1, "--timeout", "1s")
    process.wait(30)
    assert (process.status, process.stderr) == (0, "")
    assert "stopped: the time-out was reached. resume: python " in process.stdout
    done = len(mine.trials()[0].intermediate_values)
    assert 0 < done < 300
    process = mine.start(1)
    wait_for(lambda: mine.is_in_mid_trial(done + 2), about=process)
    process.signal(signal.SIGTERM)
    process.wait(20)
    assert process.status == 143
    assert process.stderr.startswith("terminated: the running epoch is being finished")
    assert "stopped: terminated. resume: python " in process.stdout
    assert mine.leases() == []


def test_it_can_be_stopped_and_watched_from_outside(search: MakeSearch, wait_for: Any) -> None:
    mine = search("--epochs", 100, "--pruner", "none")
    process = mine.start(3)
    wait_for(lambda: mine.is_in_mid_trial(3, number=1), about=process)
    watched = mine.launcher.run("visweep", "status", "--storage", mine.url)
    assert (watched.status, watched.stderr) == (0, "")
    row = next(line for line in watched.stdout.splitlines() if NAME in line)
    assert re.search(r"1 of 3 +0 +1 +1 +0 +\d+\.\d % \(#0\)", row), row
    listed = mine.launcher.run("visweep", "trials", NAME, "--csv", "--storage", mine.url)
    assert (listed.status, listed.stderr) == (0, "")
    assert len(listed.stdout.splitlines()) == 4
    refused = mine.launcher.run("visweep", "delete", NAME, "--yes", "--storage", mine.url)
    assert refused.status == 2
    assert f"(process {process.pid})" in refused.stderr
    assert not process.ended()
    stopped = mine.launcher.run("visweep", "stop", NAME, "--storage", mine.url)
    assert (stopped.status, stopped.stderr) == (0, "")
    process.wait(20)
    assert (process.status, process.stderr) == (0, "")
    assert "stopped: `visweep stop` was called. resume: python " in process.stdout
    assert mine.states() == ["COMPLETE", "RUNNING", "WAITING"]
    assert mine.leases() == []
    watched = mine.launcher.run("visweep", "status", "--storage", mine.url)
    assert re.search(r"1 of 3 +0 +0 +1 +1 +0 +", watched.stdout), watched.stdout
    again = mine.launcher.run("visweep", "stop", NAME, "--storage", mine.url)
    assert (again.status, again.stdout) == (0, f"nothing is running in {NAME}\n")


def test_optunas_own_command_reads_the_study_while_it_runs(
    search: MakeSearch, wait_for: Any
) -> None:
    mine = search("--epochs", 300, "--pruner", "none")
    process = mine.start(3)
    wait_for(lambda: mine.is_in_mid_trial(1), about=process)
    command = Path(sys.executable).with_name("optuna")
    for arguments in (["studies"], ["trials", "--study-name", NAME]):
        shown = subprocess.run(
            [command, *arguments, "--storage", mine.url, "-f", "json"],
            capture_output=True,
            text=True,
            check=True,
        )
        rows = json.loads(shown.stdout)
        if arguments == ["studies"]:
            assert [(r["name"], r["n_trials"]) for r in rows] == [(NAME, 3)]
        else:
            assert len(rows) == 3
            assert {"RUNNING", "WAITING"} <= {r["state"] for r in rows}
    assert not process.ended()


def test_two_processes_share_a_study(search: MakeSearch) -> None:
    mine = search("--epochs", 6, folder="shared")
    # Started together, on a file that neither finds.
    both = [mine.start(10), mine.start(10)]
    told = []
    for process in both:
        process.wait()
        assert (process.status, process.stderr) == (0, "")
        told.append([int(n) for n in re.findall(r"^\[.*\] trial (\d+):", process.stdout, re.M)])
    assert sorted(told[0] + told[1]) == list(range(10)), "a trial was run twice, or lost"
    assert min(map(len, told)) > 0, "one had nothing to do: this proves nothing"
    trials = mine.trials()
    assert len(trials) == 10
    assert all(t.state in (TrialState.COMPLETE, TrialState.PRUNED) for t in trials)
    assert sorted(p.name for p in mine.file.parent.iterdir()) == ["artifacts", "studies.db"]


def test_the_trial_of_a_killed_worker_is_adopted_by_the_other(
    search: MakeSearch, wait_for: Any
) -> None:
    mine = search("--epochs", 80, "--pruner", "none")
    first = mine.start(2)
    wait_for(lambda: mine.is_in_mid_trial(3, number=0), about=first)
    second = mine.start(2)
    wait_for(lambda: mine.is_in_mid_trial(3, number=1), about=second)
    checkpoint = mine.checkpoint(0)
    assert checkpoint is not None
    first.kill()
    done = len(mine.trials()[0].intermediate_values)
    assert done < 80, "it was through: this proves nothing"
    second.wait()
    assert (second.status, second.stderr) == (0, "")
    assert mine.states() == ["COMPLETE", "COMPLETE"]
    assert re.findall(r"^\[.*\] trial (\d+):", second.stdout, re.M) == ["1", "0"]
    adopted = mine.checkpoint(0)
    assert adopted is not None
    assert adopted.name == "trial-00000.g2.ckpt"


def test_who_waits_for_another_can_be_stopped_alone(search: MakeSearch, wait_for: Any) -> None:
    mine = search("--epochs", 2000, "--pruner", "none")
    first = mine.start(1)
    wait_for(lambda: mine.is_in_mid_trial(2), about=first)
    second = mine.start(1)
    wait_for(lambda: "0 of 1 trials finished" in second.stdout, about=second)
    second.signal(signal.SIGINT)
    second.wait(10)
    assert second.status == 130
    assert not first.ended()
    assert len(mine.leases()) == 1


def test_a_copy_of_the_file_goes_on_elsewhere(search: MakeSearch, wait_for: Any) -> None:
    mine = search("--epochs", 24, "--pruner", "none", "--seed", 3)
    process = mine.start(2)
    wait_for(lambda: mine.is_in_mid_trial(3, number=1), about=process)
    process.signal(signal.SIGINT)
    process.wait(20)
    there = search("--epochs", 24, "--pruner", "none", "--seed", 3, folder="elsewhere")
    shutil.copyfile(mine.file, there.file)
    trials = there.finish(2)
    assert [t.state.name for t in trials] == ["COMPLETE", "COMPLETE"]
    assert trials[0] == mine.trials()[0]
    # The checkpoints were left behind, so the interrupted trial began anew under its number.
    assert list(trials[1].intermediate_values) == list(range(1, 25))
    mine.finish(2)
    assert [result(t) for t in mine.trials()] == [result(t) for t in trials]


def test_what_it_advises_at_the_end_works(search: MakeSearch, tmp_path: Path) -> None:
    images = tmp_path / "my images"
    for number in range(80):
        folder = images / f"class {number % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("L", (16, 16), 3 * number).save(folder / f"{number}.png")
    mine = search(
        "--study", "night run", "--epochs", 1, "--dataset", "imagefolder", "--data-dir", images,
        "--image-size", 32, "--batch-size", 8, size=60,
    )  # fmt: skip
    process = mine.run(2)
    assert (process.status, process.stderr) == (0, "")
    advised = re.findall(r"^(?:see more|train best): +visweep (.*)$", process.stdout, re.M)
    assert len(advised) == 2
    for command in advised:
        followed = mine.launcher.run("visweep", *shlex.split(command), cwd=tmp_path)
        assert (followed.status, followed.stderr) == (0, ""), followed.stderr
    assert (tmp_path / "night run.html").exists()


FULL_DISK = """
import resource, runpy, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
limit = int(sys.argv.pop(1))
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
sys.argv.pop(0)
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize("full", ["checkpoint", "database"])
def test_a_full_disk_ends_it_with_one_line_and_loses_nothing(
    search: MakeSearch, tmp_path: Path, full: str
) -> None:
    mine = search("--epochs", 3, "--pruner", "none")
    before = mine.finish(2)
    # No checkpoint is as large as the log of the database becomes.
    limit = {"checkpoint": 60_000, "database": 400_000}[full]
    script = tmp_path / "full_disk.py"
    script.write_text(FULL_DISK)
    process = mine.launcher.run(
        script,
        limit,
        mine.script,
        "--trials",
        40,
        "--storage",
        mine.url,
        "--workers",
        1,
        *mine.options,
    )
    assert process.status == 1, process.stdout
    (line,) = process.stderr.splitlines()
    if full == "checkpoint":
        (folder,) = (mine.file.parent / "artifacts").iterdir()
        assert line == f"error: File too large: {folder}; every finished trial is kept"
    else:
        assert line == f"error: storage {mine.url}: disk I/O error"
    kept = mine.trials()
    assert kept[:2] == before
    assert all("traceback" not in t.user_attrs for t in kept)
    after = mine.finish(max(4, sum(t.state == TrialState.COMPLETE for t in kept) + 1))
    assert after[:2] == before


def test_the_live_view_in_a_terminal(search: MakeSearch) -> None:
    mine = search("--epochs", 30, "--pruner", "none")
    master, slave = pty.openpty()
    try:
        process = mine.start(3, terminal=os.ttyname(slave), TERM="xterm-256color", COLUMNS="80")
        seen = ""
        pressed = False
        deadline = time.monotonic() + 60
        while not process.ended() and time.monotonic() < deadline:
            if select.select([master], [], [], 0.05)[0]:
                seen += os.read(master, 65536).decode(errors="replace")
            if "1 of 3" in seen and not pressed:
                os.write(master, b"\x03")  # Ctrl-C, as the keyboard sends it
                pressed = True
        while select.select([master], [], [], 0.2)[0]:
            seen += os.read(master, 65536).decode(errors="replace")
    finally:
        os.close(master)
        os.close(slave)
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", seen)
    assert process.status == 130, shown
    assert "Traceback" not in shown
    assert f"visweep · {NAME}" in shown
    assert "of 3" in shown
    assert "stopped: interrupted. resume: python " in shown
    assert mine.leases() == []


class TestTheCommandsThemselves:
    """Without the launcher's short cut: what `pip install` and a checkout give."""

    @pytest.mark.slow
    @pytest.mark.parametrize("script", ["vit_search.py", "convnet_search.py"])
    def test_the_shipped_sweeps(
        self, script: str, tmp_path: Path, environment: dict[str, str]
    ) -> None:
        arguments = ["--trials", "2", "--train-size", "300", "--epochs", "1"]
        found = subprocess.run(
            [sys.executable, ROOT / "sweeps" / script, *arguments, "--storage", "sqlite:///x.db"],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        assert found.stderr == ""
        assert "2 trials finished" in found.stdout
        assert sorted(p.name for p in tmp_path.iterdir()) == ["artifacts", "x.db"]
        name = f"{script.split('_')[0]}-cluttered-digits-small"
        visweep = Path(sys.executable).with_name("visweep")
        shown = subprocess.run(
            [visweep, "status", name],
            cwd=tmp_path,
            env={**environment, "VISWEEP_STORAGE": "sqlite:///x.db"},
            capture_output=True,
            text=True,
            check=True,
        )
        assert re.search(rf"{name} +2 of 2", shown.stdout)
        assert shown.stderr == ""
