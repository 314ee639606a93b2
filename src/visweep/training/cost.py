"""What an epoch takes on the device at hand, measured by training a few steps."""

from __future__ import annotations

import time
from collections.abc import Iterator

import torch

from visweep.config import ModelConfig, TrainConfig
from visweep.data.resident import ResidentData
from visweep.training.device import used
from visweep.training.memory import insist
from visweep.training.passes import FIRST_STEPS, Pass
from visweep.training.resolve import require_batch

_TIMED_STEPS = 4


def seconds_per_epoch(model: ModelConfig, train: TrainConfig, data: ResidentData) -> float:
    """Of training all replicas, timed on a few steps of a model that is thrown away.

    Raises:
        UsageError: there are fewer training images than a batch has.
        OutOfMemory: it does not fit in memory.
    """
    require_batch(train.batch_size, len(data.train))
    with used(data.device):
        return insist(lambda: _measured(model, train, data), "the model")


def _measured(model: ModelConfig, train: TrainConfig, data: ResidentData) -> float:
    run = Pass.of(model, train, data)
    steps = steps_as_in_an_epoch(run)
    # The fastest of them: others use this machine, too.
    return min(_seconds(steps, data.device) for _ in range(_TIMED_STEPS)) * run.steps_per_epoch


def steps_as_in_an_epoch(run: Pass) -> Iterator[None]:
    """Steps without an end, once those that come first are done: replayed ones on a GPU."""
    steps = _without_end(run)
    for _ in range(FIRST_STEPS + 1):  # the last of which is captured
        next(steps)
    return steps


def _without_end(run: Pass) -> Iterator[None]:
    """Those of the first epoch, again and again: it may be shorter than what is timed."""
    while True:
        yield from run.training([1])


def _seconds(steps: Iterator[None], device: torch.device) -> float:
    _wait(device)
    started = time.perf_counter()
    next(steps)
    _wait(device)
    return time.perf_counter() - started


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
