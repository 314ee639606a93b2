"""Calibrating the formula of `visweep.training.estimate`: a few steps of a few small models."""

from __future__ import annotations

import gc
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import nnls

from visweep.config import ModelConfig, TrainConfig
from visweep.data.dataset import Dataset, Split
from visweep.data.resident import ResidentData, to_device
from visweep.errors import OutOfMemory
from visweep.training.amounts import EVALUATED, LANES, Amounts, amounts
from visweep.training.device import held_memory, replays, used
from visweep.training.estimate import Calibration
from visweep.training.fit import fit
from visweep.training.lanes import all_of
from visweep.training.memory import give_back, insist, small_pages
from visweep.training.memory_amounts import memory_amounts
from visweep.training.passes import Pass

_Array = npt.NDArray[np.float64]

_BURSTS = 3
"""Each configuration is tried so often, after all the others: what disturbs one burst is over by
the next, and the allocator has seen the others in between, in another order each time. Of the
times the median counts: now and then a processor is much faster for the moment of one burst."""
_LEAST_TIMES, _MOST_TIMES = 2, 10
_SECONDS = 0.05
"""For so long a pass is repeated in a burst, between these bounds."""
_ROUNDS = 12
_STEPS = {"cpu": 8, "cuda": 16}
"""Of an epoch, by type of device: on the CPU the later ones find the heap in pieces, and take more
memory. After about as many it hardly grows. On a GPU all but the first ones are replayed."""
_UNTIL_REPLAYED = 2
"""Epochs, or evaluations: then all is captured that will be."""
LITTLE = 2.0**20
"""Bytes: what is less depends on what the allocator has at hand."""


@dataclass(frozen=True)
class Measured:
    """What a configuration took.

    Attributes:
        step: seconds of a training step; of each burst the fastest, and of those the median.
        evaluation: seconds of a forward pass of `EVALUATED` images, just so.
        memory: bytes at most of a run of a few steps, its evaluation and its checkpoint, over what
            was held before; the median of some runs. The first run is not among them: what is
            compiled for a model's shapes stays in the process, and belongs to no trial.
        held: the bytes that were held before.
        early: those that were held before the first run, which came, for the median of several
            configurations, when half of them had been trained.
    """

    step: float
    evaluation: float
    memory: float
    held: float
    early: float

    @classmethod
    def of(cls, bursts: Sequence[Measured]) -> Measured:
        """What several bursts say of one configuration."""
        return cls(
            step=median(burst.step for burst in bursts),
            evaluation=median(burst.evaluation for burst in bursts),
            memory=median(burst.memory for burst in bursts[1:]),
            held=median(burst.held for burst in bursts[1:]),
            early=bursts[0].early,
        )


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
    measured = measure(configurations, images)
    tried = [(*c, m) for c, m in zip(configurations, measured, strict=True) if m is not None]
    if not tried:
        raise OutOfMemory("the smallest model does not fit in memory")
    evaluated = EVALUATED[device.type]
    threads = torch.get_num_threads() if device.type == "cpu" else 0
    on: dict[str, Any] = {"threads": threads, "lanes": _lanes()}
    return Calibration(
        device=device.type,
        precision=train.precision,
        **on,
        step=prices(
            [amounts(m, t.batch_size, len(t.seeds), training=True, **on) for m, t, _ in tried],
            [measured.step for *_, measured in tried],
        ),
        evaluation=prices(
            [amounts(m, evaluated, len(t.seeds), training=False, **on) for m, t, _ in tried],
            [measured.evaluation for *_, measured in tried],
        ),
        memory=prices_of_largest(
            [memory_amounts(m, t, t.precision, device.type, **on) for m, t, _ in tried],
            [measured.memory for *_, measured in tried],
            least=LITTLE,
        ),
        held=median(measured.early for *_, measured in tried) - _size(images),
    )


def _lanes() -> int:
    return LANES // 2 if torch.backends.cpu.get_cpu_capability() == "AVX2" else LANES


def _size(data: ResidentData) -> int:
    """Bytes."""
    splits = (data.train, data.val, data.probe)
    return sum(tensor.nbytes for split in splits for tensor in (split.bordered, split.labels))


def prices(
    counted: Sequence[Amounts], measured: Sequence[float], least: float = 1e-9
) -> dict[str, float]:
    """Prices, none below zero, that explain what was measured with the least relative errors.

    Args:
        counted: the amounts of each configuration.
        measured: what each took.
        least: errors are relative to no less than this.
    """
    return prices_of_largest([[amounts] for amounts in counted], measured, least)


def prices_of_largest(
    counted: Sequence[Sequence[Amounts]], measured: Sequence[float], least: float = 1e-9
) -> dict[str, float]:
    """The same where each configuration took the largest of several sums.

    Which one that is follows from the prices, and they from it: some rounds settle both, and the
    best is kept of several beginnings.
    """
    names = list(counted[0][0])
    table = np.array([[[row[name] for name in names] for row in rows] for rows in counted], float)
    known = np.array(measured, float)
    scale = np.maximum(table.max(axis=(0, 1)), 1.0)
    # As if a unit of any amount cost the same; or as if it were the same sum in all of them.
    alike = table.sum(axis=2).argmax(axis=1)
    beginnings = [alike, *(np.full(len(known), which) for which in range(table.shape[1]))]
    table /= scale
    _, best = min(
        (_settled(table, known, least, largest) for largest in beginnings),
        key=lambda found: found[0],
    )
    return {name: float(price) for name, price in zip(names, best / scale, strict=True)}


