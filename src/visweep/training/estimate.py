"""What a configuration will cost on a device, from a formula that a probe has calibrated.

Its time is a sum of amounts (`visweep.training.amounts`), each times its price; a run's peak of
memory that of the largest of some moments (`visweep.training.memory_amounts`). The prices are what
`visweep.training.probe` measures on the device at hand. Nothing here imports torch.

What is estimated is what a process of `visweep.search.processes` takes, as workers are, in small
pages; those of 2 MiB add what the last ones have to spare. One that trains in the command's own
process takes up to half as much again, see there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from visweep.config import ModelConfig, TrainConfig
from visweep.training.amounts import EVALUATED, LANES, Amounts, amounts, priced
from visweep.training.counts import multiply_adds, num_params
from visweep.training.memory_amounts import memory_amounts

_LABEL = 8
"""Bytes."""


@dataclass(frozen=True)
class Images:
    """How many images an epoch goes over, for training and for validation."""

    train: int
    val: int


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """The prices of one kind of model on one device; JSON values.

    Attributes:
        device: `cpu` or `cuda`.
        precision: of the forward and backward pass.
        threads: of the processor, that compute; 0 where a GPU does.
        lanes: how many numbers a vector of the processor has.
        step: seconds per unit of each amount of a training step.
        evaluation: seconds per unit of each amount of a forward pass.
        memory: bytes per unit of each amount that is held.
        held: bytes that the process holds before it trains a model, but for the images. It has
            trained some ten others: on the CPU what is compiled for each of their shapes stays, so
            that one that has trained none holds a quarter less, and one that has trained many a
            tenth more.
    """

    device: str
    precision: str
    threads: int = 1
    lanes: int = LANES
    step: Amounts
    evaluation: Amounts
    memory: Amounts
    held: float

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Calibration:
        """The calibration that `to_json` wrote.

        Raises:
            TypeError: it did not.
        """
        return cls(**values)


_USUAL_MEMORY = {
    "process": 2.0**20,
    "parameters": 5.0,
    "stored": 1.0,
    "added": 1.0,
    "widest": 4.0,
    "dropped": 0.5,
    "later": 1.0,
    "even": 3.0,
    "matrix": 6.0,
    "evaluated": 1.0,
    "written": 1.0,
}
"""Bytes per unit. Of a parameter there are the value, its gradient, two moments, and a narrow
copy; what the others come to on machines that were probed varies, and these are on the high
side."""

_USUAL_ON_A_GPU = {
    "parameters": 5.0,
    "stored": 1.0,
    "added": 1.0,
    "widest": 1.0,
    "evaluated": 1.0,
}
"""The same where what does not fit is noticed and divided then: on the low side, a tensor of each
kind."""


def usual_memory(device: str, precision: str, threads: int) -> Calibration:
    """What a machine that has not been probed is taken to need; it tells no times."""
    kind = device.partition(":")[0]
    return Calibration(
        device=kind,
        precision=precision,
        threads=threads,
        step={},
        evaluation={},
        memory=_USUAL_ON_A_GPU if kind == "cuda" else _USUAL_MEMORY,
        held=0.0,
    )


@dataclass(frozen=True)
class Estimate:
    """What one trial will cost.

    Attributes:
        num_params: parameters of one replica.
        multiply_adds: of one forward pass of one image.
        peak_memory: bytes at most, over what the process holds before: all replicas, a training
            step, an evaluation and the writing of a checkpoint.
        process_memory: bytes at most that the process holds, as `FitResult.peak_memory` tells:
            also torch, where it lies in the processor's memory, and the images.
        seconds_per_epoch: all replicas, training and evaluation, on a device of their own.
    """

    num_params: int
    multiply_adds: int
    peak_memory: float
    process_memory: float
    seconds_per_epoch: float


def estimate(
    model: ModelConfig, train: TrainConfig, images: Images, calibration: Calibration
) -> Estimate:
    """What a configuration will cost where `calibration` was measured."""
    peak = peak_memory(model, train, calibration)
    return Estimate(
        num_params=num_params(model),
        multiply_adds=multiply_adds(model),
        peak_memory=peak,
        process_memory=calibration.held + images_memory(model, train, images) + peak,
        seconds_per_epoch=seconds_per_epoch(model, train, images, calibration),
    )


def _where(calibration: Calibration) -> dict[str, Any]:
    """On what a trial is trained there, as `memory_amounts` takes it."""
    fields = ("precision", "device", "threads", "lanes")
    return {name: getattr(calibration, name) for name in fields}


def peak_memory(model: ModelConfig, train: TrainConfig, calibration: Calibration) -> float:
    """Bytes at most, as `Estimate` has it."""
    moments = memory_amounts(model, train, **_where(calibration))
    return max(priced(held, calibration.memory) for held in moments)


def pass_memory(
    model: ModelConfig, train: TrainConfig, calibration: Calibration, at_once: int
) -> float:
    """Bytes at most in a step or an evaluation of so many replicas at a time; a checkpoint, which
    is of all of them, may take more."""
    *passes, _ = memory_amounts(model, train, **_where(calibration), at_once=at_once)
    return max(priced(held, calibration.memory) for held in passes)


def images_memory(model: ModelConfig, train: TrainConfig, images: Images) -> float:
    """Bytes of the images and labels of `visweep.data.resident.ResidentData`."""
    plain, bordered = (
        model.in_chans * (model.image_size + 2 * margin) ** 2 + _LABEL
        for margin in (0, train.translate)
    )
    probe = min(images.train, images.val)
    return float((images.train + probe) * bordered + images.val * plain)


def step_memory(
    model: ModelConfig,
    train: TrainConfig,
    calibration: Calibration,
    *,
    divided: bool = False,
    at_once: int | None = None,
) -> float:
    """Bytes at most in a training step; an evaluation or a checkpoint may take more.

    Args:
        divided: what `train` calls a batch is a part of one.
        at_once: so many of the replicas are under way at a time; None for all.
    """
    where = _where(calibration)
    *steps, _, _ = memory_amounts(model, train, **where, divided=divided, at_once=at_once)
    return max(priced(held, calibration.memory) for held in steps)


def seconds_per_epoch(
    model: ModelConfig, train: TrainConfig, images: Images, calibration: Calibration
) -> float:
    """Of training and evaluation."""
    replicas = len(train.seeds)
    steps = images.train // train.batch_size
    of_a_step = amounts(
        model,
        train.batch_size,
        replicas,
        training=True,
        threads=calibration.threads,
        lanes=calibration.lanes,
    )
    return steps * priced(of_a_step, calibration.step) + sum(
        _seconds_of_evaluation(model, replicas, count, calibration)
        for count in evaluations(train, images)
    )


def evaluations(train: TrainConfig, images: Images) -> list[int]:
    """How many images each evaluation of an epoch goes over."""
    probed = min(images.train, images.val)
    return [images.val, probed, probed] if train.train_curves else [images.val]


def _seconds_of_evaluation(
    model: ModelConfig, replicas: int, images: int, calibration: Calibration
) -> float:
    whole, rest = divmod(images, EVALUATED[calibration.device])
    if calibration.device == "cuda" and whole and rest:
        whole, rest = whole + 1, 0  # see `evaluate.tally`
    passes = [EVALUATED[calibration.device]] * bool(whole) + [rest] * bool(rest)
    counted = partial(amounts, model, replicas=replicas, training=False, lanes=calibration.lanes)
    seconds = [priced(counted(images=size), calibration.evaluation) for size in passes]
    return (whole * seconds[0] if whole else 0.0) + (seconds[-1] if rest else 0.0)
