"""The images, once, as uint8 on the training device; batches are gathered and augmented there."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from visweep.config import TrainConfig
from visweep.data.dataset import Dataset, Images, Labels, Moments, with_border
from visweep.draws import Draws


@dataclass(frozen=True)
class ResidentSplit:
    """One part of a data set on the device.

    Attributes:
        bordered: (N, C, H + 2·margin, W + 2·margin) uint8, the images with a black border.
        labels: (N,) int64.
        margin: width of the border, in pixels: images can be shifted so far without a copy.
    """

    bordered: Tensor
    labels: Tensor
    margin: int = 0

    def __len__(self) -> int:
        return len(self.labels)

    def first(self, count: int) -> ResidentSplit:
        """The first so many of them, or all if there are fewer; a view."""
        return replace(self, bordered=self.bordered[:count], labels=self.labels[:count])

    @property
    def images(self) -> Tensor:
        """(N, C, H, W) uint8; a view."""
        return self.crops(0)[..., 0, 0, :, :]

    def crops(self, translate: int) -> Tensor:
        """(N, C, 2·translate + 1, 2·translate + 1, H, W) uint8; a view, not a copy.

        Entry [n, :, y, x] is image n, cropped at offset (y, x) of a border of `translate` pixels.
        """
        spare = self.margin - translate
        height, width = (length - 2 * self.margin for length in self.bordered.shape[-2:])
        bordered = self.bordered.narrow(2, spare, height + 2 * translate)
        bordered = bordered.narrow(3, spare, width + 2 * translate)
        return bordered.unfold(2, height, 1).unfold(3, width, 1)


@dataclass(frozen=True)
class ResidentData:
    """A data set on the training device, with what is needed to make batches of it.

    Attributes:
        dataset: where it came from.
        train: the training images.
        val: the validation images.
        probe: as many training images as there are validation images (all, if there are fewer),
            spread evenly; training accuracy is measured on them.
        mean, std: (C, 1, 1) float32, in units of a uint8 step.
    """

    dataset: Dataset
    train: ResidentSplit
    val: ResidentSplit
    probe: ResidentSplit
    mean: Tensor
    std: Tensor

    @property
    def device(self) -> torch.device:
        return self.train.images.device

    def normalise(self, images: Tensor, dtype: torch.dtype) -> Tensor:
        """(…, C, H, W) uint8 to zero mean and unit deviation per channel, in `dtype`."""
        return images.to(dtype).sub_(self.mean.to(dtype)).div_(self.std.to(dtype))


def to_device(
    dataset: Dataset, device: torch.device, margin: int = TrainConfig.translate
) -> ResidentData:
    """Copy a data set to the training device.

    Args:
        dataset: what to copy.
        device: where to.
        margin: largest translation of a training image, in pixels.
    """
    bordered = with_border(dataset.train.images, margin)
    return resident(dataset, bordered, dataset.moments, device)


def resident(
    dataset: Dataset, bordered: Images, moments: Moments, device: torch.device
) -> ResidentData:
    """A data set on the training device; on the CPU the arrays themselves, not copies of them.

    Args:
        dataset: the images and labels.
        bordered: its training images with a border; see `with_border`.
        moments: see `Dataset.moments`.
        device: where to.
    """
    margin = (bordered.shape[-1] - dataset.train.images.shape[-1]) // 2
    train = _split(bordered, dataset.train.labels, device, margin)
    evenly = torch.from_numpy(_evenly(len(train), len(dataset.val))).to(device)
    mean, std = (torch.tensor(values, device=device).view(-1, 1, 1) * 255.0 for values in moments)
    return ResidentData(
        dataset=dataset,
        train=train,
        val=_split(dataset.val.images, dataset.val.labels, device),
        probe=ResidentSplit(train.bordered[evenly], train.labels[evenly], margin),
        mean=mean,
        std=std,
    )


def _split(images: Images, labels: Labels, device: torch.device, margin: int = 0) -> ResidentSplit:
    return ResidentSplit(
        torch.from_numpy(images).to(device), torch.from_numpy(labels).to(device), margin
    )


def _evenly(available: int, wanted: int) -> npt.NDArray[np.int64]:
    """So many indices, spread evenly; all, if there are fewer."""
    return np.linspace(0, available - 1, min(available, wanted)).round().astype(np.int64)


class Augmenter:
    """Gathers training batches: each image shifted, and mirrored where allowed, on its own.

    Args:
        split: the training images.
        translate: largest shift in pixels, at most the split's margin; what moves in is black.
        flip: mirror half of the images.
    """

    def __init__(self, split: ResidentSplit, translate: int, flip: bool) -> None:
        self._labels = split.labels
        self._offsets = 2 * translate + 1
        self._flip = flip
        self._crops = split.crops(translate)

    def batch(self, indices: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        """Images (K, B, C, H, W) uint8 and labels (K, B), for `indices` (K, B)."""
        if self._offsets > 1:
            shift = draws.integers(0, self._offsets, (indices.shape[1], 2), "shift")
            images = self._crops[indices, :, shift[..., 0], shift[..., 1]]
        else:
            images = self._crops[indices, :, 0, 0]
        if self._flip:
            mirrored = draws.integers(0, 2, (indices.shape[1],), "flip").bool()
            images = torch.where(mirrored[..., None, None, None], images.flip(-1), images)
        return images, self._labels[indices]
