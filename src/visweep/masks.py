"""Dropout masks on the CPU, from random bytes.

They are made a piece at a time: the bytes of a piece and what is made of them stay in the
processor's nearest caches, and only the mask itself is written to memory.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

PIECE = 2**16
"""Elements."""
_MIXED = 12
"""Words after which no two states, however alike, give like ones."""


class Bytes:
    """Independent uniform bytes from a stream for every key.

    SFC64 (Doty-Humphrey, https://pracrand.sourceforge.net) draws a word in a third of the time of
    torch's Mersenne Twister. Its state is set to a digest of the key and mixed as after any seed:
    NumPy's own way of seeding takes longer than most masks.
    """

    def __init__(self) -> None:
        self._source = np.random.SFC64(0)

    def begin(self, *key: int | str) -> None:
        """Go to the beginning of the stream of `key`."""
        digest = hashlib.blake2b(repr(key).encode(), digest_size=24).digest()
        words = np.frombuffer(digest + _ONE, "<u8").astype(np.uint64)
        self._source.state = {
            "bit_generator": "SFC64",
            "state": {"state": words},
            "has_uint32": 0,
            "uinteger": 0,
        }
        self._source.random_raw(_MIXED)

    def fraction(self) -> float:
        """The next word as a number in [0, 1)."""
        return float(self._source.random_raw() >> 11) / 2.0**53

    def draw(self, count: int) -> npt.NDArray[np.uint8]:
        """The next ones, (count,); what is left of the last word of eight is lost."""
        return self._source.random_raw(-(-count // 8)).view(np.uint8)[:count]


_ONE = (1).to_bytes(8, "little")
"""Where SFC64 begins to count."""


Draw = Callable[[Bytes, int], Iterator[npt.NDArray[np.uint8]]]
"""Draws the bytes of a row of so many elements, in pieces."""


def in_pieces(stream: Bytes, count: int) -> Iterator[npt.NDArray[np.uint8]]:
    """Bytes one after the other."""
    for first in range(0, count, PIECE):
        yield stream.draw(min(PIECE, count - first))


def drawn_mask(
    streams: Iterable[tuple[Bytes, Sequence[int]]],
    rates: Sequence[float],
    count: int,
    dtype: torch.dtype,
    draw: Draw = in_pieces,
) -> Tensor:
    """Inverted-dropout factors, 0 or 1/(1 - rate), a row for every rate.

    Each element costs a byte. A byte can only split at a multiple of 1/256, so the split is itself
    drawn, once for each stream, between the two nearest ones: over masks every element is dropped
    with exactly the rate asked for.

    Args:
        streams: where bytes come from, each with the rows that it is for; one is drawn from to
            its end before the next is asked for.
        rates: in [0, 1).
        count: elements of a row.
        dtype: a floating one.
        draw: draws the bytes of a row.

    Returns:
        (rows, count) of `dtype`.
    """
    mask = np.empty((len(rates), count), _form(dtype))
    for stream, rows in streams:
        nudge = stream.fraction()
        splits = [(r, int(rates[r] * 256.0 + nudge), _factor(rates[r], dtype)) for r in rows]
        first = 0
        for drawn in draw(stream, count):
            last = first + len(drawn)
            for row, split, factor in splits:
                np.multiply(drawn >= split, factor, out=mask[row, first:last])
            first = last
    return torch.from_numpy(mask).view(dtype)


@cache
def _form(dtype: torch.dtype) -> np.dtype[Any]:
    """What NumPy, which knows no bfloat16, has in its place: integers of as many bits, of which
    0 or 1 times the bits of a factor is 0 or these bits."""
    return np.dtype(np.int16 if dtype == torch.bfloat16 else str(dtype).removeprefix("torch."))


@cache
def _factor(rate: float, dtype: torch.dtype) -> Any:
    """Of what is kept at a rate, as `_form` has it."""
    kept = torch.tensor([1.0 / (1.0 - rate)], dtype=dtype)
    return (kept.view(torch.int16) if dtype == torch.bfloat16 else kept).numpy()[0]
