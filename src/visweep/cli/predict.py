"""What an exported model says of image files."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from rich.console import Console

from visweep import text
from visweep.data.picture import content_of, files_in, pixels
from visweep.errors import DataError
from visweep.training.exported import Exported, read

_MODEL, _IMAGE = "MODEL", "IMAGE"
_AT_ONCE = 128


@dataclass(frozen=True)
class Prediction:
    """What one image shows.

    Attributes:
        path: of the image.
        classes: names and probabilities, the most probable first.
    """

    path: Path
    classes: tuple[tuple[str, float], ...]


def predict(console: Console, folder: Path, given: Sequence[Path], top: int, as_csv: bool) -> None:
    """Print the `top` most probable classes of each image, once all have been read.

    Raises:
        UsageError: the folder holds no model, or an image cannot be read.
    """
    paths = image_files(given)
    predictions = list(predicted(read(folder, _MODEL), paths, top))
    if as_csv:
        _write_csv(predictions)
        return
    for each in predictions:
        said = ", ".join(f"{name} {text.percent(p)}" for name, p in each.classes)
        text.print_line(console, f"{each.path}: {said}")


def image_files(given: Iterable[Path]) -> list[Path]:
    """The files, and in place of each folder the images in it and below it, by name.

    Raises:
        DataError: there is no such file, or a folder has no images.
    """
    files: list[Path] = []
    for path in given:
        if path.is_dir():
            inside = sorted(files_in(path, _IMAGE))
            if not inside:
                raise DataError(f"{_IMAGE}: the folder {path} has no images; expected PNG or JPEG")
            files += inside
        elif path.exists():
            files.append(path)
        else:
            raise DataError(f"{_IMAGE}: there is no file or folder {path}")
    return files


def predicted(model: Exported, paths: Iterable[Path], top: int) -> Iterator[Prediction]:
    """What the model says of each image.

    Raises:
        DataError: an image cannot be read.
    """
    remaining = iter(paths)
    while batch := list(islice(remaining, _AT_ONCE)):
        images = torch.from_numpy(np.stack([_pixels(path, model) for path in batch]))
        found = model.logits(images).softmax(1).topk(min(top, len(model.classes)))
        for path, row, indices in zip(
            batch, found.values.tolist(), found.indices.tolist(), strict=True
        ):
            names = (model.classes[index] for index in indices)
            yield Prediction(path, tuple(zip(names, row, strict=True)))


def _pixels(path: Path, model: Exported) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    content_of(path, _IMAGE)
    wanted = model.preprocessing
    return pixels(path, wanted.image_size, wanted.channels, _IMAGE)


def _write_csv(predictions: Iterable[Prediction]) -> None:
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(("image", "rank", "class", "probability"))
    for each in predictions:
        for rank, (name, probability) in enumerate(each.classes, start=1):
            writer.writerow((each.path, rank, name, f"{probability:.6g}"))
