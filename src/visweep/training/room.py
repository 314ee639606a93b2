"""How much memory a pass may take, so that what does not fit is divided before it is tried.

Linux grants a process what it asks for, and kills one when pages run out. On a GPU an allocation
that fails says so, and is tried again with less; but what each attempt took is lost.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from visweep.config import ModelConfig, TrainConfig
from visweep.training.estimate import Calibration, pass_memory, peak_memory, step_memory

Configuration = tuple[ModelConfig, TrainConfig]


@dataclass(frozen=True)
class Division:
    """What of a run is under way at a time: so many of its replicas, over so many images."""

    replicas: int
    images: int


@dataclass(frozen=True)
class Room:
    """What a process has for its passes, and what the formula says that they take.

    Attributes:
        bytes: for one pass.
        calibration: of the device that trains.
    """

    bytes: float
    calibration: Calibration

    def together(self, runs: Sequence[Configuration]) -> int:
        """How many of these runs, from the first one on, fit in one pass; at least one."""
        count, taken = 0, self._of_any_run
        for run in runs:
            taken += peak_memory(*run, self.calibration) - self._of_any_run
            if taken > self.bytes:
                break
            count += 1
        return max(1, count)

    def division(self, model: ModelConfig, train: TrainConfig) -> Division:
        """How a run is divided to fit: first into fewer replicas at a time, then into parts of
        batches, each halved from the whole; not at all where even the smallest would not fit.

        What an evaluation of one replica takes, no division makes less.
        """
        replicas, size = len(train.seeds), train.batch_size
        while replicas > 1 and self._taken_by(model, train, replicas) > self.bytes:
            replicas = -(-replicas // 2)
        while size > 1 and self._taken_by_part(model, train, replicas, size) > self.bytes:
            size = -(-size // 2)
        if self._taken_by_part(model, train, replicas, size) > self.bytes:
            return Division(len(train.seeds), train.batch_size)
        return Division(replicas, size)

    def _taken_by(self, model: ModelConfig, train: TrainConfig, replicas: int) -> float:
        return pass_memory(model, train, self.calibration, replicas)

    def _taken_by_part(
        self, model: ModelConfig, train: TrainConfig, replicas: int, images: int
    ) -> float:
        part, divided = train.replace(batch_size=images), images < train.batch_size
        return step_memory(model, part, self.calibration, divided=divided, at_once=replicas)

    @property
    def _of_any_run(self) -> float:
        """What a pass takes however many runs it has."""
        return self.calibration.memory.get("process", 0.0)
