"""The options that several commands share, each stated once."""

from __future__ import annotations

import os
import re
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from sqlalchemy.engine import URL

from visweep.errors import UsageError
from visweep.storage.url import bare

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}

_PIPE_WIDTH = 200
MOST = 512
"""Workers, or trials that one of them trains at the same time: more is a slip of the keyboard."""
SEARCH, DATA, TRAINING = "What to search", "Data", "Training"

Storage = Annotated[
    str | None,
    typer.Option(
        "--storage",
        metavar="URL",
        help="Where studies are kept, such as sqlite:///my.db. "
        "[default: $VISWEEP_STORAGE, else storage/studies.db of the checkout]",
    ),
]
Study = Annotated[str, typer.Argument(metavar="STUDY", help="Name of the study.")]
Artifacts = Annotated[
    str | None,
    typer.Option(
        "--artifacts",
        metavar="PLACE",
        help="Where checkpoints are kept, such as /mnt/share/visweep or s3://bucket/visweep: a "
        "folder, or any URL of fsspec's. [default: what the study was begun with, else beside "
        "the SQLite file, or in your own data folder with a server]",
    ),
]
Dataset = Annotated[
    str,
    typer.Option(
        "--dataset",
        metavar="NAME",
        rich_help_panel=DATA,
        help="Which images, such as fashion-mnist or imagefolder.",
    ),
]
DataDir = Annotated[
    Path | None,
    typer.Option(
        "--data-dir",
        metavar="DIR",
        rich_help_panel=DATA,
        help="Where the images lie, such as ~/data. [default: a cache, filled by download; to "
        "resume or help, where the study found them last]",
    ),
]
ImageSize = Annotated[
    int | None,
    typer.Option(
        "--image-size",
        metavar="P",
        min=1,
        rich_help_panel=DATA,
        help="Resize images to P pixels, such as 64. [default: the data set's own size]",
    ),
]
TrainSize = Annotated[
    int | None,
    typer.Option(
        "--train-size",
        metavar="M",
        min=1,
        rich_help_panel=DATA,
        help="Use M training images, evenly over the classes, such as 10000. [default: all]",
    ),
]
Epochs = Annotated[
    int,
    typer.Option(
        "--epochs",
        metavar="E",
        min=1,
        rich_help_panel=TRAINING,
        help="Passes over the training images that an unpruned trial makes, such as 20.",
    ),
]
BatchSize = Annotated[
    int,
    typer.Option(
        "--batch-size",
        metavar="B",
        min=1,
        rich_help_panel=TRAINING,
        help="Images per training step, such as 128.",
    ),
]
LearningRate = Annotated[
    float,
    typer.Option(
        "--lr",
        metavar="X",
        rich_help_panel=TRAINING,
        help="Peak learning rate of AdamW, such as 1e-3.",
    ),
]
WeightDecay = Annotated[
    float,
    typer.Option(
        "--weight-decay",
        metavar="X",
        rich_help_panel=TRAINING,
        help="Decoupled weight decay of weight matrices, such as 0.1.",
    ),
]
TrainCurves = Annotated[
    bool,
    typer.Option(
        "--train-curves/--no-train-curves",
        rich_help_panel=TRAINING,
        help="Measure training accuracy after each epoch, without and with the random translation "
        "and flip of training, for the learning curves of the report. It changes nothing of what "
        "is trained, and costs two more evaluations an epoch: about a tenth more time with the "
        "default images on a CPU.",
    ),
]
Device = Annotated[
    str,
    typer.Option(
        "--device",
        metavar="NAME",
        rich_help_panel=TRAINING,
        help="auto, cpu, cuda or cuda:N, such as cuda:1; auto takes a GPU where there is one.",
    ),
]
Workers = Annotated[
    str,
    typer.Option(
        "--workers",
        metavar="W",
        rich_help_panel=TRAINING,
        help="Processes of this machine that train trials at the same time, such as 2; "
        "auto takes one per core, at most 8; on a GPU it tries how many are worth it.",
    ),
]
Pack = Annotated[
    int,
    typer.Option(
        "--pack",
        metavar="P",
        min=1,
        max=MOST,
        rich_help_panel=TRAINING,
        help="Trials that a process trains at the same time; those whose weights stack share each "
        "pass, and the sampler fills passes, such as 4. It pays on a GPU that small models leave "
        "idle.",
    ),
]
Timeout = Annotated[
    str | None,
    typer.Option(
        "--timeout",
        metavar="TIME",
        help="Stop this command after TIME, such as 2h or 1h30m; run it again to go on. "
        "[default: never]",
    ),
]


def console() -> Console:
    """The standard output. A pipe has no width; a row on one line is easier to search."""
    return Console(width=None if sys.stdout.isatty() else _PIPE_WIDTH)


def checkout() -> Path | None:
    """The root of the source checkout that this package is installed from, if it is one."""
    root = Path(__file__).resolve().parents[3]
    return root if (root / "pyproject.toml").is_file() and (root / "sweeps").is_dir() else None


def storage_url(given: str | None) -> str:
    """The storage to use."""
    if given is None:
        given = os.environ.get("VISWEEP_STORAGE")
    return _default_url() if given is None else given


def artifacts_place(given: str | None) -> str | None:
    """Where artifacts lie, if `--artifacts` says so, as a study may hold it.

    Raises:
        UsageError: it is no such place.
    """
    from visweep.storage.whereabouts import accepted_place

    return accepted_place(given)


def missing_folder(url: str) -> Path | None:
    """The folder of the default storage, as long as there is none."""
    folder = _default_file().parent
    return folder if url == _default_url() and not folder.exists() else None


def is_fresh(given: str | None) -> bool:
    """Whether the default storage is meant and nothing has been searched in it yet."""
    return given is None and "VISWEEP_STORAGE" not in os.environ and not _default_file().exists()


def is_default(url: str) -> bool:
    """Whether a command that is given no storage would use this one."""
    return url == storage_url(None)


def this_command() -> str:
    """How this process was called, without passwords."""
    called, arguments = Path(sys.argv[0]), [bare(argument) for argument in sys.argv[1:]]
    before = [str(called)] if called.suffix != ".py" else ["python", str(called)]
    if called.stem == "visweep":
        before = ["visweep"]
    return shlex.join([*before, *arguments])


def storage_arguments(url: str) -> list[str]:
    """What tells another command to use this storage; without a password, which a page or a log
    must not hold."""
    return [] if is_default(url) else ["--storage", bare(url)]


def _default_url() -> str:
    return URL.create("sqlite", database=str(_default_file())).render_as_string()


def _default_file() -> Path:
    return (checkout() or Path.cwd()) / "storage" / "studies.db"


def number_of_workers(given: str) -> int | None:
    """How many workers to start; None for as many as suit the machine.

    Raises:
        UsageError: it is no such number.
    """
    if given == "auto":
        return None
    if not given.isdecimal() or not 1 <= int(given) <= MOST:
        raise UsageError(f"--workers: {given!r} is not accepted; accepted: auto, 1 to {MOST}")
    return int(given)


def seconds(text: str | None) -> float | None:
    """A duration such as 90s, 30m, 2h or 1h30m, in seconds.

    Raises:
        UsageError: it is none.
    """
    if text is None:
        return None
    if not re.fullmatch(r"(\d+(\.\d+)?[smhd])+", text):
        raise UsageError(f"--timeout: {text!r} is no duration; accepted: 90s, 30m, 2h, 1h30m")
    parts = re.findall(r"([\d.]+)([smhd])", text)
    return sum(float(number) * _UNITS[unit] for number, unit in parts)
