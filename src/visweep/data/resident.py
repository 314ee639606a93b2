"""The images, once, as uint8 on the training device; batches are gathered and augmented there."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from visweep.config import TrainConfig
from visweep.data.dataset import Dataset, Split
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
    mean, std = dataset.moments
    train = _resident(dataset.train, device, margin)
    count = min(len(dataset.train), len(dataset.val))
    evenly = torch.linspace(0, len(train) - 1, count, device=device).round().long()
    return ResidentData(
        dataset=dataset,
        train=train,
        val=_resident(dataset.val, device),
        probe=ResidentSplit(train.images[evenly], train.labels[evenly]),
        mean=torch.tensor(mean, device=device).view(-1, 1, 1) * 255.0,
        std=torch.tensor(std, device=device).view(-1, 1, 1) * 255.0,
    )


def _resident(split: Split, device: torch.device, margin: int = 0) -> ResidentSplit:
    images = torch.from_numpy(split.images).to(device)
    labels = torch.from_numpy(split.labels).to(device)
    return ResidentSplit(F.pad(images, (margin,) * 4) if margin else images, labels, margin)


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
