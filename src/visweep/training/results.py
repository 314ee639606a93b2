"""What a run tells: after each epoch, and at its end. Importing this does not import torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


TRAINER_VERSION = 4
"""Of the draws, and of how parameters are laid out: a run of another one does not go on here, and
a configuration trained anew comes to other numbers."""
OUT_OF_MEMORY = "out of memory"
"""How a trial ended that did not fit in memory."""


def is_lost(ended: object) -> bool:
    """Whether a trial that ended so could not have gone on: it diverged or did not fit in memory,
    so that pruning saved none of it."""
    return ended == OUT_OF_MEMORY or str(ended).startswith("diverged")


@dataclass(frozen=True)
class EpochResult:
    """What one epoch gave; a tuple holds one number per replica.

    Attributes:
        epoch: from 1.
        train_loss: mean over the epoch's steps, with label smoothing, dropout and augmentation.
        val_loss: mean cross-entropy on the validation images, in nats.
        val_accuracy: fraction of the validation images classified correctly.
        train_seconds: spent on training steps, beside whatever else the device does meanwhile.
        val_seconds: spent on evaluation, likewise, also of training images.
        images: training images seen, over all replicas.
        seeds: of the replicas: those of the run, without any that were stopped before.
        plain_train_accuracy: fraction of `ResidentData.probe` classified correctly, with dropout
            off and under the evaluation transform; () where it was not measured.
        augmented_train_accuracy: the same under the training transform: each image translated and
            mirrored at random, anew in each epoch.
        replayed: read from a checkpoint, and a later epoch is there too; what the callback
            returns is ignored.
    """

    epoch: int
    train_loss: tuple[float, ...]
    val_loss: tuple[float, ...]
    val_accuracy: tuple[float, ...]
    train_seconds: float
    val_seconds: float
    images: int
    seeds: tuple[int, ...] = ()
    plain_train_accuracy: tuple[float, ...] = ()
    augmented_train_accuracy: tuple[float, ...] = ()
    replayed: bool = False

    @property
    def mean_val_accuracy(self) -> float:
        return fmean(self.val_accuracy)

    @property
    def diverged(self) -> bool:
        """Whether a loss is no longer a finite number."""
        return self.diverged_for(range(len(self.train_loss)))

    def diverged_for(self, replicas: Iterable[int]) -> bool:
        """The same of some of the replicas, as they stand in the tuples."""
        losses = [(self.train_loss[row], self.val_loss[row]) for row in replicas]
        return not all(math.isfinite(loss) for pair in losses for loss in pair)


@dataclass(frozen=True)
class FitResult:
    """A trained model and how it got there.

    Attributes:
        history: one result per epoch, those before a resume included.
        ended: `completed`, `stopped` (by the callback) or `diverged`.
        train_accuracy: with the evaluation transform, dropout off, on `ResidentData.probe`.
        val_error: standard error, in points, of the validation accuracy (the mean over the
            replicas), which is that of other validation images of the same kind; see
            `visweep.data.sampling`. None where there are too few images to tell.
        num_params: parameters of one replica.
        peak_memory: bytes, since a batch was last divided; see `training.device.peak_memory`.
        model: with the weights after the last epoch, K replicas, in evaluation mode: those that
            trained until then.
        micro_batch: images of a pass, where a whole batch did not fit in memory.
        replicas_at_once: so many of them, where all that trained at the end did not fit in memory
            at once.
    """

    history: tuple[EpochResult, ...]
    ended: str
    train_accuracy: tuple[float, ...]
    num_params: int
    peak_memory: int
    model: nn.Module
    micro_batch: int | None = None
    replicas_at_once: int | None = None
    val_error: float | None = None

    @property
    def seconds(self) -> float:
        return sum(r.train_seconds + r.val_seconds for r in self.history)

    @property
    def images_per_second(self) -> float:
        """Training images per second of training, over all replicas."""
        seconds = sum(r.train_seconds for r in self.history)
        return sum(r.images for r in self.history) / seconds if seconds else 0.0


OnEpoch = Callable[[EpochResult], "bool | Collection[int] | None"]
"""Returns True to stop the run, or a list, tuple, set or range of the seeds of those replicas that
are to stop alone."""
