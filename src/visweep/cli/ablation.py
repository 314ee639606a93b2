"""The command line of a script that compares baselines with changes of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated

import typer

from visweep import data
from visweep.cli import options as opt
from visweep.cli import sweep_options as own
from visweep.cli.images import images_asked_for
from visweep.cli.prepare import Prepared, require_storage
from visweep.cli.sweep import Asked, train_all, with_options
from visweep.errors import UsageError
from visweep.search.arms import MOST_SEEDS, Ablation, arms_specification
from visweep.search.seeds import replica_seeds
from visweep.training.resolve import device_name, precision_on, require_batch

Seeds = Annotated[
    int,
    typer.Option(
        "--seeds",
        metavar="K",
        min=1,
        rich_help_panel=opt.SEARCH,
        help="How many seeds each configuration is trained with in all, such as 10: run it again "
        "with a larger number, and only those are trained that are missing.",
    ),
]
Study = Annotated[
    str | None,
    typer.Option(
        "--study",
        metavar="NAME",
        rich_help_panel=opt.SEARCH,
        help="Name of the study to create or resume, such as night-run. "
        "[default: made of the script's and the data set]",
    ),
]


@dataclass(frozen=True, kw_only=True)
class AblationOptions(Asked):
    """What such a script was asked for; fields are named after the options."""

    seeds: int
    seed: int


def command(recipe: Ablation):  # type: ignore[no-untyped-def]  # typer reads the signature
    """The command of a script that states an ablation."""
    train = recipe.train

    def command(
        study: Study = None,
        storage: opt.Storage = None,
        artifacts: opt.Artifacts = None,
        dataset: opt.Dataset = "cluttered-digits",
        data_dir: opt.DataDir = None,
        image_size: opt.ImageSize = recipe.image_size,
        train_size: opt.TrainSize = None,
        epochs: opt.Epochs = train.epochs,
        batch_size: opt.BatchSize = train.batch_size,
        lr: opt.LearningRate = train.lr,
        weight_decay: opt.WeightDecay = train.weight_decay,
        train_curves: opt.TrainCurves = train.train_curves,
        seeds: Seeds = 5,
        seed: own.Seed = 0,
        device: opt.Device = "auto",
        workers: opt.Workers = "auto",
        pack: opt.Pack = 1,
        timeout: opt.Timeout = None,
        dry_run: own.DryRun = False,
    ) -> int:
        asked = AblationOptions(
            # Known once the arms are.
            trials=0,
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
            seeds=seeds,
            seed=seed,
            device=device,
            workers=opt.number_of_workers(workers),
            pack=pack,
            timeout=opt.seconds(timeout),
        )
        return train_all(prepare_ablation(recipe, asked), dry_run)

    return command


def prepare_ablation(recipe: Ablation, asked: AblationOptions) -> Prepared:
    """Load the images and state the specification; nothing is written.

    Raises:
        UsageError: an option is bad.
    """
    if asked.seeds > MOST_SEEDS:
        raise UsageError(f"--seeds: {asked.seeds} is not accepted; accepted: 1 to {MOST_SEEDS}")
    if asked.study is not None and not asked.study.strip():
        raise UsageError("--study: the name is empty; accepted: any other name")
    require_storage(asked.storage)
    if asked.data.image_size is not None:
        # Resizing all images takes a while.
        recipe.arms(asked.train, {"image_size": asked.data.image_size})
    device = device_name(asked.device)
    dataset = data.load(asked.data)
    require_batch(asked.train.batch_size, len(dataset.train))
    train = asked.train.replace(**dataset.train_fields)
    specification = arms_specification(
        recipe.arms(train, dataset.model_fields),
        first_seed=replica_seeds(asked.seed, 1)[0],
        data=asked.data,
        fingerprint=dataset.fingerprint,
        precision=precision_on(device, train.precision),
        seed=asked.seed,
    )
    return Prepared(
        asked=replace(asked, trials=len(specification.arms) * asked.seeds),
        name=asked.study or f"{recipe.name}-{asked.data.name}",
        specification=specification,
        dataset=dataset,
        device=device,
    )
