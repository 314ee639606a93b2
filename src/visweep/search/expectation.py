"""What trials are expected to take, where this machine has been probed for their search."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from random import Random
from statistics import fmean
from typing import Any

from visweep.config import ModelConfig, TrainConfig
from visweep.search.bounds import Bounds
from visweep.search.probing import known_calibration
from visweep.search.spaces import corners
from visweep.storage.specification import Specification
from visweep.training.estimate import (
    Calibration,
    Images,
    peak_memory,
    seconds_per_epoch,
    usual_memory,
)

_SAMPLE = 64


@dataclass(frozen=True)
class Expectation:
    """Expects trials of a study to take what the formula says.

    Attributes:
        specification: of the study.
        images: that an epoch goes over.
        calibration: of the device that trains.
    """

    specification: Specification
    images: Images
    calibration: Calibration

    def seconds(self, parameters: Mapping[str, Any]) -> float:
        """Of an unpruned trial."""
        model, train = self.specification.configurations(parameters)
        return train.epochs * seconds_per_epoch(model, train, self.images, self.calibration)

    @cached_property
    def mean_seconds(self) -> float:
        """Of an unpruned trial, over the space within the study's limits."""
        points = list(corners(self.specification.space, middle=True))
        bounds = Bounds(self.specification)
        drawn = Random(0).sample(points, min(len(points), _SAMPLE))
        allowed = [p for p in drawn if bounds.allow(p)] or [self.specification.baseline()]
        return fmean(self.seconds(point) for point in allowed)

    @cached_property
    def most_memory(self) -> float:
        """Bytes that a trial takes beside its process: the most at a corner of the space within
        the study's limits, or of an arm."""
        return max(peak_memory(model, train, self.calibration) for model, train in self._largest())

    def _largest(self) -> Iterator[tuple[ModelConfig, TrainConfig]]:
        """Those that may take the most."""
        spec = self.specification
        if spec.arms:
            yield from ((arm.model, arm.train) for arm in spec.arms.values())
            return
        bounds = Bounds(spec)
        allowed = [p for p in corners(spec.space) if bounds.allow(p)] or [spec.baseline()]
        yield from map(spec.configurations, allowed)


def expectation(
    specification: Specification, images: Images, device: str, threads: int
) -> Expectation | None:
    """None where this machine has not been probed for such a search; nothing is trained. Arms may
    be of several kinds, for which there is no common formula."""
    if specification.arms:
        return None
    calibration = known_calibration(specification, device, threads)
    return None if calibration is None else Expectation(specification, images, calibration)


def memory_expectation(
    specification: Specification, images: Images, device: str, threads: int
) -> Expectation:
    """The same where only memory matters: a machine that has not been probed is taken for a usual
    one, and nothing is known of its speed."""
    known = expectation(specification, images, device, threads)
    return known or Expectation(
        specification, images, usual_memory(device, specification.train.precision, threads)
    )
