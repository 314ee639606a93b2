"""A stack in shares: some of its replicas at a time, one share after the other.

Replicas have nothing to do with one another, so that where all of them at once do not fit in
memory, fewer do, and are trained alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from visweep import models
from visweep.config import ModelConfig
from visweep.training.optimizer import FlatParameters, Gradients


@dataclass(frozen=True)
class Share:
    """Successive replicas as a model of their own, whose tensors are the stack's.

    Attributes:
        rows: which replicas.
        model: its parameters and statistics are views of the stack's.
        gradients: puts theirs where the stack's are.
    """

    rows: range
    model: nn.Module
    gradients: Gradients

    @property
    def slice(self) -> slice:
        return slice(self.rows.start, self.rows.stop)


def in_shares(
    stack: nn.Module, configs: Sequence[ModelConfig], flat: FlatParameters, at_once: int
) -> list[Share]:
    """All replicas of a stack, so many at a time.

    Args:
        stack: the model.
        configs: of its replicas; all of one architecture where there are several shares.
        flat: its parameters.
        at_once: replicas of a share; at least one.
    """
    if at_once >= len(configs):
        return [Share(range(len(configs)), stack, flat.gradients)]
    starts = range(0, len(configs), at_once)
    every = [range(first, min(first + at_once, len(configs))) for first in starts]
    return [_share(stack, configs, flat, rows) for rows in every]


def _share(
    stack: nn.Module, configs: Sequence[ModelConfig], flat: FlatParameters, rows: range
) -> Share:
    mine = slice(rows.start, rows.stop)
    model = models.stack(configs[mine])
    for own, whole in zip(model.modules(), stack.modules(), strict=True):
        for name, parameter in whole.named_parameters(recurse=False):
            setattr(own, name, nn.Parameter(parameter.data[mine]))
        for name, buffer in whole.named_buffers(recurse=False):
            setattr(own, name, buffer[mine])
    return Share(rows, model, flat.gradients_of(model, mine))
