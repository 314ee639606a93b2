"""Micro-batches: a batch in parts, one after the other, whose gradients add up to the batch's.

Every image keeps its random draws, and every ghost batch its images, so that a divided batch
trains the same model.
"""

from __future__ import annotations

import torch

from visweep.config import ConvNetConfig, ModelConfig
from visweep.draws import Part
from visweep.models.layers import ghosts, woven


class MicroBatches:
    """How the batches of a run are divided; not at all at first.

    Args:
        model: a Transformer's batch is divided down to single images, a ConvNet's down to the
            ghost batches of its batch norm.
        batch_size: images of the whole batch.
        device: where the parts are used.

    Attributes:
        parts: in which images a pass takes; a single None for all of them.
        size: images of the largest part.
    """

    def __init__(self, model: ModelConfig, batch_size: int, device: torch.device) -> None:
        self._batch_size = batch_size
        self._device = device
        singles = [range(image, image + 1) for image in range(batch_size)]
        self._units = ghosts(batch_size) if isinstance(model, ConvNetConfig) else singles
        self._take(len(self._units))

    @property
    def smallest(self) -> bool:
        """Whether it cannot be divided further."""
        return self._taken == 1

    @property
    def divided(self) -> bool:
        return self._taken < len(self._units)

    def halve(self) -> None:
        """Divide each part in two, as far as it goes."""
        self._take(-(-self._taken // 2))

    def shrink_to(self, size: int) -> None:
        """Divide until no part is larger than `size` images, as far as it goes."""
        while self.size > size and not self.smallest:
            self.halve()

    def _take(self, units: int) -> None:
        self._taken = units
        self.parts: list[Part | None] = [None]
        self.size = self._batch_size
        if self.divided:
            starts = range(0, len(self._units), units)
            images = [woven(self._units[start : start + units]) for start in starts]
            self.size = max(len(part) for part in images)
            self.parts = [
                Part(torch.tensor(part, device=self._device), self._batch_size) for part in images
            ]
