"""Data sets by name: `load` for the search, `load_test` for the report alone.

Nothing here imports torch unless a data set must be read through torchvision.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

from visweep.config import DataConfig
from visweep.data import cluttered, folder, published
from visweep.data.dataset import Dataset, Split, fingerprint
from visweep.data.source import Part, Source
from visweep.data.splits import evenly, hold_out, val_count
from visweep.errors import DataError, UsageError, unknown_name

__all__ = ["Dataset", "Split", "load", "load_test", "names"]

_MODULES: dict[str, ModuleType] = {
    "cluttered-digits": cluttered,
    **dict.fromkeys(published.NAMES, published),
    "imagefolder": folder,
}


def names() -> tuple[str, ...]:
    """The data sets that can be asked for."""
    return tuple(_MODULES)


def load(config: DataConfig | str) -> Dataset:
    """The training and validation images of a data set, which may be given by its name alone.

    Validation images are the published ones, or else a stratified part of the published
    training images (`splits.val_count`). The fingerprint describes the images and labels of
    both parts as they were found, before any resizing.

    Raises:
        UsageError: there is no such data set, or it has not `train_size` images.
        DataError: the images are missing, unreadable or damaged.
    """
    config = _config(config)
    with _explained(config):
        source: Source = _MODULES[config.name].load(config)
        train, val = _parts(source, config.split_seed)
        if config.train_size is not None:
            train = _reduced(train, config.train_size, len(source.classes), config.split_seed)
        return Dataset(
            name=config.name,
            classes=source.classes,
            train=train.read(config.image_size),
            val=val.read(config.image_size),
            fingerprint=fingerprint(train.digest(), val.digest()),
            may_flip=source.may_flip,
            padding=train.padding(config.image_size),
        )


def load_test(config: DataConfig | str) -> Split:
    """The published test images, at the size that `load` gives. No search may see them.

    Raises:
        UsageError: there is no such data set.
        DataError: the images are missing, unreadable or damaged.
    """
    config = _config(config)
    with _explained(config):
        test: Part = _MODULES[config.name].load_test(config)
        return test.read(config.image_size)


def _config(config: DataConfig | str) -> DataConfig:
    config = DataConfig(name=config) if isinstance(config, str) else config
    if config.name not in _MODULES:
        raise unknown_name("--dataset", config.name, _MODULES)
    return config


def _parts(source: Source, seed: int) -> tuple[Part, Part]:
    if source.val is not None:
        return source.train, source.val
    labels = source.train.labels
    kept, held = hold_out(labels, val_count(len(labels)), "validation", seed)
    return source.train.take(kept), source.train.take(held)


def _reduced(train: Part, size: int, classes: int, seed: int) -> Part:
    labels = train.labels
    if not classes <= size <= len(labels):
        raise UsageError(
            f"--train-size: {size} is not in {classes} (one image per class) to {len(labels)} "
            "(all training images)"
        )
    return train.take(evenly(labels, size, "train size", seed))


@contextmanager
def _explained(config: DataConfig) -> Iterator[None]:
    """Folders that may not be entered, names that are too long, and the like."""
    try:
        yield
    except OSError as e:
        raise DataError(
            f"--dataset {config.name}: {e.filename or 'a file'} cannot be read ({e.strerror})"
        ) from e
