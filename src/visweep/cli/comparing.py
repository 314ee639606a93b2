"""The commands that train chosen configurations of a study again, and compare them."""

from typing import Annotated

import typer

from visweep.cli import options as opt
from visweep.cli import sweep_options as own


def register(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    for command in (ablate, pruned, race):
        app.command()(command)


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
        help="Name of the study that is made, such as why; the report of STUDY shows the one that "
        "is called STUDY-ablation only, or STUDY-neighbours. [default: made of STUDY]",
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
            help="What each parameter is set to, such as neighbours, the values next to it in the "
            "space, or baseline, the value that the search began with.",
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
    from visweep.cli.join import local_of

    local = local_of(storage, artifacts, data_dir, device, workers, pack, timeout)
    wanted = Wanted(
        study=study, trial=trial, to=to, seeds=seeds, name=name, dry_run=dry_run, local=local
    )
    return ablate(wanted)


def pruned(
    study: opt.Study,
    sample: Annotated[
        int,
        typer.Option(
            "--sample",
            metavar="S",
            min=1,
            help="How many pruned trials to train, such as 10: half of them those that were "
            "nearest to the best when they were stopped, the others drawn at random. Run it "
            "again with a larger number, and only those are trained that are missing.",
        ),
    ] = 5,
    storage: opt.Storage = None,
    artifacts: opt.Artifacts = None,
    data_dir: opt.DataDir = None,
    device: opt.Device = "auto",
    workers: opt.Workers = "auto",
    pack: opt.Pack = 1,
    timeout: opt.Timeout = None,
    dry_run: own.DryRun = False,
) -> int:
    """Train a few pruned trials to their end: would any have won? The report says what follows."""
    from visweep.cli.join import local_of
    from visweep.cli.pruned import Wanted, pruned

    local = local_of(storage, artifacts, data_dir, device, workers, pack, timeout)
    return pruned(Wanted(study=study, sample=sample, dry_run=dry_run, local=local))


def race(
    study: opt.Study,
    top: Annotated[
        int | None,
        typer.Option(
            "--top",
            metavar="K",
            help="How many of the study's best configurations take part, such as 3. [default: 5]",
        ),
    ] = None,
    seeds: Annotated[
        str | None,
        typer.Option(
            "--seeds",
            metavar="A..B",
            help="With how many seeds each is trained before anybody may be dropped, and with how "
            "many at most, such as 3..10. [default: 3..20]",
        ),
    ] = None,
    storage: opt.Storage = None,
    artifacts: opt.Artifacts = None,
    data_dir: opt.DataDir = None,
    device: opt.Device = "auto",
    workers: opt.Workers = "auto",
    pack: opt.Pack = 1,
    timeout: opt.Timeout = None,
) -> int:
    """Train a study's leaders with new seeds until one is best; then look at the test images."""
    from visweep.cli.join import local_of
    from visweep.cli.race import Wanted, race

    local = local_of(storage, artifacts, data_dir, device, workers, pack, timeout)
    return race(opt.console(), Wanted(study=study, top=top, seeds=seeds, local=local))
