"""The commands that take a model out of a study, and use it."""

from pathlib import Path
from typing import Annotated

import typer

from visweep.cli import options as opt


def register(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    for command in (export, predict, shift):
        app.command()(command)


def export(
    study: opt.Study,
    trial: Annotated[
        int | None,
        typer.Option(
            "--trial",
            metavar="N",
            min=0,
            help="Which trial, such as 7. [default: the best that completed]",
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            "--seed",
            metavar="S",
            help="Of a trial of several seeds, the model of this one, such as 2. "
            "[default: the one with the highest validation accuracy]",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="DIR",
            help="The new folder, such as model. [default: STUDY-trial-N]",
        ),
    ] = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            "--checkpoint",
            metavar="FILE",
            help="Weights that visweep train --checkpoint left of this trial, such as run.ckpt. "
            "[default: those that the study has kept]",
        ),
    ] = None,
    data_dir: opt.DataDir = None,
    storage: opt.Storage = None,
    artifacts: opt.Artifacts = None,
) -> None:
    """Write a trained model into a folder: weights, ONNX, configuration, and a page about it."""
    from visweep.cli.choosing import Wanted
    from visweep.cli.export import export

    export(
        opt.console(),
        Wanted(
            study=study,
            trial=trial,
            seed=seed,
            output=output,
            checkpoint=checkpoint,
            data_dir=data_dir,
            storage=storage,
            artifacts=artifacts,
        ),
    )


def shift(
    study: opt.Study,
    trial: Annotated[
        list[int] | None,
        typer.Option(
            "--trial",
            metavar="N",
            min=0,
            help="Which trial, such as 7; may be repeated. Its weights must have been kept. "
            "[default: the best; where arms are compared, the best of each that others are a "
            "change of]",
        ),
    ] = None,
    data_dir: opt.DataDir = None,
    device: opt.Device = "auto",
    storage: opt.Storage = None,
    artifacts: opt.Artifacts = None,
) -> None:
    """Measure what shifted images do to trained models: accuracy, and each layer's features."""
    from visweep.cli.shift import Wanted, shift

    shift(
        opt.console(),
        Wanted(
            study=study,
            trials=tuple(trial or ()),
            data_dir=data_dir,
            device=device,
            storage=storage,
            artifacts=artifacts,
        ),
    )


def predict(
    model: Annotated[
        Path, typer.Argument(metavar="MODEL", help="A folder that visweep export wrote.")
    ],
    images: Annotated[
        list[Path],
        typer.Argument(metavar="IMAGE...", help="Image files, or folders of them."),
    ],
    top: Annotated[
        int,
        typer.Option(
            "--top", metavar="T", min=1, help="Show the T most probable classes, such as 1."
        ),
    ] = 3,
    csv: Annotated[
        bool, typer.Option("--csv", help="As comma-separated values, a row per class.")
    ] = False,
) -> None:
    """Say what images show, by an exported model: the most probable classes of each."""
    from visweep.cli.predict import predict

    predict(opt.console(), model, images, top, csv)
