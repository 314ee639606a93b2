"""A data set as it was found: not yet split, reduced, or brought to size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from visweep.data.dataset import Images, Labels, Split, fingerprint
from visweep.data.resize import padding, to_size
from visweep.data.splits import Indices


class Part(Protocol):
    """Labelled images, of which some may be chosen before they are read."""

    @property
    def labels(self) -> Labels:
        """(N,) int64."""

    def take(self, indices: Indices) -> Part:
        """These images only, in this order."""

    def digest(self) -> str:
        """Depends on the images and labels as they were found, on no path, name, time or size
        asked for."""

    def read(self, image_size: int | None) -> Split:
        """The images, square, `image_size` pixels high (None: the data set's own size).

        Raises:
            DataError: an image cannot be read.
        """

    def padding(self, image_size: int | None) -> int:
        """How wide a black border `read` gives to the images; see `Dataset.padding`."""


@dataclass(frozen=True)
class Source:
    """A data set by name.

    Attributes:
        classes: name of each class; a label is an index into it.
        train: the published training images.
        val: the published validation images; None when they are to be split off `train`.
        may_flip: whether a mirrored image still shows the same class.
    """

    classes: tuple[str, ...]
    train: Part
    val: Part | None
    may_flip: bool


@dataclass(frozen=True)
class ArrayPart:
    """Images of one size that fit in memory.

    Attributes:
        images: (N, C, H, H) uint8.
        labels: (N,) int64.
        groups: (N,) int64 or None; see `Split.groups`.
    """

    images: Images
    labels: Labels
    groups: npt.NDArray[np.int64] | None = None

    def take(self, indices: Indices) -> ArrayPart:
        groups = None if self.groups is None else self.groups[indices]
        return ArrayPart(self.images[indices], self.labels[indices], groups)

    def digest(self) -> str:
        return fingerprint(self.images, self.labels)

    def read(self, image_size: int | None) -> Split:
        return Split(to_size(self.images, image_size), self.labels, self.groups)

    def padding(self, image_size: int | None) -> int:
        return padding(self.images.shape[-1], image_size)
