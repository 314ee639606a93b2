"""Images shaped like those of CIFAR-10, which are not to be had without a network: 50,000 of 32×32
pixels in three colours and ten classes, generated, the same ones each time.

Each shows the pattern of a class under noise. A fifth of the labels are drawn by chance, so that
no model can be right about more than 82 % of them, as none is about photographs.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torchvision.datasets import VisionDataset

from visweep.data.dataset import Dataset, Images, Labels, Split, fingerprint
from visweep.data.splits import Indices

COUNT, SIZE, CLASSES = 50_000, 32, 10
_PATCHES = 8  # of one colour each, along a side of a class's pattern
_PATTERN, _NOISE = 96, 160  # values below these; their sum is a byte
_BY_CHANCE = 0.2
_CHUNK = 5_000


def _patterns() -> Images:
    """(classes, size, size, 3)."""
    patches = np.random.default_rng(0).integers(
        0, _PATTERN, (CLASSES, _PATCHES, _PATCHES, 3), np.uint8
    )
    return patches.repeat(SIZE // _PATCHES, 1).repeat(SIZE // _PATCHES, 2)


MEAN: tuple[float, ...]
STD: tuple[float, ...]
MEAN = tuple((_patterns().mean((0, 1, 2)) + (_NOISE - 1) / 2) / 255)
STD = tuple(np.sqrt(_patterns().var((0, 1, 2)) + (_NOISE**2 - 1) / 12) / 255)
"""Of each colour, as the images are drawn."""


@contextmanager
def generated(count: int) -> Iterator[Path]:
    """A folder with the images, for the while."""
    rng = np.random.default_rng(1)
    shown = rng.integers(0, CLASSES, count)
    labels = np.where(rng.random(count) < _BY_CHANCE, rng.integers(0, CLASSES, count), shown)
    images = np.empty((count, SIZE, SIZE, 3), np.uint8)
    patterns = _patterns()
    for start in range(0, count, _CHUNK):
        part = images[start : start + _CHUNK]
        part[:] = rng.integers(0, _NOISE, part.shape, np.uint8)
        part += patterns[shown[start : start + _CHUNK]]
    with tempfile.TemporaryDirectory() as folder:
        np.save(Path(folder) / "images.npy", images)
        np.save(Path(folder) / "labels.npy", labels)
        yield Path(folder)


class CifarShaped(VisionDataset):
    """What `generated` has written, as torchvision's `CIFAR10` reads what was published.

    Attributes:
        data: (N, 32, 32, 3) uint8.
        targets: one label for each.
    """

    def __init__(self, root: Path, transform: Callable[..., Any] | None = None) -> None:
        super().__init__(root, transform=transform)
        self.data: Images = np.load(root / "images.npy")
        self.targets: list[int] = np.load(root / "labels.npy").tolist()

    def __getitem__(self, index: int) -> tuple[Any, int]:
        image = Image.fromarray(self.data[index])
        return image if self.transform is None else self.transform(image), self.targets[index]

    def __len__(self) -> int:
        return len(self.data)


def dataset(root: Path, train: Indices, val: Indices) -> Dataset:
    """What `generated` has written, divided, as visweep has its images."""
    found = CifarShaped(root)
    images, labels = found.data.transpose(0, 3, 1, 2), np.array(found.targets)
    parts = [_part(images, labels, indices) for indices in (train, val)]
    return Dataset(
        name="cifar-shaped",
        classes=tuple(f"class {number}" for number in range(CLASSES)),
        train=parts[0],
        val=parts[1],
        fingerprint=fingerprint(*(each for part in parts for each in (part.images, part.labels))),
        may_flip=True,
    )


def _part(images: Images, labels: Labels, indices: Indices) -> Split:
    return Split(np.ascontiguousarray(images[indices]), labels[indices])
