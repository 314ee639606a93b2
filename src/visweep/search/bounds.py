"""The limits of a search: which points of its space may be trained."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from visweep.config import ModelConfig, TrainConfig
from visweep.errors import UsageError
from visweep.search.spaces import corners, ends, has_few_corners
from visweep.storage.limits import option
from visweep.storage.specification import Space, Specification
from visweep.training.counts import flops, num_params
from visweep.training.estimate import Calibration, Images, seconds_per_epoch


def judge_of(calibration: Calibration, images: Images) -> dict[str, Any]:
    """How the seconds of an epoch are estimated, as a study keeps it; JSON values."""
    return {
        "calibration": calibration.to_json(),
        "train_images": images.train,
        "val_images": images.val,
    }


@dataclass(frozen=True)
class Bounds:
    """Tells which points of a space keep the limits of its study.

    Attributes:
        specification: of the study; with a judge if seconds are limited.
    """

    specification: Specification

    def __bool__(self) -> bool:
        """Whether there are any limits."""
        return bool(self.specification.limits.given())

    def allow(self, point: Mapping[str, Any]) -> bool:
        """Whether a point keeps all limits."""
        return not self or self.excess(point) is None

    def excess(self, point: Mapping[str, Any]) -> str | None:
        """The first limit that a point does not keep, and what it has; None if it keeps all."""
        for name, largest in self.specification.limits.given().items():
            value = self._value(name, point)
            if value > largest:
                return f"{option(name)} {_plain(largest)}: it {_told(name, value)}"
        return None

    def require_baseline(self) -> None:
        """See that the first trial of the study keeps its limits, and so that there is one.

        Raises:
            UsageError: it does not; naming the smallest value that would be accepted.
        """
        for name, largest in self.specification.limits.given().items():
            value = self._value(name, self.specification.baseline())
            if value <= largest:
                continue
            smallest = self._smallest(name)
            others = ""
            if smallest > largest:
                others = f", and {_the_rest(self.specification.space)} {_told(name, smallest)}"
            raise UsageError(
                f"{option(name)}: {_plain(largest)} excludes the baseline, which "
                f"{_told(name, value)}{others}; accepted: {_plain(_above(value))} or more"
            )

    def nearest(self, point: Mapping[str, Any], free: Space) -> dict[str, Any]:
        """A point, its parameters changed one after the other until that brings it no closer to
        keeping the limits; for models that grow with each of them, until it keeps them.

        Args:
            point: where to begin.
            free: the parameters that may be changed.
        """
        return _least(self._exceeded, point, free)

    def _exceeded(self, point: Mapping[str, Any]) -> float:
        """By which factor a point exceeds a limit, at most; 1 or less where it keeps all."""
        given = self.specification.limits.given()
        factors = [self._value(name, point) / largest for name, largest in given.items()]
        return max(factors, default=0.0)

    def _smallest(self, name: str) -> float:
        """What the smallest model has, of those at the corners that are looked at."""
        space = self.specification.space
        least = min(corners(space), key=lambda point: self._value(name, point))
        if not has_few_corners(space):
            least = _least(lambda point: self._value(name, point), least, space)
        return self._value(name, least)

    def _value(self, name: str, point: Mapping[str, Any]) -> float:
        model, train = self.specification.configurations(point)
        if name == "max_epoch_seconds":
            return self._seconds(model, train)
        return num_params(model) if name == "max_params" else flops(model)

    def _seconds(self, model: ModelConfig, train: TrainConfig) -> float:
        judge = self.specification.limits.judge
        if judge is None:
            raise UsageError("--max-epoch-seconds: the study does not say how they are estimated")
        images = Images(judge["train_images"], judge["val_images"])
        calibration = Calibration.from_json(judge["calibration"])
        return seconds_per_epoch(model, train, images, calibration)


def _least(
    value: Callable[[Mapping[str, Any]], float], point: Mapping[str, Any], free: Space
) -> dict[str, Any]:
    """A point from which no change of one parameter leads to a smaller value; at corners only."""
    best, least = dict(point), value(point)
    improved = True
    while improved:
        improved = False
        for name, distribution in free.items():
            for choice in ends(distribution):
                changed = {**best, name: choice}
                if (found := value(changed)) < least:
                    best, least, improved = changed, found, True
    return best


def _the_rest(space: Space) -> str:
    """The beginning of what is said of the smallest model of a space."""
    if has_few_corners(space):
        return "all of the space, whose smallest model"
    return "all that was looked at of the space, the smallest model of which"


def _told(name: str, value: float) -> str:
    """What a model has: `has 13,322 parameters`."""
    if name == "max_epoch_seconds":
        return f"takes an estimated {value:.3g} s per epoch"
    if name == "max_flops":
        return f"takes {value:,.0f} operations per image"
    return f"has {value:,.0f} parameters"


def _above(value: float) -> float:
    """The value itself, or a little more than it, which is short to write."""
    if isinstance(value, int):
        return value
    places = 2 - math.floor(math.log10(value))
    return float(math.ceil(value * 10**places) / 10**places)


def _plain(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:g}"
