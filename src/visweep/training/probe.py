"""Calibrating the formula of `visweep.training.estimate`: a few steps of a few small models."""

from __future__ import annotations

import gc
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.optimize import nnls

from visweep.config import ModelConfig, TrainConfig
from visweep.data.dataset import Dataset, Split
from visweep.data.resident import ResidentData, to_device
from visweep.errors import OutOfMemory
from visweep.training.device import held_memory
from visweep.training.estimate import EVALUATED, Amounts, Calibration, amounts, memory_amounts
from visweep.training.fit import fit
from visweep.training.memory import give_back, insist
from visweep.training.passes import Pass

_LEAST_TIMES, _MOST_TIMES = 3, 20
_SECONDS = 0.1
"""For so long a pass is repeated, between these bounds."""
_ROUNDS = 4
_LITTLE = 2.0**23
"""Bytes: what is less depends on what the allocator has at hand."""


@dataclass(frozen=True)
class Measured:
    """What a configuration took.

    Attributes:
        step: seconds of a training step.
        evaluation: seconds of a forward pass of `EVALUATED` images.
        memory: bytes at most of a run of one step, its evaluation and its checkpoint, over what
            was held before. It is that of the second of two runs: what is compiled for a model's
            shapes stays in the process, and belongs to no trial.
    """

    step: float
    evaluation: float
    memory: float


def calibrate(
    configurations: Sequence[tuple[ModelConfig, TrainConfig]], device: torch.device
) -> Calibration:
    """The prices on this device, with as many threads as torch has now.

    Args:
        configurations: of one kind of model, spread over what is to be estimated; those that do
            not fit in memory are left out.
        device: where they are tried.

    Raises:
        OutOfMemory: none of them fits in memory.
    """
    _, train = configurations[0]
    images = synthetic(configurations[0][0], _widest([t for _, t in configurations]), device)
    # What is only slow, or taken, the first time is no part of any trial's cost. The allocator
    # keeps pieces as large as the largest that it has seen given back.
    _attempted(*max(configurations, key=_stored), images)
    found = [(model, train, _attempted(model, train, images)) for model, train in configurations]
    tried = [(model, train, measured) for model, train, measured in found if measured is not None]
    if not tried:
        raise OutOfMemory("the smallest model does not fit in memory")
    evaluated = EVALUATED[device.type]
    return Calibration(
        device=device.type,
        precision=train.precision,
        step=prices(
            [amounts(m, t.batch_size, len(t.seeds), training=True) for m, t, _ in tried],
            [measured.step for *_, measured in tried],
        ),
        evaluation=prices(
            [amounts(m, evaluated, len(t.seeds), training=False) for m, t, _ in tried],
            [measured.evaluation for *_, measured in tried],
        ),
        memory=prices(
            [memory_amounts(m, t, t.precision, device.type) for m, t, _ in tried],
            [measured.memory for *_, measured in tried],
            least=_LITTLE,
        ),
    )


def prices(
    counted: Sequence[Amounts], measured: Sequence[float], least: float = 1e-9
) -> dict[str, float]:
    """Prices, none below zero, that explain what was measured with the least relative errors.

    Args:
        counted: the amounts of each configuration.
        measured: what each took.
        least: errors are relative to no less than this.
    """
    names = list(counted[0])
    table = np.array([[row[name] for name in names] for row in counted], float)
    known = np.array(measured, float)
    scale = np.maximum(table.max(axis=0), 1.0)
    explained = known
    # Errors relative to what was measured would favour prices that are too low.
    for _ in range(_ROUNDS):
        weight = 1.0 / np.maximum(explained, least)
        solved, _ = nnls(table / scale * weight[:, None], known * weight)
        explained = table / scale @ solved
    return {name: float(price) for name, price in zip(names, solved / scale, strict=True)}


def measure(model: ModelConfig, train: TrainConfig, data: ResidentData) -> Measured:
    """Try a configuration; nothing of it is kept.

    Raises:
        OutOfMemory: it does not fit in memory.
    """
    return insist(lambda: _measured(model, train, data), "the model")


def _widest(trains: Sequence[TrainConfig]) -> TrainConfig:
    """For images that all of them can be trained on."""
    return trains[0].replace(
        batch_size=max(t.batch_size for t in trains),
        translate=max(t.translate for t in trains),
        flip=any(t.flip for t in trains),
    )


def _stored(configuration: tuple[ModelConfig, TrainConfig]) -> float:
    model, train = configuration
    return memory_amounts(model, train, train.precision, "cpu")["stored"]


def _attempted(model: ModelConfig, train: TrainConfig, data: ResidentData) -> Measured | None:
    try:
        return measure(model, train, data)
    except OutOfMemory:
        return None


def _measured(model: ModelConfig, train: TrainConfig, data: ResidentData) -> Measured:
    device = data.device
    _held_by_a_run(model, train, data)
    memory = _held_by_a_run(model, train, data)
    order = torch.arange(train.batch_size, device=device).expand(len(train.seeds), -1)
    run = Pass.of(model, train, data)
    run.model.train()
    step = _seconds(lambda: run.step([0], order), device)
    evaluation = _seconds(lambda: run.evaluate(data.val), device)
    return Measured(step, evaluation, memory)


def _held_by_a_run(model: ModelConfig, train: TrainConfig, data: ResidentData) -> float:
    gc.collect()
    give_back()
    before = held_memory(data.device)
    with tempfile.TemporaryDirectory() as folder:
        result = fit(model, train.replace(epochs=1), data, checkpoint=Path(folder) / "run")
    return max(0.0, result.peak_memory - before)


def _seconds(compute: Callable[[], object], device: torch.device) -> float:
    """Of one call, the fastest of several: others use this machine, too."""
    taken: list[float] = []
    _wait(device)
    while len(taken) < _LEAST_TIMES or (sum(taken) < _SECONDS and len(taken) < _MOST_TIMES):
        started = time.perf_counter()
        compute()
        _wait(device)
        taken.append(time.perf_counter() - started)
    return min(taken)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def synthetic(model: ModelConfig, train: TrainConfig, device: torch.device) -> ResidentData:
    """Noise of the shape that a model takes: one training batch, and one evaluation."""
    rng = np.random.default_rng(0)
    shape = (model.in_chans, model.image_size, model.image_size)

    def split(count: int) -> Split:
        images = rng.integers(0, 256, (count, *shape), dtype=np.uint8)
        return Split(images, rng.integers(0, model.num_classes, count))

    dataset = Dataset(
        name="noise",
        classes=tuple(map(str, range(model.num_classes))),
        train=split(train.batch_size),
        val=split(EVALUATED[device.type]),
        fingerprint="noise",
        may_flip=train.flip,
    )
    return to_device(dataset, device, train.translate)
