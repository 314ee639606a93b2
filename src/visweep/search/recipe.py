"""A sweep as its script states it: a baseline and the spaces to search around it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from visweep.config import ModelConfig, TrainConfig
from visweep.storage.specification import Space

SpaceMaker = Callable[[int], Space]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What a sweep script says.

    Attributes:
        name: begins the default name of its studies.
        baseline: trial 0; its image size, channels and classes are replaced by the data's.
        spaces: name to a function from the image size to a space; the first is the default.
        train: how each trial is trained, unless options say otherwise.
    """

    name: str
    baseline: ModelConfig
    spaces: Mapping[str, SpaceMaker]
    train: TrainConfig = field(default_factory=TrainConfig)
