"""Bad input gets one line on stderr and the status 2, and nothing is written."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

SWEEPS = Path(__file__).resolve().parents[2] / "sweeps"


SMALL = ("--train-size", "300")
OPTIONS = {
    "data set": (["--dataset", "cifar1O"], "--dataset 'cifar1O' accepted mean 'cifar10'?"),
    "data set's end": (["--dataset", "cluttered-digit"], "--dataset mean 'cluttered-digits'?"),
    "space": (["--space", "smal"], "--space 'smal' accepted: report, small mean 'small'?"),
    "sampler": (["--sampler", "tpee"], "--sampler 'tpee' accepted: cmaes mean 'tpe'?"),
    "pruner": (["--pruner", "hyperbad"], "--pruner 'hyperbad' accepted mean 'hyperband'?"),
    "duplicates": (["--duplicates", "skpi"], "--duplicates 'skpi' replicate mean 'skip'?"),
    "option": (["--trails", "5"], "--trails --trials"),
    "abbreviation": (["--sampl", "tpe"], "--sampl --sampler"),
    "an argument": (["50"], "50"),
    "no trials": (["--trials", "0"], "--trials '0' 1"),
    "fewer than none": (["--trials", "-3"], "--trials '-3' 1"),
    "trials in words": (["--trials", "abc"], "--trials 'abc' whole number"),
    "half a trial": (["--trials", "2.5"], "--trials '2.5' whole number"),
    "trials with a sign": (["--trials=0"], "--trials '0' 1"),
    "no value": (["--trials"], "--trials argument"),
    "epochs": (["--epochs", "0"], "--epochs '0' 1"),
    "batch": (["--batch-size", "0"], "--batch-size '0' 1"),
    "batch beyond the images": ([*SMALL, "--batch-size", "301"], "--batch-size 301 1 to 300"),
    "no rate": (["--lr", "0"], "--lr 0.0 above 0"),
    "negative rate": (["--lr", "-1"], "--lr -1.0 above 0"),
    "no number": (["--lr", "nan"], "--lr nan above 0"),
    "a folder of generated images": (
        ["--data-dir", "nowhere"],
        "--data-dir nowhere cluttered-digits generated accepted: --dataset imagefolder",
    ),
    "rate in words": (["--lr", "fast"], "--lr 'fast' number"),
    "decay": (["--weight-decay", "-0.1"], "--weight-decay -0.1 0 or more"),
    "replicas": (["--seeds", "0"], "--seeds '0' 1"),
    "seed": (["--seed", "-1"], "--seed '-1' 0"),
    "too few images": (["--train-size", "3"], "--train-size 3 10 4000"),
    "too many images": (["--train-size", "99999"], "--train-size 99999 10 4000"),
    "time-out": (["--timeout", "soon"], "--timeout 'soon' 90s, 30m, 2h, 1h30m"),
    "time-out without unit": (["--timeout", "90"], "--timeout '90' 90s"),
    "study": (["--study", " "], "--study empty"),
    "parameters in words": (["--max-params", "few"], "--max-params 'few' 500k 2M 2e6"),
    "half a parameter": (["--max-params", "0.5"], "--max-params '0.5' whole"),
    "no parameters": (["--max-params", "0"], "--max-params '0' whole"),
    "negative operations": (["--max-flops=-5M"], "--max-flops '-5M' whole"),
    "seconds": (["--max-epoch-seconds", "-1"], "--max-epoch-seconds -1.0 above 0"),
    "no seconds": (["--max-epoch-seconds", "nan"], "--max-epoch-seconds nan above 0"),
    "too few parameters": (
        ["--max-params", "1k"],
        "--max-params 1000 baseline 217,418 all of the space smallest 28,394 accepted: 217418",
    ),
    "too few operations": (["--max-flops", "1M"], "--max-flops 1000000 baseline accepted:"),
    "too little time": (
        ["--max-epoch-seconds", "1e-5", *SMALL],
        "--max-epoch-seconds 1e-05 baseline estimated all of the space accepted:",
    ),
    "device": (["--device", "tpu"], "--device 'tpu' auto, cpu, cuda, cuda:N"),
    "image size": (["--image-size", "30"], "--image-size 30 4 8 16 divide try 32"),
    "images too large": (["--image-size", "2048"], "--image-size 2048 4 8 16 try 256"),
    "no folder of images": (["--dataset", "imagefolder"], "--data-dir"),
    "code from a server": (
        ["--sampler", "cmaes", "--storage", "postgresql+psycopg://me@db/x"],
        "--sampler cmaes sqlite:///FILE",
    ),
}


@pytest.mark.parametrize(
    "case",
    # What an epoch takes is known when the machine has been probed.
    [pytest.param(c, marks=pytest.mark.slow) if c == "too little time" else c for c in OPTIONS],
)
def test_options(case: str, launcher: Any, tmp_path: Path, snapshot: Any) -> None:
    options, words = OPTIONS[case]
    if "--storage" not in options:
        options = ["--storage", f"sqlite:///{tmp_path}/studies.db", *options]
    refused = launcher.start(SWEEPS / "vit_search.py", *options, cwd=tmp_path)
    probing = "trying some models for up to a minute, once on this machine for such a search"
    line = refused.wait(280).refusal(after=probing if case == "too little time" else "")
    missing = [word for word in words.split() if word not in line]
    assert not missing, line
    assert snapshot(tmp_path) == {}


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_a_missing_gpu(launcher: Any, tmp_path: Path, snapshot: Any, device: str) -> None:
    url = f"sqlite:///{tmp_path}/studies.db"
    process = launcher.run(SWEEPS / "vit_search.py", "--device", device, "--storage", url)
    assert process.refusal() == f"--device {device}: no CUDA device here; accepted: auto, cpu"
    assert snapshot(tmp_path) == {}


def _text(path: Path) -> None:
    path.write_text("not a database")


def _empty(path: Path) -> None:
    path.touch()


def _folder(path: Path) -> None:
    path.mkdir()


def _nothing(path: Path) -> None:
    pass


def _newer(statement: str) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("PRAGMA journal_mode = DELETE")
            connection.execute(statement)
            connection.commit()

    return make


STORAGES = {
    "no URL": ("studies.db", _nothing, "'studies.db' is not a URL; accepted: sqlite:///FILE"),
    "scheme": ("oracle://x/y", _nothing, "unknown scheme 'oracle'; accepted: sqlite"),
    "no file": ("sqlite://", _nothing, "accepted: sqlite:///FILE"),
    "missing folder": ("sqlite:///no/x.db", _nothing, "there is no folder no; create it first"),
    "file as folder": ("sqlite:///x.db/y.db", _text, "there is no folder x.db"),
    "folder": ("sqlite:///x.db", _folder, "x.db is not a file"),
    "not SQLite": ("sqlite:///x.db", _text, "x.db is not an SQLite file"),
    "0 bytes": ("sqlite:///x.db", _empty, "x.db is empty (0 bytes)"),
}


@pytest.mark.parametrize("case", STORAGES)
@pytest.mark.parametrize("command", ["search", "status", "trials"])
def test_storages(case: str, command: str, launcher: Any, tmp_path: Path, snapshot: Any) -> None:
    url, make, reason = STORAGES[case]
    if command != "search" and "there is no folder" in reason:
        reason = f"there is no file {url.removeprefix('sqlite:///')}"
    make(tmp_path / "x.db")
    before = snapshot(tmp_path)
    commands = {
        "search": (SWEEPS / "vit_search.py", "--trials", 2),
        "status": ("visweep", "status"),
        "trials": ("visweep", "trials", "night-run"),
    }
    process = launcher.run(*commands[command], "--storage", url, cwd=tmp_path)
    line = process.refusal()
    assert line.startswith("--storage")
    assert reason in line
    assert snapshot(tmp_path) == before


def test_a_value_of_two_lines_gets_one(launcher: Any, tmp_path: Path) -> None:
    url = "sqlite:///no\nfolder/x.db"
    process = launcher.run("visweep", "status", "--storage", url, cwd=tmp_path)
    assert process.refusal() == "--storage: there is no file no folder/x.db"


@pytest.mark.parametrize(
    ("statement", "reason"),
    [
        ("UPDATE visweep_version SET version = 99", "made by a newer visweep (schema 99"),
        ("UPDATE alembic_version SET version_num = 'v9.0.0.a'", "made by a newer Optuna"),
    ],
)
@pytest.mark.parametrize("command", ["search", "trials", "stop"])
def test_a_study_made_by_a_newer_schema(
    statement: str,
    reason: str,
    command: str,
    launcher: Any,
    tmp_path: Path,
    snapshot: Any,
    finished_study: Path,
    tiny_search: Path,
) -> None:
    file = tmp_path / "studies.db"
    shutil.copyfile(finished_study / "studies.db", file)
    _newer(statement)(file)
    before = snapshot(tmp_path)
    commands = {
        "search": (tiny_search, "--study", "night-run", *SMALL),
        "trials": ("visweep", "trials", "night-run"),
        "stop": ("visweep", "stop", "night-run"),
    }
    line = launcher.run(*commands[command], "--storage", f"sqlite:///{file}").refusal()
    assert reason in line
    assert snapshot(tmp_path) == before


def _image(path: Path, shade: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (16, 16), shade).save(path)


def _images(root: Path, classes: int, each: int = 6) -> None:
    for index in range(classes):
        for number in range(each):
            _image(root / f"class{index}" / f"{number}.png", 30 * index + number)


def _no_images(root: Path) -> None:
    root.mkdir()


def _one_class(root: Path) -> None:
    _images(root, 1)


def _corrupt(root: Path) -> None:
    _images(root, 2)
    (root / "class1" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nand then nothing")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (_nothing, ["images", "--data-dir"]),
        (_no_images, ["images", "--data-dir"]),
        (_one_class, ["class"]),
        (_corrupt, ["broken.png"]),
        (_text, ["images"]),
    ],
)
def test_folders_of_images(
    make: Callable[[Path], None], words: list[str], launcher: Any, tmp_path: Path, snapshot: Any
) -> None:
    make(tmp_path / "images")
    before = snapshot(tmp_path)
    options = ["--dataset", "imagefolder", "--data-dir", tmp_path / "images"]
    url = f"sqlite:///{tmp_path}/studies.db"
    line = launcher.run(SWEEPS / "vit_search.py", *options, "--storage", url).refusal()
    for word in words:
        assert word in line
    assert snapshot(tmp_path) == before


@pytest.mark.slow
def test_images_that_changed_since_the_study_began(
    launcher: Any, tmp_path: Path, snapshot: Any, tiny_search: Path
) -> None:
    _images(tmp_path / "images", 2, each=20)
    (tmp_path / "storage").mkdir()
    command = [
        tiny_search, "--trials", 2, "--epochs", 1, "--batch-size", 8, "--image-size", 32,
        "--dataset", "imagefolder", "--storage", f"sqlite:///{tmp_path}/storage/studies.db",
        "--data-dir",
    ]  # fmt: skip
    begun = launcher.run(*command, tmp_path / "images")
    assert (begun.status, begun.stderr) == (0, "")
    # Moved and touched, but the same images: the study goes on.
    shutil.copytree(tmp_path / "images", tmp_path / "moved")
    resumed = launcher.run(*command, tmp_path / "moved", "--trials", 3)
    assert (resumed.status, resumed.stderr) == (0, "")
    _image(tmp_path / "moved" / "class0" / "3.png", 255)
    before = snapshot(tmp_path)
    line = launcher.run(*command, tmp_path / "moved", "--trials", 4).refusal()
    assert "the content of the data changed since it began" in line
    assert "--study" in line
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize(
    ("options", "field"),
    [
        (["--epochs", "3"], "train.epochs was 2, now 3"),
        (["--lr", "0.5"], "train.lr was 0.002, now 0.5"),
        (["--seed", "9"], "seed was 0, now 9"),
        (["--seeds", "2"], "train.seeds was [0], now [0, 1]"),
        (["--batch-size", "32"], "train.batch_size was 64, now 32"),
        (["--weight-decay", "0.5"], "train.weight_decay was 0.05, now 0.5"),
        (["--train-size", "200"], "data.train_size was 300, now 200"),
        (["--image-size", "64"], "data.image_size was not given, now 64"),
        (["--sampler", "random"], "sampler.name was 'tpe', now 'random'"),
        (["--pruner", "none"], "pruner.name was "),
        (["--duplicates", "skip"], "duplicates was 'replicate', now 'skip'"),
    ],
)
def test_resuming_a_study_as_something_else(
    options: list[str],
    field: str,
    launcher: Any,
    tmp_path: Path,
    snapshot: Any,
    finished_study: Path,
    tiny_search: Path,
) -> None:
    shutil.copyfile(finished_study / "studies.db", tmp_path / "studies.db")
    before = snapshot(tmp_path)
    process = launcher.run(
        tiny_search, "--trials", 9, *SMALL, "--epochs", 2, "--study", "night-run",
        "--storage", f"sqlite:///{tmp_path}/studies.db", *options,
    )  # fmt: skip
    line = process.refusal()
    assert line.startswith("study 'night-run': ")
    assert field in line
    assert snapshot(tmp_path) == before


def test_resuming_with_other_images(
    launcher: Any, tmp_path: Path, snapshot: Any, finished_study: Path, tiny_search: Path
) -> None:
    shutil.copyfile(finished_study / "studies.db", tmp_path / "studies.db")
    _images(tmp_path / "images", 2, each=60)
    before = snapshot(tmp_path)
    process = launcher.run(
        tiny_search, "--dataset", "imagefolder", "--data-dir", tmp_path / "images",
        "--image-size", 32, "--epochs", 2, "--study", "night-run",
        "--storage", f"sqlite:///{tmp_path}/studies.db",
    )  # fmt: skip
    line = process.refusal()
    assert "was 'cluttered-digits', now 'imagefolder'" in line or "data.image_size" in line
    assert snapshot(tmp_path) == before


INVALID_SPACE = '''
"""A space with a point that no model has."""
from optuna.distributions import CategoricalDistribution, IntDistribution
from visweep import Recipe, ViTConfig, run

SEARCH = Recipe(
    name="invalid",
    baseline=ViTConfig(patch_size=16, embed_dim=16, depth=1, num_heads=2),
    spaces={
        "odd": lambda size: {
            "embed_dim": CategoricalDistribution([16, 18]),
            "num_heads": CategoricalDistribution([2, 4]),
        },
        "misspelt": lambda size: {"dpeth": IntDistribution(1, 2)},
    },
)
if __name__ == "__main__":
    run(SEARCH)
'''


@pytest.mark.parametrize(
    ("space", "words"),
    [
        ("odd", "--space embed_dim=18, num_heads=4 multiple"),
        ("misspelt", "--space 'dpeth' mean 'depth'?"),
    ],
)
def test_a_space_of_the_users_own(
    space: str, words: str, launcher: Any, tmp_path: Path, snapshot: Any
) -> None:
    script = tmp_path / "invalid_search.py"
    script.write_text(INVALID_SPACE)
    before = snapshot(tmp_path)
    url = f"sqlite:///{tmp_path}/studies.db"
    line = launcher.run(script, "--space", space, *SMALL, "--storage", url).refusal()
    for word in words.split():
        assert word in line
    assert snapshot(tmp_path) == before


VISWEEP = {
    "a command": (["statsu"], "'statsu' mean 'status'?"),
    "no study": (["trials"], "STUDY"),
    "too many studies": (["trials", "night-run", "other"], "other"),
    **{
        f"{command} of a misspelt study": ([command, "nightrun"], "STUDY 'nightrun' 'night-run'?")
        for command in ("status", "report", "trials", "stop", "delete")
    },
    **{
        f"{command} of a misspelt study": (
            [command, "--study", "nightrun"],
            "--study: 'nightrun' 'night-run'?",
        )
        for command in ("train", "worker")
    },
    "two slashes": (["status", "--storage", "sqlite://x.db"], "'sqlite://x.db' sqlite:///FILE"),
    "no such trial": (["train", "--study", "night-run", "--trial", "99"], "--trial 99"),
    "a seed below zero": (["train", "--seed", "-1"], "--seed '-1' 0"),
    "a folder that is not read": (["train", "--data-dir", "x"], "--data-dir x generated"),
    "a trial of nothing": (["train", "--trial", "1"], "--trial --study"),
    "a page in PDF": (["report", "night-run", "-o", "x.pdf"], "--output x.pdf .html .md"),
    "a negative trial": (["train", "--study", "night-run", "--trial", "-1"], "--trial '-1' 0"),
    "a model": (["train", "--model", "vti"], "--model 'vti' mean 'vit'?"),
    "a change": (["train", "--set", "depth"], "--set 'depth' depth=4"),
    "a changed field": (["train", *SMALL, "--set", "depht=3"], "--set 'depht' mean 'depth'?"),
    "a changed value": (["train", *SMALL, "--set", "depth=deep"], "--set depth 'deep' whole"),
    "a changed choice": (
        ["train", *SMALL, "--set", "block=post_nrom"],
        "--set: block: 'post_nrom' pre_norm, post_norm, single_residual, parallel",
    ),
    "images for a study": (
        ["train", "--study", "night-run", "--dataset", "mnist"],
        "--dataset --study",
    ),
    "images": (["train", "--dataset", "cluttered"], "--dataset 'cluttered' 'cluttered-digits'?"),
    "a device": (["train", "--device", "gpu"], "--device 'gpu' auto, cpu, cuda, cuda:N"),
    "epochs": (["train", "--epochs", "0"], "--epochs '0' 1"),
    "a folder to write to": (["report", "night-run", "-o", "no/x.html"], "--output folder no"),
}


@pytest.mark.parametrize("case", VISWEEP)
def test_visweep(
    case: str, launcher: Any, tmp_path: Path, snapshot: Any, finished_study: Path
) -> None:
    arguments, words = VISWEEP[case]
    shutil.copyfile(finished_study / "studies.db", tmp_path / "studies.db")
    before = snapshot(tmp_path)
    url = "sqlite:///studies.db"
    line = launcher.run("visweep", *arguments, cwd=tmp_path, VISWEEP_STORAGE=url).refusal()
    missing = [word for word in words.split() if word not in line]
    assert not missing, line
    assert snapshot(tmp_path) == before


def test_a_folder_that_may_not_be_written(
    bound_by_permissions: list[str], tmp_path: Path, environment: dict[str, str]
) -> None:
    import subprocess
    import sys

    folder = tmp_path / "storage"
    folder.mkdir(mode=0o555)
    url = f"sqlite:///{folder}/studies.db"
    command = [sys.executable, str(SWEEPS / "vit_search.py"), "--storage", url]
    found = subprocess.run(
        [*bound_by_permissions, *command],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 2
    assert found.stdout == ""
    assert found.stderr == f"error: --storage: the folder {folder} cannot be written\n"
    assert list(folder.iterdir()) == []
