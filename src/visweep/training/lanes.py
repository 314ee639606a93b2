"""Lanes: works that one process has on a device at the same time, each piece by piece.

On a GPU each lane is a stream, so that the kernels of a small model, which fill the card to a
fraction, run beside those of others. A piece only puts kernels into the queue; so one thread keeps
all lanes busy, and what they do in which order is always the same.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

import torch

_T = TypeVar("_T")

Pieces = Generator[None, None, _T]
"""A work that pauses after each piece of it, and returns its outcome."""


class Lane:
    """Where one work is done: on a GPU in a stream of its own.

    Args:
        device: that the work is done on.
    """

    def __init__(self, device: torch.device) -> None:
        on_gpu = device.type == "cuda"
        self._stream = torch.cuda.Stream(device) if on_gpu else None  # type: ignore[no-untyped-call]

    def follow(self) -> None:
        """What is done here from now on comes after what was done outside lanes so far."""
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))

    def entered(self) -> AbstractContextManager[object]:
        """What is put into a queue meanwhile follows on what was done here."""
        return nullcontext() if self._stream is None else torch.cuda.stream(self._stream)


def all_of(pieces: Pieces[_T]) -> _T:
    """A work done without a pause."""
    while True:
        try:
            next(pieces)
        except StopIteration as e:
            outcome: _T = e.value
            return outcome


def side_by_side(
    works: Sequence[tuple[Lane, Pieces[_T]]],
    guarded: Callable[[Callable[[], None]], None] = lambda piece: piece(),
) -> list[_T | Exception]:
    """Do works in turns, a piece of each at a time.

    Args:
        works: each in a lane of its own.
        guarded: does a piece; it may turn what it raises into something else.

    Returns:
        The outcome of each, or what it raised.
    """
    outcomes: dict[int, _T | Exception] = {}
    for lane, _ in works:
        lane.follow()
    while len(outcomes) < len(works):
        for index, (lane, pieces) in enumerate(works):
            if index in outcomes:
                continue
            try:
                with lane.entered():
                    guarded(pieces.__next__)
            except StopIteration as e:
                outcomes[index] = e.value
            except Exception as e:
                outcomes[index] = e
    return [outcomes[index] for index in range(len(works))]
