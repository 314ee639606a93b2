"""Loops over numbers that torch has no one operation for, compiled by numba.

When a format is first used, `ready` has them compiled, and kept on disk for the processes to come.
bfloat16, which neither NumPy nor numba knows, comes as its bits: uint16.

All of them drop elements by random bytes: a byte that is less than a split drops its element. A
byte can only split at a multiple of 1/256, so the split is itself drawn, once for each stream,
between the two nearest ones: over many streams every element is dropped with exactly the rate
asked for. The bytes come from SFC64 (Doty-Humphrey, https://pracrand.sourceforge.net), which draws
eight of them in a nanosecond.

    state   (4,) uint64, of SFC64, which moves on
    split   as `begin` draws it
    factor  of what is kept: float32 beside bfloat16, else one of the numbers
    table   (65536,) float32, what a function gives for each bfloat16
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, TypeVar

import numba
import numpy as np
import torch
from numba import types
from numba.extending import intrinsic, overload, register_jitable

from visweep.folders import cache_dir

_T = TypeVar("_T")

MIXED = 12
"""Words of SFC64 after which no two states, however alike, give like ones."""
_log = logging.getLogger(__name__)

_PIECE = 4096
"""Bytes drawn at a time, so that they stay in the nearest cache until they are used."""


def _kept(function: Callable[..., _T]) -> Callable[..., _T]:
    """Compiled when it is called, without Python's lock: a heartbeat must not wait for it."""
    try:
        kernel: Callable[..., _T] = numba.njit(function, nogil=True, cache=True)
    except RuntimeError:  # there is no folder to keep it in
        kernel = numba.njit(function, nogil=True)
    return kernel


