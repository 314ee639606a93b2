"""What an epoch takes on the device at hand, measured on a few steps and some evaluations."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial

import torch

from visweep.config import ModelConfig, TrainConfig
from visweep.data.resident import ResidentData
from visweep.training.amounts import EVALUATED
from visweep.training.device import used, wait_for
from visweep.training.estimate import Images, evaluations
from visweep.training.memory import insist
from visweep.training.passes import FIRST_STEPS, Pass
from visweep.training.resolve import require_batch

_TIMES = 4


def seconds_per_epoch(model: ModelConfig, train: TrainConfig, data: ResidentData) -> float:
    """Of training all replicas and evaluating them: timed on a few steps of a model that is thrown
    away, and on as many validation images as one forward pass takes.

    Raises:
        UsageError: there are fewer training images than a batch has.
        OutOfMemory: it does not fit in memory.
    """
    require_batch(train.batch_size, len(data.train))
    with used(data.device):
        return insist(lambda: _measured(model, train, data), "the model")


def _measured(model: ModelConfig, train: TrainConfig, data: ResidentData) -> float:
    run = Pass.of(model, train, data)
    step = _fastest(partial(next, steps_as_in_an_epoch(run)), data.device)
    some = data.val.first(EVALUATED[data.device.type])
    evaluation = _fastest(partial(run.evaluate, some), data.device)
    looked_at = sum(evaluations(train, Images(len(data.train), len(data.val))))
    return step * run.steps_per_epoch + evaluation * looked_at / len(some)


def steps_as_in_an_epoch(run: Pass) -> Iterator[bool]:
    """Steps without an end, once those that come first are done: replayed ones on a GPU."""
    steps = _without_end(run)
    for _ in range(FIRST_STEPS + 1):  # the last of which is captured
        next(steps)
    return steps


def _without_end(run: Pass) -> Iterator[bool]:
    """Those of the first epoch, again and again: it may be shorter than what is timed."""
    while True:
        yield from run.training([1])


def _fastest(piece: Callable[[], object], device: torch.device) -> float:
    """Seconds of the fastest of a few: others use this machine, too."""
    return min(_seconds(piece, device) for _ in range(_TIMES))


def _seconds(piece: Callable[[], object], device: torch.device) -> float:
    wait_for(device)
    started = time.perf_counter()
    piece()
    wait_for(device)
    return time.perf_counter() - started
