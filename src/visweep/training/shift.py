"""How trained models take images that are shifted: in accuracy, and in each layer's features.

A shift moves an image by whole pixels; what moves in is black, as in the translation of training
images, and what moves out is lost. Of a distance there are eight shifts: right, left, up, down,
and as many pixels both ways at once. What is said of a distance is the mean over the eight.

Let F be a layer's feature map, and T a shift of the image by a multiple of the layer's stride, so
that the map can follow by whole cells: T'. The layer is equivariant where F(T x) = T' F(x); cf.
Zhang 2019, Making Convolutional Networks Shift-Invariant Again, https://arxiv.org/abs/1904.11486.
Its equivariance error is

    sqrt(sum |F(T x) - T' F(x)|² / sum |T' F(x) - mean|²)

over images, shifts, channels and the cells of the interior, the mean being each channel's own: 0
where the features move with the image, about sqrt(2) where they have no more in common than those
of another image and place. The interior is the middle half of the map each way, which keeps off
the padding of convolutions and what moved in (a map of less than 4 cells is taken whole), without
cells that would come from outside the map.

The invariance error of the pooled features, which the head reads, is the same without T'.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import sqrt
from statistics import fmean
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from visweep.config import ModelConfig
from visweep.data.resident import ResidentData, ResidentSplit
from visweep.models import ConvNet, ViT
from visweep.training.amounts import EVALUATED
from visweep.training.features import features, strides_of

FARTHEST = 8
"""Pixels."""
DIRECTIONS = tuple(d for d in product((-1, 0, 1), repeat=2) if d != (0, 0))
"""Pixels down and to the right."""
_MOST_IMAGES, _AT_ONCE = 256, 32
"""On which feature maps are compared: they are many numbers each."""


@dataclass(frozen=True)
class Layer:
    """What shifts do to a layer's feature map.

    Attributes:
        name: of the layer.
        stride: pixels that a cell of its map lies from the next.
        error: equivariance error at a shift by its stride, the smallest that it can follow.
        far_error: the same at a shift by `FARTHEST` pixels; None where it cannot follow that.
    """

    name: str
    stride: int
    error: float
    far_error: float | None = None


@dataclass(frozen=True)
class Robustness:
    """What shifts do to a model; the mean over several models.

    Attributes:
        pixels: how far the images were shifted, from 0.
        accuracy: fraction of the validation images classified correctly, at each distance.
        invariance: invariance error of the pooled features, at each distance.
        layers: those whose maps have room to move and whose features vary, in order; each the mean
            over the models in which they do.
    """

    pixels: tuple[int, ...]
    accuracy: tuple[float, ...]
    invariance: tuple[float, ...]
    layers: tuple[Layer, ...]

    def to_json(self) -> dict[str, Any]:
        """As a trial keeps it."""
        far = {each.name: each.far_error for each in self.layers if each.far_error is not None}
        return {
            "pixels": list(self.pixels),
            "accuracy": list(self.accuracy),
            "invariance": list(self.invariance),
            "equivariance": {each.name: each.error for each in self.layers},
            "strides": {each.name: each.stride for each in self.layers},
            "far": {"pixels": FARTHEST, "equivariance": far},
        }


Heard = Callable[[int], None]
"""Hears how many more images, shifted ones, have been evaluated; of a model `work` in all."""


def work(config: ModelConfig, data: ResidentData) -> int:
    """How many images, shifted ones, are evaluated to measure one model of a configuration."""
    shifts = len(DIRECTIONS) * FARTHEST
    compared = len(data.val.images[:: _step(data)])
    distances = {distance for _, distance in _compared(strides_of(config))}
    return len(data.val) * (2 + shifts) + compared * (1 + len(DIRECTIONS) * len(distances))


def robustness(
    models: Sequence[ViT | ConvNet],
    config: ModelConfig,
    data: ResidentData,
    heard: Heard = lambda images: None,
) -> Robustness:
    """Measure models of one configuration, such as the replicas of a trial, in float32.

    Args:
        models: of one replica each, in evaluation mode; moved to the device of the data.
        config: of each.
        data: what they were validated on.
        heard: told of the progress.
    """
    found = [_measured(model.to(data.device), config, data, heard) for model in models]
    return Robustness(
        pixels=found[0].pixels,
        accuracy=_means([each.accuracy for each in found]),
        invariance=_means([each.invariance for each in found]),
        layers=tuple(_mean_layers([each.layers for each in found], strides_of(config))),
    )


def _means(rows: Sequence[Sequence[float]]) -> tuple[float, ...]:
    return tuple(map(fmean, zip(*rows, strict=True)))


def _mean_layers(rows: Sequence[Sequence[Layer]], names: Iterable[str]) -> Iterator[Layer]:
    """The mean of each layer over the models that have it: where the features of one do not vary,
    it has no error."""
    for name in names:
        if same := [layer for row in rows for layer in row if layer.name == name]:
            yield _mean_layer(same)


def _mean_layer(same: Sequence[Layer]) -> Layer:
    far = [each.far_error for each in same if each.far_error is not None]
    error = fmean(each.error for each in same)
    return Layer(same[0].name, same[0].stride, error, fmean(far) if far else None)


def _measured(
    model: ViT | ConvNet, config: ModelConfig, data: ResidentData, heard: Heard
) -> Robustness:
    pixels = tuple(range(FARTHEST + 1))
    correct = {distance: torch.zeros((), device=data.device) for distance in pixels}
    pooled = {distance: RelativeError() for distance in pixels}
    for images, labels in _batches(data.val, EVALUATED.get(data.device.type, 128)):
        shifts, plain = Shifts(images, FARTHEST), features(model, data, images)
        heard(len(images))
        for distance in pixels:
            for direction in DIRECTIONS if distance else [(0, 0)]:
                found = features(model, data, shifts.by(distance, direction))
                correct[distance] += (found.logits.argmax(-1) == labels).sum()
                pooled[distance].add(found.pooled, plain.pooled)
                heard(len(images))
    looked_at = {distance: len(data.val) * (8 if distance else 1) for distance in pixels}
    return Robustness(
        pixels=pixels,
        accuracy=tuple(correct[distance].item() / looked_at[distance] for distance in pixels),
        invariance=tuple(pooled[distance].relative() or 0.0 for distance in pixels),
        layers=tuple(_layers(model, config, data, heard)),
    )


def _batches(split: ResidentSplit, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    parts = (torch.split(part, size) for part in (split.images, split.labels))
    yield from zip(*parts, strict=True)


def _step(data: ResidentData) -> int:
    return -(-len(data.val) // _MOST_IMAGES)


def _compared(strides: Mapping[str, int]) -> Iterator[tuple[str, int]]:
    """The layers, and the distances that each can follow."""
    for name, stride in strides.items():
        for distance in {stride, FARTHEST} if FARTHEST % stride == 0 else {stride}:
            yield name, distance


def _layers(
    model: ViT | ConvNet, config: ModelConfig, data: ResidentData, heard: Heard
) -> Iterator[Layer]:
    strides = strides_of(config)
    errors = {key: RelativeError() for key in _compared(strides)}
    distances = sorted({distance for _, distance in errors})
    for images in torch.split(data.val.images[:: _step(data)], _AT_ONCE):
        shifts, plain = Shifts(images, distances[-1]), features(model, data, images, maps=True)
        heard(len(images))
        for distance, direction in product(distances, DIRECTIONS):
            moved = features(model, data, shifts.by(distance, direction), maps=True)
            for name, stride in strides.items():
                if (name, distance) in errors:
                    cells = [distance // stride * way for way in direction]
                    both = interior(moved.maps[name], plain.maps[name], cells)
                    errors[name, distance].add(*both)
            heard(len(images))
    for name, stride in strides.items():
        error, far = errors[name, stride].relative(), errors.get((name, FARTHEST))
        if error is not None:
            yield Layer(name, stride, error, None if far is None else far.relative())


class Shifts:
    """Images, shifted by up to `farthest` pixels.

    Args:
        images: (B, C, H, W) uint8.
        farthest: pixels.
    """

    def __init__(self, images: Tensor, farthest: int) -> None:
        bordered = F.pad(images, [farthest] * 4)
        self._farthest = farthest
        self._crops = ResidentSplit(bordered, bordered, farthest).crops(farthest)

    def by(self, distance: int, direction: Sequence[int]) -> Tensor:
        """(B, C, H, W) uint8."""
        down, right = (self._farthest - distance * way for way in direction)
        return self._crops[:, :, down, right]


def interior(moved: Tensor, plain: Tensor, cells: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Two views that are equal where a layer is equivariant; empty where there is no room.

    Args:
        moved: (B, D, rows, columns), the map of the shifted images.
        plain: the same of the images themselves.
        cells: by how many the images were shifted, down and to the right.
    """
    here: list[slice] = []
    there: list[slice] = []
    for length, shift in zip(plain.shape[2:], cells, strict=True):
        margin = length // 4
        low = max(margin, shift)
        high = max(low, min(length - margin, length + shift))
        here.append(slice(low, high))
        there.append(slice(low - shift, high - shift))
    return moved[:, :, here[0], here[1]], plain[:, :, there[0], there[1]]


class RelativeError:
    """The root of summed squared differences, relative to those from each channel's mean."""

    def __init__(self) -> None:
        self._differences = self._squares = self._sum = torch.zeros(())
        self._count = 0

    def add(self, found: Tensor, expected: Tensor) -> None:
        """Count in what was found and what was expected, both (B, D, …)."""
        by_channel = expected.double().transpose(0, 1).flatten(1)
        difference = found.double() - expected.double()
        self._differences = difference.square().sum() + self._differences
        self._squares = by_channel.square().sum() + self._squares
        self._sum = by_channel.sum(1) + self._sum
        self._count += by_channel.shape[1]

    def relative(self) -> float | None:
        """None where nothing differs between images and places."""
        if not self._count:
            return None
        squares = float(self._squares)
        spread = squares - float(self._sum.square().sum()) / self._count
        # What is left of equal numbers is rounding.
        return sqrt(float(self._differences) / spread) if spread > 1e-9 * squares else None
