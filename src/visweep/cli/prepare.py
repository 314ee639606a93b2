"""From options to everything that a search needs, without writing anything yet."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from visweep import data
from visweep.cli.limits import with_limits
from visweep.cli.options import missing_folder
from visweep.cli.sweep import Asked, SweepOptions
from visweep.data.dataset import Dataset
from visweep.search.recipe import Recipe
from visweep.search.samplers import require_safe
from visweep.search.seeds import replica_seeds
from visweep.search.spaces import check_space, into_space
from visweep.storage.specification import Specification
from visweep.storage.url import check_folder, check_sqlite_file, parse, sqlite_path
from visweep.training.resolve import device_name, precision_on, require_batch


@dataclass(frozen=True)
class Prepared:
    """Everything that a search needs.

    Attributes:
        asked: the options.
        name: of the study.
        specification: of the study.
        dataset: the images.
        device: that is to train.
        attributes: of a new study, besides its specification.
        renewed: of the study, new or not.
        renamed_by: the option that gives it another name.
    """

    asked: Asked
    name: str
    specification: Specification
    dataset: Dataset
    device: str
    attributes: Mapping[str, Any] = field(default_factory=dict)
    renewed: Mapping[str, Any] = field(default_factory=dict)
    renamed_by: str = "--study"


def prepare(
    recipe: Recipe, asked: SweepOptions, tell: Callable[[str], object] = lambda message: None
) -> Prepared:
    """Load the data and state the specification.

    Args:
        recipe: what to search.
        asked: the options.
        tell: is told of what takes a while.

    Raises:
        UsageError: an option is bad.
    """
    require_storage(asked.storage)
    require_safe(asked.sampler, asked.storage)
    if asked.data.image_size is not None:
        # Resizing all images takes a while, and much memory if the size is a slip.
        recipe.spaces[asked.space](asked.data.image_size)
    device = device_name(asked.device)
    return prepare_on(data.load(asked.data), recipe, asked, device, tell)


def prepare_on(
    dataset: Dataset,
    recipe: Recipe,
    asked: SweepOptions,
    device: str,
    tell: Callable[[str], object] = lambda message: None,
) -> Prepared:
    """State the specification for images that are loaded.

    Raises:
        UsageError: an option is bad.
    """
    require_batch(asked.train.batch_size, len(dataset.train))
    image_size = dataset.model_fields["image_size"]
    space = recipe.spaces[asked.space](image_size)
    model, train = into_space(recipe.baseline, asked.train, dataset.model_fields, space)
    train = train.replace(
        seeds=replica_seeds(asked.seed, asked.seeds),
        precision=precision_on(device, asked.train.precision),
        **dataset.train_fields,
    )
    check_space(space, model, train)
    name = asked.study or f"{recipe.name}-{asked.data.name}-{asked.space}"
    specification = Specification(
        space=space,
        data=asked.data,
        fingerprint=dataset.fingerprint,
        model=model,
        train=train,
        sampler=asked.sampler,
        pruner=asked.pruner,
        seed=asked.seed,
        duplicates=asked.duplicates,
        limits=asked.limits,
    )
    return Prepared(
        asked=asked,
        name=name,
        specification=with_limits(
            specification,
            dataset,
            storage=asked.storage,
            study=name,
            device=device,
            workers=asked.workers,
            tell=tell,
        ),
        dataset=dataset,
        device=device,
    )


def require_storage(url: str) -> None:
    """See that a study can be created in a storage, or resumed; nothing is written.

    Raises:
        UsageError: it cannot.
    """
    path = sqlite_path(parse(url))
    folder = missing_folder(url)
    if folder is not None:
        check_folder(folder.parent)
    elif path is not None:
        check_sqlite_file(path, must_exist=False)
