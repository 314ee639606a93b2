"""What trials are expected to take, where this machine has been probed for their search."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from random import Random
from statistics import fmean
from typing import Any

from visweep.search.bounds import Bounds
from visweep.search.probing import known_calibration
from visweep.search.spaces import corners
from visweep.storage.specification import Specification
from visweep.training.estimate import Calibration, Images, peak_memory, seconds_per_epoch

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
        the study's limits."""
        spec, bounds = self.specification, Bounds(self.specification)
        allowed = [p for p in corners(spec.space) if bounds.allow(p)] or [spec.baseline()]
        made = (spec.configurations(point) for point in allowed)
        return max(peak_memory(model, train, self.calibration) for model, train in made)


def expectation(
    specification: Specification, images: Images, device: str, threads: int
) -> Expectation | None:
    """None where this machine has not been probed for such a search; nothing is trained. Arms may
    be of several kinds, for which there is no common formula."""
    if specification.arms:
        return None
    calibration = known_calibration(specification, device, threads)
    return None if calibration is None else Expectation(specification, images, calibration)
