"""Dropout on the CPU in one pass over the numbers, without a mask in memory.

The random bytes are drawn where they are used, and drawn again for the gradient: what a mask costs
is writing and reading it, not making it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from visweep.masks import Row


def dropped(x: Tensor, rows: Sequence[Row], *, inplace: bool) -> Tensor:
    """Bit by bit `x` (K, …), which is contiguous, times `visweep.masks.drawn_mask`.

    Args:
        inplace: overwrite `x`.
    """
    out: Tensor = _Dropped.apply(x, rows, inplace)
    return out


def dropped_gelu(x: Tensor, rows: Sequence[Row]) -> Tensor:
    """Bit by bit the same of GELU(x), for `x` (K, …) of a format that `knows_gelu` names; it is
    kept for the gradient.

    There are 65,536 numbers in bfloat16. To look up what torch makes of each is quicker than to
    compute it, most of all in the backward pass.
    """
    out: Tensor = _DroppedGelu.apply(x, rows)
    return out


def knows_gelu(dtype: torch.dtype) -> bool:
    """Whether `dropped_gelu` gives what torch does: that has the slope in bfloat16 from the same
    library as in float32 only where the processor computes in bfloat16."""
    return dtype == torch.bfloat16 and _in_bfloat16()


class _Dropped(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: Sequence[Row], inplace: bool) -> Tensor:
        ctx.rows = rows
        if not inplace:
            return _product(x, rows)
        ctx.mark_dirty(x)
        for part, row in zip(x, rows, strict=True):
            row.drop(part)
        return x

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return _product(gradient.contiguous(), ctx.rows), None, None


def _product(x: Tensor, rows: Sequence[Row]) -> Tensor:
    out = torch.empty_like(x)
    for part, into, row in zip(x, out, rows, strict=True):
        row.dropped(part, into)
    return out


class _DroppedGelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: Sequence[Row]) -> Tensor:
        ctx.rows = rows
        ctx.save_for_backward(x)
        out = torch.empty_like(x)
        for part, into, row in zip(x, out, rows, strict=True):
            row.dropped_value(part, into, _values())
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        gradient = gradient.contiguous()
        out = torch.empty_like(x)
        for given, part, into, row in zip(gradient, x, out, ctx.rows, strict=True):
            row.dropped_slope(given, part, into, _slopes())
        return out, None


@cache
def _in_bfloat16() -> bool:
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


@cache
def _values() -> npt.NDArray[np.float32]:
    """GELU of every bfloat16."""
    return F.gelu(_every_number()).float().numpy()


@cache
def _slopes() -> npt.NDArray[np.float32]:
    """Its derivative there, in float32 as torch computes it for bfloat16, too."""
    numbers = _every_number().float()
    slopes: Tensor = torch.ops.aten.gelu_backward(torch.ones_like(numbers), numbers)
    return slopes.numpy()


def _every_number() -> Tensor:
    return torch.from_numpy(np.arange(2**16, dtype=np.uint16)).view(torch.bfloat16)
