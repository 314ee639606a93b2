"""Calibrating the estimates of a search on the device at hand, once for each machine.

The process that watches a search has no torch, so the probe runs in one of its own.
"""

from __future__ import annotations

import math
import multiprocessing
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from random import Random
from typing import Any

from visweep.config import ConvNetConfig, ModelConfig, TrainConfig
from visweep.errors import OutOfMemory, VisweepError
from visweep.search.processes import context_with_torch
from visweep.search.spaces import corners
from visweep.storage.specification import Specification
from visweep.training import calibrations
from visweep.training.amounts import amounts
from visweep.training.counts import multiply_adds, num_params
from visweep.training.estimate import Calibration

_PROBES = 20
_CANDIDATES = 200
_LARGE, _MOST_MULTIPLY_ADDS = 1.5e9, 1e10
"""Of a training step's forward pass: larger models are tried with few layers, and not at all."""
_MOST_PARAMETERS = 5e7

_Configuration = tuple[ModelConfig, TrainConfig]


def known_calibration(
    specification: Specification, device: str, threads: int
) -> Calibration | None:
    """That of this machine for a search, if it was made before; nothing is trained."""
    return calibrations.read(_path(specification, device, threads), Calibration.from_json)


def calibration(
    specification: Specification,
    device: str,
    threads: int,
    tell: Callable[[str], object] = lambda message: None,
) -> Calibration:
    """That of this machine for a search; where there is none it is made.

    Args:
        specification: of the search.
        device, threads: that train.
        tell: is told that it takes a while, where it has to be made.

    Raises:
        OutOfMemory: not even the smallest model fits in memory.
        VisweepError: the process that made it was ended.
    """
    path = _path(specification, device, threads)
    found = calibrations.read(path, Calibration.from_json)
    if found is None:
        tell("trying some models for up to a minute, once on this machine for such a search")
        found = calibrated(design(specification), device, threads)
        calibrations.write(path, found.to_json())
    return found


def _path(specification: Specification, device: str, threads: int) -> Path:
    """All that the design follows from, and how it is tried."""
    train, identity = specification.train, specification.identity()
    probed = (identity["space"], identity["model"], train.batch_size, len(train.seeds))
    return calibrations.path_of(device, threads, (*probed, train.precision, train.translate))


def design(specification: Specification) -> list[_Configuration]:
    """A handful of configurations, spread over a space; every other one, and the large ones, of
    few layers, so that none takes long."""
    first, *others = corners(specification.space, middle=True)
    drawn = Random(0).sample(others, min(len(others), _CANDIDATES))
    candidates = {}
    for index, point in enumerate([first, *others[-1:], *drawn]):
        model, train = specification.configurations(point)
        if index % 2 == 0 or _size((model, train)) > _LARGE:
            model = _thinned(model)
        candidates[repr((model, train.batch_size))] = (model, train)
    ordered = sorted(candidates.values(), key=_size)
    bounded = [c for c in ordered if _size(c) <= _MOST_MULTIPLY_ADDS and _fits(c)]
    return _spread(bounded or ordered[:1])


def _thinned(model: ModelConfig) -> ModelConfig:
    if isinstance(model, ConvNetConfig):
        return model.replace(depths=tuple(min(depth, 2) for depth in model.depths))
    return model.replace(depth=min(model.depth, 2))


def _size(configuration: _Configuration) -> float:
    model, train = configuration
    return float(multiply_adds(model) * train.batch_size * len(train.seeds))


def _fits(configuration: _Configuration) -> bool:
    model, train = configuration
    return num_params(model) * len(train.seeds) <= _MOST_PARAMETERS


def _spread(candidates: Sequence[_Configuration]) -> list[_Configuration]:
    """Some of the candidates, the smallest first: each the farthest from those chosen before."""
    places = _places(candidates)
    chosen = [0]
    nearest = [math.dist(place, places[0]) for place in places]
    while len(chosen) < min(_PROBES, len(candidates)):
        farthest = max(range(len(places)), key=nearest.__getitem__)
        chosen.append(farthest)
        nearest = [
            min(distance, math.dist(place, places[farthest]))
            for distance, place in zip(nearest, places, strict=True)
        ]
    return [candidates[index] for index in chosen]


def _places(candidates: Sequence[_Configuration]) -> list[list[float]]:
    """Configurations whose amounts have like ratios lie together; none counts as half of the
    smallest."""
    counted = [
        list(amounts(m, t.batch_size, len(t.seeds), training=True).values()) for m, t in candidates
    ]
    least = [
        min((a for a in column if a), default=1.0) / 2 for column in zip(*counted, strict=True)
    ]
    return [[math.log(max(*pair)) for pair in zip(row, least, strict=True)] for row in counted]


def calibrated(configurations: list[_Configuration], device: str, threads: int) -> Calibration:
    """That of a device by these configurations, made in a process like those of workers.

    Raises:
        OutOfMemory, VisweepError: see `calibration`.
    """
    ours, theirs = multiprocessing.Pipe(duplex=False)
    process = context_with_torch().Process(
        target=_probe, args=(configurations, device, threads, theirs), daemon=True
    )
    process.start()
    theirs.close()
    try:
        said: Mapping[str, Any] = ours.recv()
    except EOFError as e:
        raise VisweepError("the process that tried a few models was ended from outside") from e
    finally:
        process.kill()
        process.join()
        ours.close()
    if "error" in said:
        raise (OutOfMemory if said["memory"] else VisweepError)(said["error"])
    return Calibration.from_json(said)


def _probe(
    configurations: list[_Configuration], device: str, threads: int, pipe: Connection
) -> None:
    """In a process of its own."""
    import torch

    from visweep.training.probe import calibrate

    torch.set_num_threads(threads)
    try:
        pipe.send(calibrate(configurations, torch.device(device)).to_json())
    except VisweepError as e:
        pipe.send({"error": str(e), "memory": isinstance(e, OutOfMemory)})
