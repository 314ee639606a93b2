"""What a configuration costs: time measured on the device at hand, by training a few steps."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from visweep.config import ModelConfig, TrainConfig
from visweep.data.resident import ResidentData
from visweep.training.counts import multiply_adds, num_params
from visweep.training.memory import insist
from visweep.training.passes import Pass

_WARM_STEPS, _TIMED_STEPS = 2, 4


@dataclass(frozen=True)
class Cost:
    """What one trial costs.

    Attributes:
        num_params: parameters of one replica.
        multiply_adds: of one forward pass of one image.
        seconds_per_epoch: all replicas, training only.
    """

    num_params: int
    multiply_adds: int
    seconds_per_epoch: float


def measure(model: ModelConfig, train: TrainConfig, data: ResidentData) -> Cost:
    """The cost of a configuration, timed on a few steps of a model that is thrown away.

    Raises:
        OutOfMemory: it does not fit in memory.
    """
    return insist(lambda: _measure(model, train, data), "the model")


def _measure(model: ModelConfig, train: TrainConfig, data: ResidentData) -> Cost:
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
    return Cost(
        num_params=num_params(model),
        multiply_adds=multiply_adds(model),
        seconds_per_epoch=min(seconds) * run.steps_per_epoch,
    )


def _seconds(compute: Callable[[], object], device: torch.device) -> float:
    _wait(device)
    started = time.perf_counter()
    compute()
    _wait(device)
    return time.perf_counter() - started


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
