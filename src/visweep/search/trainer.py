"""The shared trainer: what trains the trials of a worker, on one resident copy of the images."""

from __future__ import annotations

from pathlib import Path

import torch

from visweep.config import ModelConfig, TrainConfig
from visweep.data.resident import ResidentData
from visweep.search.worker import Trainer
from visweep.training.fit import fit
from visweep.training.memory import give_back
from visweep.training.results import FitResult, OnEpoch


class SharedTrainer(Trainer):
    """Trains one trial after the other on the same images.

    Args:
        data: the images, on the training device.
    """

    def __init__(self, data: ResidentData) -> None:
        self._data = data

    @property
    def device(self) -> str:
        return str(self._data.device)

    @property
    def threads(self) -> int:
        return torch.get_num_threads()

    def fit(
        self, model: ModelConfig, train: TrainConfig, *, on_epoch: OnEpoch, checkpoint: Path
    ) -> FitResult:
        try:
            return fit(model, train, self._data, on_epoch=on_epoch, checkpoint=checkpoint)
        finally:
            # The next model may be smaller, and other workers share this machine's memory.
            give_back()