def _settled(
    table: _Array, known: _Array, least: float, largest: npt.NDArray[np.intp]
) -> tuple[float, _Array]:
    """The least error that some rounds come to, and its prices.

    Args:
        table: the amounts, by configuration, sum and name.
        known: what each configuration took.
        least: see `prices`.
        largest: which sum of each configuration is taken at first.
    """
    explained = known
    best = np.inf, np.zeros(table.shape[2])
    for _ in range(_ROUNDS):
        # Errors relative to what was measured would favour prices that are too low.
        weight = 1.0 / np.maximum(explained, least)
        chosen = np.take_along_axis(table, largest[:, None, None], axis=1)[:, 0]
        solved, _ = nnls(chosen * weight[:, None], known * weight)
        sums = table @ solved
        largest, explained = sums.argmax(axis=1), sums.max(axis=1)
        error = float(np.square((explained - known) / np.maximum(explained, least)).sum())
        best = min(best, (error, solved), key=lambda found: found[0])
    return best


def measure(
    configurations: Sequence[tuple[ModelConfig, TrainConfig]], data: ResidentData, seed: int = 0
) -> list[Measured | None]:
    """Try configurations in turn, several times; nothing of them is kept.

    Args:
        configurations: what to try.
        data: what on.
        seed: of the orders in which they take turns.

    Returns:
        For each what it took, or None where it does not fit in memory.
    """
    # A collection goes through all objects there are; those of the libraries stay anyway.
    gc.collect()
    gc.freeze()
    try:
        return [_all(bursts) for bursts in _bursts(configurations, data, Random(seed))]
    finally:
        gc.unfreeze()


def _bursts(
    configurations: Sequence[tuple[ModelConfig, TrainConfig]], data: ResidentData, rng: Random
) -> list[list[Measured | None]]:
    """Those of each configuration."""
    found: list[list[Measured | None]] = [[] for _ in configurations]
    for _ in range(_BURSTS):
        for index in rng.sample(range(len(configurations)), len(configurations)):
            found[index].append(_attempted(*configurations[index], data))
    return found


def _all(bursts: Sequence[Measured | None]) -> Measured | None:
    fitted = [burst for burst in bursts if burst is not None]
    return Measured.of(fitted) if len(fitted) == len(bursts) else None


def _widest(trains: Sequence[TrainConfig]) -> TrainConfig:
    """For images that all of them can be trained on."""
    return trains[0].replace(
        batch_size=max(t.batch_size for t in trains),
        translate=max(t.translate for t in trains),
        flip=any(t.flip for t in trains),
    )


def _attempted(model: ModelConfig, train: TrainConfig, data: ResidentData) -> Measured | None:
    try:
        with used(data.device):
            return insist(lambda: _measured(model, train, data), "the model")
    except OutOfMemory:
        return None


def _measured(model: ModelConfig, train: TrainConfig, data: ResidentData) -> Measured:
    """In one burst, which begins with the run so that nothing is compiled in what is timed."""
    device = data.device
    held, peak = _held_by_a_run(model, train, data)
    run = Pass.of(model, train, data)
    step = _seconds_of_a_step(run, train)
    evaluation = _seconds(lambda: run.evaluate(data.val), device)
    return Measured(step, evaluation, max(0.0, peak - held), held, early=held)


def _seconds_of_a_step(run: Pass, train: TrainConfig) -> float:
    device = run.data.device
    if replays(device):
        return _seconds(lambda: all_of(run.training([1])), device) / run.steps_per_epoch
    order = torch.arange(train.batch_size, device=device).expand(len(train.seeds), -1)
    run.model.train()
    return _seconds(lambda: run.step([0], order), device)


def _held_by_a_run(
    model: ModelConfig, train: TrainConfig, data: ResidentData
) -> tuple[float, float]:
    """Bytes before it, and at most."""
    gc.collect()
    give_back()
    before = held_memory(data.device)
    with small_pages(), tempfile.TemporaryDirectory() as folder:
        epochs = _UNTIL_REPLAYED if replays(data.device) else 1
        result = fit(model, train.replace(epochs=epochs), data, checkpoint=Path(folder) / "run")
    return before, result.peak_memory


def _seconds(compute: Callable[[], object], device: torch.device) -> float:
    """Of one call, the fastest of several: others use this machine, too."""
    # On one thread, what others take is told from what this takes.
    alone = device.type == "cpu" and torch.get_num_threads() == 1
    clock = time.process_time if alone else time.perf_counter
    taken: list[float] = []
    for _ in range(_UNTIL_REPLAYED if replays(device) else 0):
        compute()
    _wait(device)
    while len(taken) < _LEAST_TIMES or (sum(taken) < _SECONDS and len(taken) < _MOST_TIMES):
        started = clock()
        compute()
        _wait(device)
        taken.append(clock() - started)
    return min(taken)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def synthetic(
    model: ModelConfig, train: TrainConfig, device: torch.device, batches: int | None = None
) -> ResidentData:
    """Noise of the shape that a model takes: training batches, as many as a run is measured over
    if not said otherwise, and one evaluation."""
    rng = np.random.default_rng(0)
    shape = (model.in_chans, model.image_size, model.image_size)

    def split(count: int) -> Split:
        images = rng.integers(0, 256, (count, *shape), dtype=np.uint8)
        return Split(images, rng.integers(0, model.num_classes, count))

    dataset = Dataset(
        name="noise",
        classes=tuple(map(str, range(model.num_classes))),
        train=split((batches or _STEPS[device.type]) * train.batch_size),
        val=split(EVALUATED[device.type]),
        fingerprint="noise",
        may_flip=train.flip,
    )
    return to_device(dataset, device, train.translate)
