"""The command line of a sweep script: the options that all of them share, and what they do."""

import multiprocessing
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from visweep.cli import options as opt
from visweep.cli.errors import StoppedAtOnce, call
from visweep.config import DataConfig, TrainConfig
from visweep.errors import UsageError, unknown_name
from visweep.search.recipe import Recipe
from visweep.storage.url import bare


@dataclass(frozen=True, kw_only=True)
class SweepOptions:
    """What a sweep script was asked for; fields are named after the options."""

    trials: int
    study: str | None
    storage: str
    data: DataConfig
    train: TrainConfig
    space: str
    seeds: int
    device: str
    workers: int | None
    sampler: str
    pruner: str
    timeout: float | None
    seed: int


def run(recipe: Recipe) -> None:
    """Run a sweep script: parse its command line, search, and exit.

    In the processes of its workers, which import the script anew, it does nothing.
    """
    if multiprocessing.parent_process() is not None:
        return
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command(help=sys.modules["__main__"].__doc__)(_command(recipe))
    call(app)


def _command(recipe: Recipe):  # type: ignore[no-untyped-def]  # typer reads the signature
    train = recipe.train

    def command(
        trials: Annotated[
            int,
            typer.Option(
                "--trials",
                metavar="N",
                min=1,
                rich_help_panel=opt.SEARCH,
                help="How many trials the study has in all, those already finished included, "
                "such as 200.",
            ),
        ] = 50,
        study: Annotated[
            str | None,
            typer.Option(
                "--study",
                metavar="NAME",
                rich_help_panel=opt.SEARCH,
                help="Name of the study to create or resume, such as night-run. "
                "[default: made of the model, data set and space]",
            ),
        ] = None,
        storage: opt.Storage = None,
        dataset: opt.Dataset = "cluttered-digits",
        data_dir: opt.DataDir = None,
        image_size: opt.ImageSize = None,
        train_size: opt.TrainSize = None,
        epochs: opt.Epochs = train.epochs,
        batch_size: opt.BatchSize = train.batch_size,
        lr: opt.LearningRate = train.lr,
        weight_decay: opt.WeightDecay = train.weight_decay,
        space: Annotated[
            str,
            typer.Option(
                "--space",
                metavar="NAME",
                rich_help_panel=opt.SEARCH,
                help=f"What to search: {' or '.join(recipe.spaces)}, such as report.",
            ),
        ] = next(iter(recipe.spaces)),
        seeds: Annotated[
            int,
            typer.Option(
                "--seeds",
                metavar="K",
                min=1,
                rich_help_panel=opt.SEARCH,
                help="Replicas of each trial; their mean accuracy counts, such as 3.",
            ),
        ] = 1,
        device: opt.Device = "auto",
        workers: opt.Workers = "auto",
        sampler: Annotated[
            str,
            typer.Option(
                "--sampler",
                metavar="NAME",
                rich_help_panel=opt.SEARCH,
                help="tpe, random, gp, cmaes or qmc, such as random.",
            ),
        ] = "tpe",
        pruner: Annotated[
            str,
            typer.Option(
                "--pruner",
                metavar="NAME",
                rich_help_panel=opt.SEARCH,
                help="halving, hyperband, median or none, such as none.",
            ),
        ] = "halving",
        timeout: opt.Timeout = None,
        seed: Annotated[
            int,
            typer.Option(
                "--seed",
                metavar="S",
                min=0,
                rich_help_panel=opt.SEARCH,
                help="Seed of the study, such as 7.",
            ),
        ] = 0,
        dry_run: Annotated[
            bool,
            typer.Option(
                "--dry-run",
                help="Show what would be searched and what it would cost; train nothing.",
            ),
        ] = False,
    ) -> int:
        asked = SweepOptions(
            trials=trials,
            study=study,
            storage=opt.storage_url(storage),
            data=DataConfig(
                name=dataset,
                data_dir=None if data_dir is None else str(data_dir.expanduser()),
                image_size=image_size,
                train_size=train_size,
            ),
            train=_with_options(
                train, epochs=epochs, batch_size=batch_size, lr=lr, weight_decay=weight_decay
            ),
            space=space,
            seeds=seeds,
            device=device,
            workers=opt.number_of_workers(workers),
            sampler=sampler,
            pruner=pruner,
            timeout=opt.seconds(timeout),
            seed=seed,
        )
        return search(recipe, asked, dry_run)

    return command


def _with_options(train: TrainConfig, **given: float) -> TrainConfig:
    """Fields are named after the options, and so are the errors."""
    try:
        return train.replace(**given)
    except UsageError as e:
        field, _, reason = str(e).partition(":")
        raise UsageError(f"--{field.replace('_', '-')}:{reason}") from e


def search(recipe: Recipe, asked: SweepOptions, dry_run: bool) -> int:
    """Check everything, then search; returns the exit status.

    Nothing is written before every option has been found good.

    Raises:
        UsageError: an option is bad.
    """
    _check_names(recipe, asked)
    from visweep.cli.prepare import prepare

    prepared = prepare(recipe, asked)
    console = opt.console()
    if dry_run:
        from visweep.cli.dry_run import print_dry_run

        print_dry_run(console, prepared)
        return 0
    from visweep.cli.search import search_until_done

    try:
        return search_until_done(console, prepared, _this_command())
    except KeyboardInterrupt as e:
        # Typer would turn it into a status without a word.
        raise StoppedAtOnce(
            "stopped at once; the running epoch is lost, nothing else is; "
            f"resume: {_this_command()}"
        ) from e


def _check_names(recipe: Recipe, asked: SweepOptions) -> None:
    from visweep.search.pruners import PRUNERS
    from visweep.search.samplers import SAMPLERS

    for option, name, accepted in (
        ("--space", asked.space, recipe.spaces),
        ("--sampler", asked.sampler, SAMPLERS),
        ("--pruner", asked.pruner, PRUNERS),
    ):
        if name not in accepted:
            raise unknown_name(option, name, accepted)
    if asked.study is not None and not asked.study.strip():
        raise UsageError("--study: the name is empty")


def _this_command() -> str:
    script = Path(sys.argv[0])
    return f"python {shlex.join([str(script), *map(bare, sys.argv[1:])])}"
