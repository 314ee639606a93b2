"""How many workers share a GPU: found by trying, once for each machine and search.

The kernels of a small model fill a card to a fraction, so that a second worker is nearly free, up
to a number that follows from the models and the card. Where the driver's multi-process service
(CUDA MPS) runs, their kernels run at the same time; else the driver switches between them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

from visweep.config import ModelConfig, TrainConfig, with_parameters
from visweep.errors import OutOfMemory
from visweep.search.processes import context_with_torch
from visweep.search.spaces import corners
from visweep.storage.specification import Specification
from visweep.training import calibrations
from visweep.training.counts import multiply_adds

MOST = 8
"""More than so many proposals at once tell a sampler too little of each other."""
_WORTH = 1.1
"""Twice as many workers are to be so much faster, since each of them takes memory."""
_BATCHES = 24
_SECONDS = 1.0

Configuration = tuple[ModelConfig, TrainConfig]
Rate = Callable[[int], float | None]
"""Images per second of so many workers together; None where not all of them fit in memory."""


def workers_on(
    specification: Specification, device: str, tell: Callable[[str], object] = lambda message: None
) -> int:
    """How many workers of a search a GPU takes.

    Args:
        specification: of the search.
        device: the GPU.
        tell: is told that it takes a while, where it has to be tried.
    """
    typical, largest = typical_and_largest(specification)
    path = calibrations.path_of(device, 0, ("workers", typical, largest))
    known = calibrations.read(path, lambda found: int(found["workers"]))
    if known is None:
        tell("trying how many workers the GPU takes, once for this search: up to half a minute")
        with tries(typical, largest, device) as rate:
            known = best_count(rate)
        calibrations.write(path, {"workers": known})
    return known


def best_count(rate: Rate, most: int = MOST) -> int:
    """The number of workers, doubled for as long as that is worth it."""
    best, fastest = 1, rate(1)
    if fastest is None:
        return 1
    while 2 * best <= most:
        found = rate(2 * best)
        if found is None or found < _WORTH * fastest:
            break
        best, fastest = 2 * best, found
    return best


def typical_and_largest(specification: Specification) -> tuple[Configuration, Configuration]:
    """What is timed, and what each worker must have room for."""
    middle, *others = corners(specification.space, middle=True)
    model, train = specification.model, specification.train
    configurations = [with_parameters(model, train, point) for point in (middle, *others)]
    return configurations[0], max(configurations, key=_size)


def _size(configuration: Configuration) -> int:
    model, train = configuration
    return multiply_adds(model) * train.batch_size


@dataclass
class _Try:
    """A process that trains as a worker would."""

    process: BaseProcess
    pipe: Connection


@contextmanager
def tries(typical: Configuration, largest: Configuration, device: str) -> Iterator[Rate]:
    """Processes that train the same model at once, as many as are asked for; more each time.

    Args:
        typical: is timed.
        largest: each of them has had, and keeps, memory for it.
        device: that all train on.
    """
    running: list[_Try] = []

    def rate(count: int) -> float | None:
        while len(running) < count:
            running.append(_start(typical, largest, device, beside=bool(running)))
            if not _answer(running[-1]):
                return None
        for one in running:
            one.pipe.send(True)
        found = [_answer(one) for one in running]
        return None if None in found else sum(filter(None, found))

    try:
        yield rate
    finally:
        for one in running:
            one.process.kill()
        for one in running:
            one.process.join()
            one.pipe.close()


def _answer(one: _Try) -> float | None:
    """None where it had no room, or was ended."""
    try:
        answer: float | None = one.pipe.recv()
    except (EOFError, OSError):
        return None
    return answer


def _start(typical: Configuration, largest: Configuration, device: str, beside: bool) -> _Try:
    context = context_with_torch()
    ours, theirs = context.Pipe()
    arguments = (typical, largest, device, beside, theirs)
    process = context.Process(target=_train, args=arguments, daemon=True)
    process.start()
    theirs.close()
    return _Try(process, ours)


def _train(
    typical: Configuration, largest: Configuration, device: str, beside: bool, pipe: Connection
) -> None:
    """In a process of its own: says 1 when it is ready, then a rate whenever it is asked."""
    import torch

    from visweep.training.memory import insist
    from visweep.training.passes import Pass
    from visweep.training.probe import synthetic

    def warm(configuration: Configuration) -> Pass:
        made = Pass.of(*configuration, synthetic(*configuration, place, _BATCHES))
        made.beside = beside
        for _ in range(2):  # what is captured or compiled is so by then
            made.epoch([1])
        return made

    place = torch.device(device)
    torch.set_num_threads(1)
    if place.type == "cuda":
        torch.cuda.set_device(place)
    try:
        # Torch keeps for later what the largest one took.
        insist(lambda: warm(largest), "the largest model")
        trained = insist(lambda: warm(typical), "the model")
    except OutOfMemory:
        pipe.send(None)
        return
    pipe.send(1.0)
    images = _BATCHES * trained.config.batch_size * trained.replicas
    while pipe.recv():
        count, began = 0, time.perf_counter()
        while (seconds := time.perf_counter() - began) < _SECONDS:
            trained.epoch([1])
            count += 1
        pipe.send(count * images / seconds)
