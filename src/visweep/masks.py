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


@dataclass(frozen=True, eq=False)
class Row:
    """How the elements of one replica are dropped, always the same ones. Tensors are contiguous.

    Attributes:
        start: as `beginning` gives it.
        rate: probability of a zero, in [0, 1).
    """

    start: npt.NDArray[np.uint64]
    rate: float

    def mask(self, out: Tensor) -> None:
        """Fill `out` with inverted-dropout factors, 0 or 1/(1 - rate)."""
        kernels.ready(out.dtype)
        kernels.mask(_numbers(out), *self._begun(), _in_mask(self.rate, out.dtype))

    def kept(self, count: int) -> Tensor:
        """Which of so many elements are kept, (count,) uint8: 0 or 1."""
        kernels.ready(torch.uint8)
        kept = torch.empty(count, dtype=torch.uint8)
        kernels.mask(kept.numpy(), *self._begun(), np.uint8(1))
        return kept

    def drop(self, x: Tensor) -> None:
        """Multiply `x` by a mask."""
        kernels.ready(x.dtype)
        kernels.drop(_numbers(x), *self._begun(), self._factor(x))

    def dropped(self, x: Tensor, out: Tensor) -> None:
        """Fill `out` with `x` times a mask."""
        kernels.ready(x.dtype)
        kernels.dropped(_numbers(x), _numbers(out), *self._begun(), self._factor(x))

    def dropped_value(self, x: Tensor, out: Tensor, table: npt.NDArray[np.float32]) -> None:
        """See `visweep.kernels.dropped_value`; all are bfloat16."""
        kernels.ready(x.dtype)
        given = _numbers(x), _numbers(out), table
        kernels.dropped_value(*given, *self._begun(), self._factor(x))

    def dropped_slope(
        self, gradient: Tensor, x: Tensor, out: Tensor, table: npt.NDArray[np.float32]
    ) -> None:
        """See `visweep.kernels.dropped_slope`; all are bfloat16."""
        kernels.ready(x.dtype)
        given = _numbers(gradient), _numbers(x), _numbers(out), table
        kernels.dropped_slope(*given, *self._begun(), self._factor(x))

    def _begun(self) -> tuple[npt.NDArray[np.uint64], int]:
        state = self.start.copy()
        return state, kernels.begin(state, self.rate)

    def _factor(self, x: Tensor) -> Any:
        return _beside(self.rate, x.dtype)


def drawn_mask(rows: Sequence[Row], count: int, dtype: torch.dtype) -> Tensor:
    """Inverted-dropout factors, (K, count)."""
    mask = torch.empty((len(rows), count), dtype=dtype)
    for out, row in zip(mask, rows, strict=True):
        row.mask(out)
    return mask


def mask_of_part(
    rows: Sequence[Row], whole: int, dtype: torch.dtype, images: Tensor, of: int
) -> Tensor:
    """The columns of `images` in the mask of a batch `of` so many, which has `whole` elements a
    row, (K, elements of these).

    A part is there for want of memory: of the whole batch there is a byte for each element.
    """
    mask = torch.empty((len(rows), whole // of * len(images)), dtype=dtype)
    for into, row in zip(mask, rows, strict=True):
        kept = row.kept(whole).view(of, -1)[images]
        into.copy_(kept.flatten()).mul_(1.0 / (1.0 - row.rate))
    return mask


def _numbers(x: Tensor) -> npt.NDArray[Any]:
    """(N,), what `x` holds, as kernels take it: the same memory."""
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
    return _numbers(torch.tensor([1.0 / (1.0 - rate)], dtype=dtype))[0]
