"""The options that `visweep train` alone has; those that other commands share are in `options`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Study = Annotated[
    str | None,
    typer.Option(
        "--study",
        metavar="NAME",
        help="Train a configuration of this study, such as night-run. "
        "[default: none; spell it out with --model and --set]",
    ),
]
Trial = Annotated[
    int | None,
    typer.Option(
        "--trial", metavar="N", min=0, help="Which trial of it, such as 7. [default: best]"
    ),
]
Model = Annotated[
    str, typer.Option("--model", metavar="KIND", help="Without a study: vit or convnet.")
]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="FIELD=VALUE",
        help="Change a field of the configuration, such as --set depth=4; may be repeated. "
        "[default: none]",
    ),
]
Seed = Annotated[
    int | None,
    typer.Option(
        "--seed",
        metavar="S",
        min=0,
        help="Train with this seed, such as 11. [default: the study's, or 0]",
    ),
]
Epochs = Annotated[
    int | None,
    typer.Option(
        "--epochs",
        metavar="E",
        min=1,
        help="Train so many epochs, such as 20. [default: the study's, or 8]",
    ),
]
Dataset = Annotated[
    str | None,
    typer.Option(
        "--dataset",
        metavar="NAME",
        help="Without a study: which images, such as mnist. [default: cluttered-digits]",
    ),
]
TrainCurves = Annotated[
    bool | None,
    typer.Option(
        "--train-curves/--no-train-curves",
        help="Show training accuracy after each epoch, without and with the random translation "
        "and flip of training. [default: as in the study, or not]",
    ),
]
Checkpoint = Annotated[
    Path | None,
    typer.Option(
        "--checkpoint",
        metavar="FILE",
        help="Keep the state here after each epoch, and go on from it, such as run.ckpt. "
        "[default: nowhere]",
    ),
]
