"""What a data set is, once loaded: uint8 images, labels, and a fingerprint of their content."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from visweep.errors import DataError

Images = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]
Moments = tuple[list[float], list[float]]
"""Mean and standard deviation of each channel, in [0, 1]."""


@dataclass(frozen=True)
class Split:
    """Some labelled images.

    Attributes:
        images: (N, C, H, W) uint8.
        labels: (N,) int64, indices into the data set's classes.
        groups: (N,) int64 or None. Images of an equal number share a source (such as the
            scanned digit that they show), so they are no independent evidence.
    """

    images: Images
    labels: Labels
    groups: npt.NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Dataset:
    """Training and validation images of one data set; the test images are loaded apart.

    Attributes:
        name: the name that it is asked for by.
        classes: name of each class; a label is an index into it.
        train: what models are trained on.
        val: what the search sees; disjoint from `train`.
        fingerprint: depends on the content of both parts, never on paths or times.
        may_flip: whether a mirrored image still shows the same class.
        padding: width of the black border by which its images came to their size, in pixels.
    """

    name: str
    classes: tuple[str, ...]
    train: Split
    val: Split
    fingerprint: str
    may_flip: bool
    padding: int = 0

    def __post_init__(self) -> None:
        if len(self.classes) < 2:
            raise DataError(
                f"--dataset {self.name}: one class only ({', '.join(self.classes)}); "
                "a classifier needs two or more"
            )
        for part, split in (("training", self.train), ("validation", self.val)):
            if len(split) == 0:
                raise DataError(f"--dataset {self.name}: no {part} images")

    @property
    def model_fields(self) -> dict[str, int]:
        """The fields of a model's configuration that the data decide."""
        return {
            "image_size": self.train.images.shape[-1],
            "in_chans": self.train.images.shape[1],
            "num_classes": len(self.classes),
        }

    @property
    def train_fields(self) -> dict[str, int | bool]:
        """The fields of the training configuration that the data decide: the augmentation."""
        return {
            "translate": max(1, self.train.images.shape[-1] // 16),
            "flip": self.may_flip,
        }

    @cached_property
    def moments(self) -> Moments:
        """Those of the training images."""
        pixels = self.train.images
        mean = pixels.mean(axis=(0, 2, 3), dtype=np.float64) / 255.0
        std = pixels.std(axis=(0, 2, 3), dtype=np.float64) / 255.0
        return mean.tolist(), np.maximum(std, 1e-3).tolist()


def with_border(images: Images, margin: int) -> Images:
    """(N, C, H, W) to (N, C, H + 2·margin, W + 2·margin): a black border around each image."""
    return np.pad(images, ((0, 0), (0, 0), (margin, margin), (margin, margin)))


def fingerprint(*parts: Any) -> str:
    """A digest of arrays, bytes and plain values, in the order given."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            digest.update(f"array{part.dtype.str}{part.shape}".encode())
            digest.update(np.ascontiguousarray(part).data)
        elif isinstance(part, bytes):
            digest.update(b"bytes%d:" % len(part) + part)
        else:
            digest.update(repr(part).encode())
    return digest.hexdigest()
