"""The embedded data set: one handwritten digit among fragments of others and noise.

After the cluttered translated MNIST of Mnih et al. 2014 (https://arxiv.org/abs/1406.6247), made
from the 1,797 scanned digits that scikit-learn ships (Alpaydin and Kaynak 1998).
"""

from __future__ import annotations

from dataclasses import astuple, dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from visweep.config import DataConfig
from visweep.data.cache import Arrays, cached
from visweep.data.dataset import Labels, fingerprint
from visweep.data.source import ArrayPart, Source
from visweep.data.splits import Indices, hold_out, number

Floats = npt.NDArray[np.float32]
PartName = Literal["train", "val", "test"]

COUNTS: dict[PartName, int] = {"train": 4_000, "val": 1_500, "test": 2_000}
"""Images of each part."""
HELD_OUT = 0.2
"""Fraction of the scanned digits that only validation images are made of; and again for test."""
VERSION = 1
"""Part of the cache's key: to be raised with every change of how the images are made."""


@dataclass(frozen=True)
class Clutter:
    """How hard the images are; the fields were tuned so that a search on them means something."""

    size: int = 32
    """Height and width of an image, in pixels."""
    digit: int = 16
    """Height and width of the digit, in pixels."""
    fragments: int = 2
    """Pieces of other digits in each image."""
    fragment: int = 5
    """Height and width of a piece, in pixels."""
    noise: float = 0.05
    """Standard deviation of the pixel noise; ink is 1."""


def load(config: DataConfig) -> Source:
    """The training and validation images; `split_seed` decides which digits they are made of."""
    return Source(
        classes=tuple("0123456789"),
        train=build("train", config.split_seed),
        val=build("val", config.split_seed),
        may_flip=False,
    )


def load_test(config: DataConfig) -> ArrayPart:
    """The test images, the same for every `split_seed`."""
    return build("test", config.split_seed)


def build(part: PartName, split_seed: int, clutter: Clutter | None = None) -> ArrayPart:
    """One part of the data set, made once and then read from the user's cache.

    No two parts show the same scanned digit. The groups of the part are the digits' numbers in
    scikit-learn's set.
    """
    clutter = clutter or Clutter()
    seed = 0 if part == "test" else split_seed
    ingredients = (VERSION, part, COUNTS[part], HELD_OUT, seed, astuple(clutter))
    name = f"cluttered-digits-{part}-{fingerprint(ingredients)[:16]}"
    arrays = cached(name, lambda: _make(part, seed, clutter))
    return ArrayPart(arrays["images"], arrays["labels"], arrays["groups"])


def _make(part: PartName, seed: int, clutter: Clutter) -> Arrays:
    digits, labels = _scanned()
    sources = _sources(labels, seed)[part]
    # Labelled with their own places, the digits tell which of them each image shows.
    places = np.arange(len(sources))
    images, shown = render(
        digits[sources], places, COUNTS[part], number("cluttered", part, seed), clutter
    )
    groups = sources[shown]
    return {"images": images, "labels": labels[groups], "groups": groups}


def _scanned() -> tuple[Floats, Labels]:
    from sklearn.datasets import load_digits  # takes a second to import

    digits, labels = load_digits(return_X_y=True)
    return (digits.reshape(-1, 8, 8) / 16.0).astype(np.float32), labels.astype(np.int64)


def _sources(labels: Labels, seed: int) -> dict[PartName, Indices]:
    count = round(HELD_OUT * len(labels))
    rest, test = hold_out(labels, count, "cluttered", "test")
    train, val = hold_out(labels[rest], count, "cluttered", "val", seed)
    return {"train": rest[train], "val": rest[val], "test": test}


def render(
    digits: Floats, labels: npt.NDArray[np.int64], count: int, seed: int, clutter: Clutter
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """`count` images (count, 1, size, size) uint8 made of `digits` (n, 8, 8), and their labels."""
    rng = np.random.default_rng(seed)
    large = enlarge(digits, clutter.digit)
    chosen = np.arange(count) % len(digits)
    rng.shuffle(chosen)
    canvas = np.zeros((count, clutter.size, clutter.size), np.float32)
    room = clutter.size - clutter.digit + 1
    place = rng.integers(0, room, (count, 2))
    pieces = rng.integers(0, len(digits), (count, clutter.fragments))
    cut = rng.integers(0, clutter.digit - clutter.fragment + 1, (count, clutter.fragments, 2))
    put = rng.integers(0, clutter.size - clutter.fragment + 1, (count, clutter.fragments, 2))
    for i in range(count):
        for j in range(clutter.fragments):
            (sy, sx), (ty, tx) = cut[i, j], put[i, j]
            piece = large[pieces[i, j], sy : sy + clutter.fragment, sx : sx + clutter.fragment]
            target = canvas[i, ty : ty + clutter.fragment, tx : tx + clutter.fragment]
            np.maximum(target, piece, out=target)
        y, x = place[i]
        target = canvas[i, y : y + clutter.digit, x : x + clutter.digit]
        np.maximum(target, large[chosen[i]], out=target)
    canvas += rng.normal(0.0, clutter.noise, canvas.shape).astype(np.float32)
    images = (canvas.clip(0.0, 1.0) * 255.0).round().astype(np.uint8)
    return images[:, None], labels[chosen]


def enlarge(digits: Floats, size: int) -> Floats:
    """Bilinear enlargement of (n, h, w) to (n, size, size)."""
    return _stretch(_stretch(digits, size, axis=1), size, axis=2)


def _stretch(digits: Floats, size: int, axis: int) -> Floats:
    # Element by element, not as a matrix product: those round differently on different
    # machines, and the images must not.
    source = digits.shape[axis]
    at = ((np.arange(size) + 0.5) * source / size - 0.5).clip(0, source - 1)
    low = at.astype(np.int64).clip(0, source - 2)
    share = (at - low).astype(np.float32).reshape([-1 if a == axis else 1 for a in range(3)])
    stretched: Floats = digits.take(low, axis) * (1 - share) + digits.take(low + 1, axis) * share
    return stretched
