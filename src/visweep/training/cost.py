"""What an epoch takes on the device at hand, measured by training a few steps."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable

import torch

from visweep.config import ModelConfig, TrainConfig
from visweep.data.resident import ResidentData
from visweep.training.memory import insist
from visweep.training.passes import Pass

_WARM_STEPS, _TIMED_STEPS = 2, 4


def seconds_per_epoch(model: ModelConfig, train: TrainConfig, data: ResidentData) -> float:
    """Of training all replicas, timed on a few steps of a model that is thrown away.

    Raises:
        OutOfMemory: it does not fit in memory.
    """
    return insist(lambda: _measured(model, train, data), "the model")


def _measured(model: ModelConfig, train: TrainConfig, data: ResidentData) -> float:
    run = Pass.of(model, train, data)
    order = torch.arange(train.batch_size, device=data.device).expand(len(train.seeds), -1)
    run.model.train()
    # A run may be shorter than what is timed.
    steps = itertools.cycle(range(len(run.factors[0])))
    for _ in range(_WARM_STEPS):
        run.step([next(steps)], order)
    # The fastest of them: others use this machine, too.
    seconds = [
        _seconds(lambda: run.step([next(steps)], order), data.device) for _ in range(_TIMED_STEPS)
    ]
    return min(seconds) * run.steps_per_epoch


def _seconds(compute: Callable[[], object], device: torch.device) -> float:
    _wait(device)
    started = time.perf_counter()
    compute()
    _wait(device)
    return time.perf_counter() - started


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
