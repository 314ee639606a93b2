"""The same work in several fresh processes at once, timed while all of them are at it."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import nullcontext
from importlib import import_module
from math import inf
from threading import BrokenBarrierError
from typing import Any, Protocol

from visweep.search.processes import tuned

_PRELOADED = ["visweep.search.preloaded", "torchvision.datasets", "optuna"]
_PATIENCE = 600.0
"""Seconds after which a process that the others wait for is taken for lost."""

_barrier: Any = None


class Timed(Protocol):
    """An epoch of either side."""

    @property
    def images(self) -> int:
        """That were trained on."""

    @property
    def train_seconds(self) -> float:
        """That this took."""


class Pace:
    """What a run calls after each epoch: it warms up for one, then is timed for `seconds`.

    Between the two it waits until every process of this lot is as far.
    """

    def __init__(self, seconds: float = inf) -> None:
        self._seconds = seconds
        self._began: float | None = None
        self._took = 0.0
        self._timed: list[Timed] = []

    def __call__(self, epoch: Timed) -> bool:
        """Returns whether to stop."""
        if self._began is None:
            wait_for_all()
            self._began = time.perf_counter()
            return False
        self._timed.append(epoch)
        self._took = time.perf_counter() - self._began
        return self._took >= self._seconds

    @property
    def images_per_second(self) -> float:
        """Of training, validation apart; there must have been two epochs."""
        return sum(e.images for e in self._timed) / sum(e.train_seconds for e in self._timed)

    @property
    def images_per_second_in_all(self) -> float:
        """That were trained on, by the clock on the wall: validation takes its time, too."""
        return sum(e.images for e in self._timed) / self._took


def pool(count: int, *, as_worker: bool = False) -> ProcessPoolExecutor:
    """So many processes that have imported torch already, on either side alike.

    Args:
        as_worker: with the settings of the C library that workers have. They are read when a
            process begins: so none is forked from a server, which is begun once for both sides.
    """
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(count)
    return _Pool(count, context, initializer=_begin, initargs=(barrier,), as_worker=as_worker)


class _Pool(ProcessPoolExecutor):
    def __init__(self, *arguments: Any, as_worker: bool, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._as_worker = as_worker

    def submit(self, *arguments: Any, **named: Any) -> Future[Any]:
        # All processes are started with the first of these.
        with tuned() if self._as_worker else nullcontext():
            return super().submit(*arguments, **named)


def together(
    count: int, work: Callable[..., Any], *arguments: Any, as_worker: bool = False
) -> list[Any]:
    """What `work(*arguments)` returns in each of `count` new processes; see `pool`.

    Raises:
        Exception: what it raised in one of them.
    """
    with pool(count, as_worker=as_worker) as processes:
        futures = [processes.submit(_call, work, arguments) for _ in range(count)]
        errors = [error for future in futures if (error := future.exception())]
    for error in sorted(errors, key=lambda e: isinstance(e, BrokenBarrierError)):
        raise error
    return [future.result() for future in futures]


def wait_for_all() -> None:
    """Until every process of this lot has come here."""
    _barrier.wait(_PATIENCE)


def _begin(barrier: Any) -> None:
    global _barrier
    _barrier = barrier
    for name in _PRELOADED:
        import_module(name)


def _call(work: Callable[..., Any], arguments: Sequence[Any]) -> Any:
    try:
        return work(*arguments)
    except BaseException:
        _barrier.abort()  # nobody waits for this process in vain
        raise
