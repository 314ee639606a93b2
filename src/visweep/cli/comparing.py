"""The commands that train chosen configurations of a study again, and compare them."""

from typing import Annotated

import typer

from visweep.cli import options as opt
from visweep.cli import sweep_options as own


def register(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    app.command()(ablate)


Trial = Annotated[
    int | None,
    typer.Option(
        "--trial",
        metavar="N",
        min=0,
        help="Which trial, such as 7. [default: the best that completed]",
    ),
]
Name = Annotated[
    str | None,
    typer.Option(
        "--name",
        metavar="NAME",
        help="Name of the study that is made, such as why. [default: made of STUDY]",
    ),
]


def ablate(
    study: opt.Study,
    trial: Trial = None,
    to: Annotated[
        str,
        typer.Option(
            "--to",
            metavar="WHAT",
            help="What each parameter is set to: baseline, the value that the search began with, "
            "or neighbours, the values next to it in the space.",
        ),
    ] = "baseline",
    seeds: Annotated[
        int,
        typer.Option(
            "--seeds",
            metavar="K",
            min=1,
            help="How many seeds each configuration is trained with in all, such as 10.",
        ),
    ] = 5,
    name: Name = None,
    storage: opt.Storage = None,
    artifacts: opt.Artifacts = None,
    data_dir: opt.DataDir = None,
    device: opt.Device = "auto",
    workers: opt.Workers = "auto",
    pack: opt.Pack = 1,
    timeout: opt.Timeout = None,
    dry_run: own.DryRun = False,
) -> int:
    """Train a study's winner again with one parameter changed at a time, and judge each change."""
    from visweep.cli.ablate import Wanted, ablate
    from visweep.cli.join import Local

    local = Local(
        storage=storage,
        data_dir=data_dir,
        artifacts=artifacts,
        device=device,
        workers=opt.number_of_workers(workers),
        pack=pack,
        timeout=opt.seconds(timeout),
    )
    wanted = Wanted(
        study=study, trial=trial, to=to, seeds=seeds, name=name, dry_run=dry_run, local=local
    )
    return ablate(wanted)
