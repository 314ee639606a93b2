"""The replicas of a run that has come to its end, read from its checkpoint."""

from __future__ import annotations

import math
from pathlib import Path
from statistics import fmean

import torch

from visweep import models
from visweep.data.resident import ResidentData
from visweep.errors import CheckpointError
from visweep.training.optimizer import FlatParameters
from visweep.training.passes import Member
from visweep.training.run import Run

CPU = torch.device("cpu")
ROUNDING = 0.02
"""So far may the accuracy of a model in float32 be from that of the training, in any case: what
was evaluated in bfloat16 is rounded otherwise, and images that a model is undecided about change
sides. Of few images, and with a poor model, chance moves more: two standard errors are allowed."""


def allowed_change(accuracy: float, images: int) -> float:
    """How far the accuracy of the same weights may be from what it was in training, as a fraction
    of so many images: what is further off is another model, or sees other pixels."""
    chance = 2 * math.sqrt(accuracy * (1 - accuracy) / images)
    return max(2.0 / images, ROUNDING, chance)


class Trained:
    """A run that has come to its end.

    Args:
        member: what was trained.
        data: what on, on the CPU.
        checkpoint: of its last epoch.

    Attributes:
        seeds: of its replicas.
        val_accuracy: of each replica after the last epoch, as it was evaluated then.

    Raises:
        CheckpointError: it is damaged, belongs to another run, or that run has not come to its
            end.
    """

    def __init__(self, member: Member, data: ResidentData, checkpoint: Path) -> None:
        run = Run(member, data, checkpoint=checkpoint)
        state, epochs = run.taken_state(), len(run.history)
        if state is None or epochs < member.train.epochs:
            raise CheckpointError(
                f"{checkpoint}: has {epochs} of {member.train.epochs} epochs; train it to its end"
            )
        self._config = member.model
        self._state = state
        self.seeds = member.train.seeds
        self.val_accuracy = run.history[-1].val_accuracy

    @property
    def mean_val_accuracy(self) -> float:
        return fmean(self.val_accuracy)

    def best_seed(self) -> int:
        """Of the replica with the highest validation accuracy; the first of equal ones."""
        best = max(range(len(self.seeds)), key=lambda replica: self.val_accuracy[replica])
        return self.seeds[best]

    def replica(self, seed: int) -> models.ViT | models.ConvNet:
        """The model that was trained with this seed, alone: in float32, in evaluation mode."""
        row = self.seeds.index(seed)
        model = models.build(self._config, 1)
        flat = FlatParameters(model, torch.float32, CPU)
        flat.load_rows(range(1), self._state.values[row : row + 1])
        with torch.no_grad():
            for name, buffer in model.named_buffers():
                buffer.copy_(self._state.buffers[name][row : row + 1])
        return model.eval()
