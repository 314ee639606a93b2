"""The command line of a script in `sweeps/`: the options that they share, and what they do."""

import multiprocessing
import sys
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from visweep import text
from visweep.cli import options as opt
from visweep.cli import sweep_options as own
from visweep.cli.errors import call
from visweep.cli.images import images_asked_for
from visweep.config import DataConfig, TrainConfig
from visweep.errors import UsageError, unknown_name
from visweep.search.arms import Ablation
from visweep.search.recipe import Recipe
from visweep.storage.limits import NO_LIMITS, Limits

if TYPE_CHECKING:
    from visweep.cli.prepare import Prepared


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What every command that trains a study is asked for; fields are named after the options."""

    trials: int
    study: str | None
    storage: str
    artifacts: str | None
    data: DataConfig
    train: TrainConfig
    device: str
    workers: int | None
    timeout: float | None
    pack: int = 1


@dataclass(frozen=True, kw_only=True)
class SweepOptions(Asked):
    """What a sweep script was asked for; fields are named after the options."""

    space: str
    seeds: int
    sampler: str
    pruner: str
    duplicates: str
    seed: int
    limits: Limits = NO_LIMITS


def run(recipe: Recipe | Ablation) -> None:
    """Run a script: parse its command line, train what it states, and exit.

    In the processes of its workers, which import the script anew, it does nothing.
    """
    if multiprocessing.parent_process() is not None:
        return
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command(help=sys.modules["__main__"].__doc__)(command_of(recipe))
    call(app)


def command_of(recipe: Recipe | Ablation):  # type: ignore[no-untyped-def]
    """The command of a script: a function whose signature typer reads."""
    if isinstance(recipe, Ablation):
        from visweep.cli.ablation import command

        return command(recipe)
    return _command(recipe)


def _command(recipe: Recipe):  # type: ignore[no-untyped-def]  # typer reads the signature
    train = recipe.train

    def command(
        trials: own.Trials = 50,
        study: own.Study = None,
        storage: opt.Storage = None,
        artifacts: opt.Artifacts = None,
        dataset: opt.Dataset = "cluttered-digits",
        data_dir: opt.DataDir = None,
        image_size: opt.ImageSize = None,
        train_size: opt.TrainSize = None,
        epochs: opt.Epochs = train.epochs,
        batch_size: opt.BatchSize = train.batch_size,
        lr: opt.LearningRate = train.lr,
        weight_decay: opt.WeightDecay = train.weight_decay,
        train_curves: opt.TrainCurves = train.train_curves,
        space: Annotated[str, own.space(recipe.spaces)] = next(iter(recipe.spaces)),
        seeds: own.Seeds = 1,
        device: opt.Device = "auto",
        workers: opt.Workers = "auto",
        pack: opt.Pack = 1,
        sampler: own.Sampler = "tpe",
        pruner: own.Pruner = "halving",
        duplicates: own.Duplicates = "replicate",
        timeout: opt.Timeout = None,
        seed: own.Seed = 0,
        max_params: own.MaxParams = None,
        max_flops: own.MaxFlops = None,
        max_epoch_seconds: own.MaxEpochSeconds = None,
        dry_run: own.DryRun = False,
    ) -> int:
        asked = SweepOptions(
            trials=trials,
            study=study,
            storage=opt.storage_url(storage),
            artifacts=opt.artifacts_place(artifacts),
            data=images_asked_for(dataset, data_dir, image_size, train_size),
            train=with_options(
                train,
                epochs=epochs,
                batch_size=batch_size,
                lr=lr,
                weight_decay=weight_decay,
                train_curves=train_curves,
            ),
            space=space,
            seeds=seeds,
            device=device,
            workers=opt.number_of_workers(workers),
            pack=pack,
            sampler=sampler,
            pruner=pruner,
            duplicates=duplicates,
            timeout=opt.seconds(timeout),
            seed=seed,
            limits=own.limits(max_params, max_flops, max_epoch_seconds),
        )
        return search(recipe, asked, dry_run)

    return command


def with_options(train: TrainConfig, **given: float) -> TrainConfig:
    """The configuration with fields that are named after options, as errors are.

    Raises:
        UsageError: a value is not accepted.
    """
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

    console = opt.console()
    return train_all(prepare(recipe, asked, partial(text.print_line, console)), dry_run)


def train_all(prepared: "Prepared", dry_run: bool = False) -> int:
    """Train a study to its end, or only show what it would cost; returns the exit status."""
    console = opt.console()
    if dry_run:
        from visweep.cli.dry_run import print_dry_run

        print_dry_run(console, prepared)
        return 0
    from visweep.cli.search import search_until_done

    return search_until_done(console, prepared, opt.this_command())


def _check_names(recipe: Recipe, asked: SweepOptions) -> None:
    from visweep.search.duplicates import DUPLICATES
    from visweep.search.pruners import PRUNERS
    from visweep.search.samplers import SAMPLERS

    for option, name, accepted in (
        ("--space", asked.space, recipe.spaces),
        ("--sampler", asked.sampler, SAMPLERS),
        ("--pruner", asked.pruner, PRUNERS),
        ("--duplicates", asked.duplicates, DUPLICATES),
    ):
        if name not in accepted:
            raise unknown_name(option, name, accepted)
    if asked.study is not None and not asked.study.strip():
        raise UsageError("--study: the name is empty; accepted: any other name")
