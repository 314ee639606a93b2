"""Dropout masks on the CPU, from random bytes; see `visweep.kernels`."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from visweep import kernels

_ONE = (1).to_bytes(8, "little")
"""Where SFC64 begins to count."""


def beginning(*key: int | str) -> npt.NDArray[np.uint64]:
    """(4,), the state of SFC64 that the stream of random bytes of `key` begins with.

    It is a digest of the key: NumPy's own way of seeding takes longer than most masks.
    """
    digest = hashlib.blake2b(repr(key).encode(), digest_size=24).digest()
    return np.frombuffer(digest + _ONE, "<u8").astype(np.uint64)


@dataclass(frozen=True)
class Row:
    """How the elements of one replica are dropped.

    Attributes:
        key: as `beginning` gives it.
        rate: probability of a zero, in [0, 1).
    """

    key: npt.NDArray[np.uint64]
    rate: float


class Stream:
    """What drops the elements of a row, from the first to the last, some at a time.

    All that it is given at a time but the last must be a multiple of eight.
    """

    def __init__(self, row: Row) -> None:
        self._rate = row.rate
        self._state = row.key.copy()
        self._split = kernels.begin(self._state, row.rate)

    def mask(self, count: int, dtype: torch.dtype) -> Tensor:
        """Inverted-dropout factors, 0 or 1/(1 - rate), (count,) of a floating `dtype`."""
        mask = torch.empty(count, dtype=dtype)
        kernels.mask(numbers(mask), self._state, self._split, _in_mask(self._rate, dtype))
        return mask

    def kept(self, count: int) -> Tensor:
        """Which are kept, (count,) uint8: 0 or 1."""
        kept = torch.empty(count, dtype=torch.uint8)
        kernels.mask(kept.numpy(), self._state, self._split, np.uint8(1))
        return kept

    def drop(self, x: Tensor) -> None:
        """Multiply `x`, which is contiguous, by a mask."""
        kernels.drop(numbers(x), self._state, self._split, self._factor(x))

    def dropped(self, x: Tensor, out: Tensor) -> None:
        """Fill `out` with `x` times a mask; both are contiguous."""
        factor = self._factor(x)
        kernels.dropped(numbers(x), numbers(out), self._state, self._split, factor)

    def dropped_value(self, x: Tensor, out: Tensor, table: npt.NDArray[np.float32]) -> None:
        """See `visweep.kernels.dropped_value`; all are contiguous, and bfloat16."""
        given = numbers(x), numbers(out), table
        kernels.dropped_value(*given, self._state, self._split, self._factor(x))

    def dropped_slope(
        self, gradient: Tensor, x: Tensor, out: Tensor, table: npt.NDArray[np.float32]
    ) -> None:
        """See `visweep.kernels.dropped_slope`; all are contiguous, and bfloat16."""
        given = numbers(gradient), numbers(x), numbers(out), table
        kernels.dropped_slope(*given, self._state, self._split, self._factor(x))

    def _factor(self, x: Tensor) -> Any:
        return _beside(self._rate, x.dtype)


def drawn_mask(rows: Sequence[Row], count: int, dtype: torch.dtype) -> Tensor:
    """Inverted-dropout factors, (K, count)."""
    masks = [Stream(row).mask(count, dtype) for row in rows]
    return masks[0][None] if len(masks) == 1 else torch.stack(masks)


def mask_of_part(
    rows: Sequence[Row], count: int, dtype: torch.dtype, images: Tensor, of: int
) -> Tensor:
    """The columns of `images` in the mask of a batch `of` so many, (K, count).

    A part is there for want of memory: of the whole batch there is a byte for each element.
    """
    whole = count // len(images) * of
    mask = torch.empty((len(rows), count), dtype=dtype)
    for into, row in zip(mask, rows, strict=True):
        kept = Stream(row).kept(whole).view(of, -1)[images]
        into.copy_(kept.flatten()).mul_(1.0 / (1.0 - row.rate))
    return mask


def numbers(x: Tensor) -> npt.NDArray[Any]:
    """(N,), what a contiguous `x` holds, as kernels take it: the same memory."""
    flat = x.detach().view(-1)
    return (flat.view(torch.uint16) if x.dtype == torch.bfloat16 else flat).numpy()


@cache
def _beside(rate: float, dtype: torch.dtype) -> Any:
    """The factor of what is kept at a rate, as kernels take it beside numbers of `dtype`."""
    kept = torch.tensor([1.0 / (1.0 - rate)], dtype=dtype)
    return (kept.float() if dtype == torch.bfloat16 else kept).numpy()[0]


@cache
def _in_mask(rate: float, dtype: torch.dtype) -> Any:
    """The same as one of the numbers."""
    return numbers(torch.tensor([1.0 / (1.0 - rate)], dtype=dtype))[0]