def _bitcast(given: Any, wanted: Any) -> Any:
    """What makes of a number of one type that of another with the same bits."""

    def typed(typing_context: Any, number: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return builder.bitcast(arguments[0], context.get_value_type(wanted))

        return wanted(given), generate

    return intrinsic(typed)


_as_float = _bitcast(types.uint32, types.float32)
_as_bits = _bitcast(types.float32, types.uint32)


@register_jitable
def _wide(bits: Any) -> Any:
    """The float32 that is this bfloat16."""
    return _as_float(np.uint32(bits) << np.uint32(16))


@register_jitable
def _narrow(number: Any) -> Any:
    """The bits of the bfloat16 nearest to a float32; of two, the even one."""
    bits = _as_bits(number)
    odd = (bits >> np.uint32(16)) & np.uint32(1)
    nearest = np.uint16((bits + np.uint32(0x7FFF) + odd) >> np.uint32(16))
    return np.uint16(0x7FC0) if number != number else nearest


def _times(x: Any, factor: Any) -> Any:
    """Their product, rounded to what `x` is."""
    raise NotImplementedError("this is for compiled code")


@overload(_times, strict=False)  # its arguments are annotated, those of a lambda cannot be
def _times_of(x: Any, factor: Any) -> Any:
    if x == types.uint16:
        return lambda x, factor: _narrow(_wide(x) * factor)
    return lambda x, factor: x * factor


@register_jitable
def _draw(state: Any, words: Any) -> None:
    """Fill `words`, and move the state on."""
    a, b, c, count = state[0], state[1], state[2], state[3]
    for i in range(len(words)):
        word = a + b + count
        count += np.uint64(1)
        a = b ^ (b >> np.uint64(11))
        b = c + (c << np.uint64(3))
        c = ((c << np.uint64(24)) | (c >> np.uint64(40))) + word
        words[i] = word
    state[0], state[1], state[2], state[3] = a, b, c, count


@_kept
def begin(state: Any, rate: float) -> int:
    """Mix the state that a stream begins with, and draw its split: in [0, 256]."""
    words = np.empty(MIXED + 1, np.uint64)
    _draw(state, words)
    nudge = (words[MIXED] >> np.uint64(11)) / 2.0**53
    return int(rate * 256.0 + nudge)


@register_jitable
def _for_bytes(split: int, factor: Any) -> Any:
    """A split that is a byte, and the factors of what is kept and of what is not."""
    none = factor - factor  # a zero of the same type
    if split > 255:  # no byte is as large: none keeps its element
        return np.uint8(0), none, none
    return np.uint8(split), factor, none


@register_jitable
def _drawn(state: Any, words: Any, count: int) -> Any:
    """The next bytes, so many; what is left of the last word of eight is lost."""
    _draw(state, words[: (count + 7) // 8])
    return words.view(np.uint8)[:count]


# A loop that does several things, or whose output may be its input, is none of vectors: hence two
# kernels for dropout, and what a table gives is looked up apart.


@_kept
def mask(out: Any, state: Any, split: int, factor: Any) -> None:
    """Fill `out` (N,) with `factor` and zeros; of bfloat16, both are bits."""
    least, kept, none = _for_bytes(split, factor)
    words = np.empty(_PIECE // 8, np.uint64)
    for first in range(0, len(out), _PIECE):
        into = out[first : first + _PIECE]
        drawn = _drawn(state, words, len(into))
        for i in range(len(into)):
            into[i] = kept if drawn[i] >= least else none


@_kept
def drop(x: Any, state: Any, split: int, factor: Any) -> None:
    """Multiply `x` (N,) by a mask, in place."""
    least, kept, none = _for_bytes(split, factor)
    words = np.empty(_PIECE // 8, np.uint64)
    for first in range(0, len(x), _PIECE):
        part = x[first : first + _PIECE]
        drawn = _drawn(state, words, len(part))
        for i in range(len(part)):
            part[i] = _times(part[i], kept if drawn[i] >= least else none)


@_kept
def dropped(x: Any, out: Any, state: Any, split: int, factor: Any) -> None:
    """Fill `out` (N,), which does not overlap `x`, with its product with a mask."""
    least, kept, none = _for_bytes(split, factor)
    words = np.empty(_PIECE // 8, np.uint64)
    for first in range(0, len(x), _PIECE):
        part, into = x[first : first + _PIECE], out[first : first + _PIECE]
        drawn = _drawn(state, words, len(part))
        for i in range(len(part)):
            into[i] = _times(part[i], kept if drawn[i] >= least else none)


@_kept
def dropped_value(x: Any, out: Any, table: Any, state: Any, split: int, factor: Any) -> None:
    """Fill `out` (N,) with what a function gives for `x`, a bfloat16 too, times a mask."""
    least, kept, none = _for_bytes(split, factor)
    words = np.empty(_PIECE // 8, np.uint64)
    values = np.empty(_PIECE, np.float32)
    for first in range(0, len(x), _PIECE):
        part, into = x[first : first + _PIECE], out[first : first + _PIECE]
        drawn = _drawn(state, words, len(part))
        for i in range(len(part)):
            values[i] = table[part[i]]
        for i in range(len(part)):
            into[i] = _narrow(values[i] * (kept if drawn[i] >= least else none))


@_kept
def dropped_slope(
    gradient: Any, x: Any, out: Any, table: Any, state: Any, split: int, factor: Any
) -> None:
    """Fill `out` (N,) with a gradient times a mask, a bfloat16 too, times the slope at `x`."""
    least, kept, none = _for_bytes(split, factor)
    words = np.empty(_PIECE // 8, np.uint64)
    slopes = np.empty(_PIECE, np.float32)
    for first in range(0, len(x), _PIECE):
        part, into = x[first : first + _PIECE], out[first : first + _PIECE]
        given = gradient[first : first + _PIECE]
        drawn = _drawn(state, words, len(part))
        for i in range(len(part)):
            slopes[i] = table[part[i]]
        for i in range(len(part)):
            passed = _times(given[i], kept if drawn[i] >= least else none)
            into[i] = _times(passed, slopes[i])


@cache
def ready(dtype: torch.dtype) -> None:
    """Have what is called for numbers of this format compiled, or read from disk.

    One process does so at a time: two that keep different formats would overwrite each other's.
    """
    with _alone():
        for kernel, arguments in _calls(dtype):
            try:
                kernel(*arguments)
            except OSError as e:  # it is compiled by then, and could not be written
                _log.warning("a compiled loop is not kept for other processes: %s", e)


def _calls(dtype: torch.dtype) -> Iterator[tuple[Callable[..., object], tuple[Any, ...]]]:
    """What is called for a format, and with what: nothing but its type."""
    narrow = dtype == torch.bfloat16
    x = torch.empty(0, dtype=torch.uint16 if narrow else dtype).numpy()
    one, state = x.dtype.type(1), np.zeros(4, np.uint64)
    yield begin, (state, 0.5)
    yield mask, (x, state, 0, one)
    if not dtype.is_floating_point:
        return
    # For parts of batches, which are made where memory runs short: where there is none to load
    # code into, LLVM ends the process.
    yield from _calls(torch.uint8)
    factor = np.float32(1) if narrow else one
    yield drop, (x, state, 0, factor)
    yield dropped, (x, x, state, 0, factor)
    if narrow:
        table = np.empty(0, np.float32)
        yield dropped_value, (x, x, table, state, 0, factor)
        yield dropped_slope, (x, x, x, table, state, 0, factor)


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """No other process of this machine is here meanwhile, where the system can see to that."""
    try:
        from fcntl import LOCK_EX, flock

        cache_dir().mkdir(parents=True, exist_ok=True)
        handle = (cache_dir() / "kernels.lock").open("w")
    except (ImportError, OSError):
        yield
        return
    with handle:
        flock(handle, LOCK_EX)
        yield
