"""Lanes: works that one process has on a device at the same time, each piece by piece.

On a GPU each lane is a stream, so that the kernels of a small model, which fill the card to a
fraction, run beside those of others. A piece only puts kernels into the queue, but for those that
read what came of them, or capture a graph (torch waits for the whole GPU then); so one thread
keeps all lanes busy. Which lane is next follows from what
pieces are expected to take, and not from what they take: so what they do in which order is always
the same.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Generic, TypeVar

import torch

_T = TypeVar("_T")

Pieces = Generator[bool, None, _T]
"""A work that pauses after each piece of it, and returns its outcome. It says whether the next
piece waits for the device."""

AHEAD = 0.1
"""Seconds, as expected: for so long the others have something to do while one waits, and while
what came of it is dealt with."""


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

    def wait(self) -> None:
        """Until all that was put into its queue is done."""
        if self._stream is not None:
            self._stream.synchronize()


def all_of(pieces: Pieces[_T]) -> _T:
    """A work done without a pause."""
    while True:
        try:
            next(pieces)
        except StopIteration as e:
            outcome: _T = e.value
            return outcome


class Work(Generic[_T]):
    """A work under way.

    Args:
        lane: where it is done.
        pieces: what is done.
        cost: seconds that a piece is expected to take.
        clock: when it begins, in such seconds.

    Attributes:
        clock: when all that it has done so far will be over, were it as expected.
        waits: its next piece waits for the device.
    """

    def __init__(self, lane: Lane, pieces: Pieces[_T], cost: float, clock: float = 0.0) -> None:
        self.clock = clock
        self.waits = False
        self._lane = lane
        self._pieces = pieces
        self._cost = cost
        lane.follow()

    def advance(self) -> None:
        """Do its next piece.

        Raises:
            StopIteration: that was the last one.
        """
        self.clock += self._cost
        with self._lane.entered():
            self.waits = next(self._pieces)

    def abandon(self) -> None:
        """Leave it as it is; what it uses is free then."""
        self._pieces.close()
        self._lane.wait()


def until_one_is_done(
    works: Sequence[Work[_T]],
    guarded: Callable[[Callable[[], None]], None] = lambda piece: piece(),
) -> tuple[Work[_T], _T | Exception]:
    """Do pieces of several works, of the one that is the least far first, until one is done.

    Args:
        works: each in a lane of its own.
        guarded: does a piece; it may turn what it raises into something else.

    Returns:
        Which one is done, and its outcome or what it raised.
    """
    while True:
        work = min(works, key=_turn)
        try:
            guarded(work.advance)
        except StopIteration as e:
            return work, e.value
        except Exception as e:
            return work, e


def _turn(work: Work[_T]) -> float:
    """The others get ahead of one that is to be waited for."""
    return work.clock + AHEAD * work.waits
