"""Steps whose input lies on the device, so that they can be captured in a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from visweep.draws import Draws

Gradient = Callable[[Draws, Tensor], Tensor]
"""Puts the gradient of a step where the update finds it: of draws and images; returns losses."""
Update = Callable[[Tensor], None]
"""Updates every replica at its factor (K,) of the learning rate."""


class Unattended:
    """A training step that knows by itself which one it is.

    Args:
        gradient: see `Gradient`.
        update: see `Update`.
        factors: of the learning rate, for each step of each replica.
        images: of an epoch.
        batch_size: of them in a step.
        device: where all this is.
    """

    def __init__(
        self,
        gradient: Gradient,
        update: Update,
        factors: Sequence[Sequence[float]],
        images: int,
        batch_size: int,
        device: torch.device,
    ) -> None:
        self._gradient = gradient
        self._update = update
        self._per_epoch = images // batch_size
        longest = max(map(len, factors))
        # A run that has fewer steps has left before it came there.
        padded = [[*row, *[0.0] * (longest - len(row))] for row in factors]
        self._factors = torch.tensor(padded, dtype=torch.float32, device=device)
        self._batch_size = batch_size
        self._columns = torch.arange(batch_size, device=device)
        self._order = torch.zeros(len(factors), images, dtype=torch.int64, device=device)
        self._step = torch.zeros(len(factors), 1, dtype=torch.int64, device=device)
        self._losses = torch.zeros(len(factors), dtype=torch.float64, device=device)

    def begin(self, steps: Sequence[int], order: Tensor, losses: Tensor) -> None:
        """Go on from these steps.

        Args:
            steps: which one comes next, of each replica.
            order: (K, images) int64, those of the epoch in their order.
            losses: (K,) float64, the sum over the steps so far.
        """
        # Each travels as a kernel's argument, which no copy waits for.
        for row, step in zip(self._step, steps, strict=True):
            row.fill_(step)
        self._order.copy_(order)
        self._losses.copy_(losses)

    @property
    def losses(self) -> Tensor:
        """(K,) float64, the sum over the steps of the epoch."""
        return self._losses

    def step(self, draws: Draws) -> None:
        """The next step of every replica; reads nothing from the host."""
        first = self._step % self._per_epoch * self._batch_size
        indices = self._order.gather(1, first + self._columns)
        self._losses += self._gradient(draws, indices)
        self._update(self._factors.gather(1, self._step)[:, 0])
        self._step += 1
