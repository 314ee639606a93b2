"""How many workers share a GPU: found by trying, once for each machine and search.

The kernels of a small model fill a card to a fraction, so that a second worker is nearly free, up
to a number that follows from the models and the card. Where the driver's multi-process service
(CUDA MPS) serves them, their kernels run at the same time; else the driver switches between them.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

from visweep.config import ModelConfig, TrainConfig
from visweep.errors import OutOfMemory, VisweepError
from visweep.search.processes import context_with_torch
from visweep.search.spaces import centre, corners
from visweep.search.threads import MOST_WORKERS
from visweep.storage.specification import Specification
from visweep.training import calibrations
from visweep.training.memory_amounts import memory_amounts

_WORTH = 1.1
"""Twice as many workers are to be so much faster, since each of them takes memory."""
_BATCHES = 24
_SECONDS = 1.0
_PATIENCE_SECONDS = 120.0
_END_SECONDS = 10.0

Configuration = tuple[ModelConfig, TrainConfig]
Rate = Callable[[int], float | None]
"""Images per second of so many workers together; None where not all of them fit in memory."""


def workers_on(
    specification: Specification,
    device: str,
    tell: Callable[[str], object] = lambda message: None,
    served: Mapping[str, str] | None = None,
) -> int:
    """How many workers of a search a GPU takes.

    Args:
        specification: of the search.
        device: the GPU.
        tell: is told that it takes a while, where it has to be tried.
        served: what CUDA MPS demands of their environment; None where it serves none of them.
    """
    typical, largest = typical_and_largest(specification)
    path = calibrations.path_of(device, 0, ("workers", typical, largest, served is not None))
    known = calibrations.read(path, lambda found: int(found["workers"]))
    if known is not None:
        return known
    tell("trying how many workers the GPU takes, once for this search")
    try:
        with tries(typical, largest, device, served) as rate:
            known = best_count(rate)
    except VisweepError as e:
        tell(f"one worker: {e}")
        return 1
    calibrations.write(path, {"workers": known})
    return known


def best_count(rate: Rate, most: int = MOST_WORKERS) -> int:
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
    configurations = [specification.configurations(p) for p in corners(specification.space)]
    typical = specification.configurations(centre(specification.space))
    return typical, max(configurations, key=_size)


def _size(configuration: Configuration) -> float:
    """Bytes held, by a count."""
    model, train = configuration
    return max(sum(held.values()) for held in memory_amounts(model, train, "float32", "cuda"))


@dataclass
class _Try:
    """A process that trains as a worker would."""

    process: BaseProcess
    pipe: Connection


@contextmanager
def tries(
    typical: Configuration,
    largest: Configuration,
    device: str,
    served: Mapping[str, str] | None = None,
) -> Iterator[Rate]:
    """Processes that train the same model at once, as many as are asked for; more each time.

    Args:
        typical: is timed.
        largest: each of them has had, and keeps, memory for it.
        device: that all train on.
        served: see `workers_on`.
    """
    running: list[_Try] = []
    environment = dict(served or {})

    def rate(count: int) -> float | None:
        while len(running) < count:
            running.append(_start(typical, largest, device, bool(running), environment))
            if not _answer(running[-1]):
                return None
        for one in running:
            _ask(one)
        found = [_answer(one) for one in running]
        return None if None in found else sum(filter(None, found))

    try:
        yield rate
    finally:
        for one in running:
            one.pipe.close()
        deadline = time.monotonic() + _END_SECONDS
        for one in running:
            # What MPS serves must not be killed while the GPU computes for it.
            one.process.join(max(0.0, deadline - time.monotonic()))
            one.process.kill()
        for one in running:
            one.process.join()


def _ask(one: _Try) -> None:
    try:
        one.pipe.send(True)
    except OSError as e:
        raise VisweepError("a process that tried out the GPU has ended") from e


def _answer(one: _Try) -> float | None:
    """None where it had no room.

    Raises:
        VisweepError: it was ended, or does not answer.
    """
    if not one.pipe.poll(_PATIENCE_SECONDS):
        raise VisweepError("a process that tried out the GPU does not answer")
    try:
        answer: float | None = one.pipe.recv()
    except (EOFError, OSError) as e:
        raise VisweepError("a process that tried out the GPU has ended") from e
    return answer


def _start(
    typical: Configuration,
    largest: Configuration,
    device: str,
    beside: bool,
    environment: dict[str, str],
) -> _Try:
    context = context_with_torch()
    ours, theirs = context.Pipe()
    arguments = (typical, largest, device, beside, environment, theirs)
    process = context.Process(target=_train, args=arguments, daemon=True)
    process.start()
    theirs.close()
    return _Try(process, ours)


def _train(
    typical: Configuration,
    largest: Configuration,
    device: str,
    beside: bool,
    environment: dict[str, str],
    pipe: Connection,
) -> None:
    """In a process of its own, until the pipe's other end is closed."""
    os.environ.update(environment)
    with suppress(BrokenPipeError):
        _answer_all(typical, largest, device, beside, pipe)


def _answer_all(
    typical: Configuration, largest: Configuration, device: str, beside: bool, pipe: Connection
) -> None:
    """Says 1 when it is ready, then a rate whenever it is asked."""
    import torch

    from visweep.training.device import use
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
    use(place)
    try:
        held = insist(lambda: warm(largest), "the largest model")
        trained = insist(lambda: warm(typical), "the model")
    except OutOfMemory:
        pipe.send(None)
        return
    pipe.send(1.0)
    images = _BATCHES * trained.config.batch_size * trained.replicas
    while _is_asked(pipe):
        count, began = 0, time.perf_counter()
        while (seconds := time.perf_counter() - began) < _SECONDS:
            trained.epoch([1])
            count += 1
        pipe.send(count * images / seconds)
    del held  # for which there was to be room until now


def _is_asked(pipe: Connection) -> bool:
    try:
        pipe.recv()
    except EOFError:
        return False
    return True
