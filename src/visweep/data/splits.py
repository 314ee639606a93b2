"""Which image goes where: stratified choices that depend on the labels and a key alone."""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt

from visweep.data.dataset import Labels

Indices = npt.NDArray[np.int64]

VAL_FRACTION = 0.1
"""Part of the published training set that becomes the validation set."""
VAL_AIM = 1_000
"""Small sets give more than that fraction, up to a fifth, to reach this many images."""
VAL_MOST = 10_000
"""More validation images than this only cost time."""


def val_count(total: int) -> int:
    """How many of `total` images to hold out for validation."""
    aim = min(VAL_AIM, total // 5)
    return min(max(round(VAL_FRACTION * total), aim), VAL_MOST)


def hold_out(labels: Labels, count: int, *key: int | str) -> tuple[Indices, Indices]:
    """Divide images into those kept and those held out, each in ascending order.

    Every class gives the same fraction, rounded, so that the number held out may differ from
    `count` by half an image per class; but a class of two or more images has at least one on
    either side, and a class of one image keeps it.
    """
    sizes = np.bincount(labels)
    share = (2 * sizes * count + len(labels)) // (2 * max(len(labels), 1))
    share = np.minimum(np.maximum(share, 1), np.maximum(sizes - 1, 0))
    held = ranks(labels, *key) < share[labels]
    return np.flatnonzero(~held), np.flatnonzero(held)


def evenly(labels: Labels, count: int, *key: int | str) -> Indices:
    """Choose `count` images, in ascending order, as evenly over the classes as these allow.

    A smaller choice under the same key is part of a larger one.
    """
    return np.sort(np.lexsort((labels, ranks(labels, *key)))[:count])


def ranks(labels: Labels, *key: int | str) -> Indices:
    """The place of each image, from 0, in a random order of its class."""
    order = shuffled(len(labels), *key)
    places = np.empty(len(labels), np.int64)
    for label in np.unique(labels):
        members = order[labels[order] == label]
        places[members] = np.arange(len(members))
    return places


def shuffled(count: int, *key: int | str) -> Indices:
    """A random order of range(count)."""
    # Raw words, sorted: NumPy promises these for every version and machine; the streams behind
    # its `permutation` and `shuffle` it may change.
    words = np.random.PCG64(number(*key)).random_raw(count)
    return np.argsort(words, kind="stable").astype(np.int64)


def number(*key: int | str) -> int:
    """A 64-bit number that depends on every part of the key; the same anywhere."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")
