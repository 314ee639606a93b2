"""Which images the options of a command ask for."""

from __future__ import annotations

from pathlib import Path

from visweep.config import DataConfig
from visweep.errors import UsageError

_GENERATED = ("cluttered-digits",)


def images_asked_for(
    dataset: str, data_dir: Path | None, image_size: int | None, train_size: int | None
) -> DataConfig:
    """The images of the options of these names.

    Raises:
        UsageError: a folder is named for images that are generated, and would not be read.
    """
    if data_dir is not None and dataset in _GENERATED:
        raise UsageError(
            f"--data-dir: {data_dir} would not be read, since {dataset} are generated; accepted: "
            "with images in files, such as --dataset imagefolder"
        )
    return DataConfig(
        name=dataset,
        data_dir=None if data_dir is None else str(data_dir.expanduser()),
        image_size=image_size,
        train_size=train_size,
    )
