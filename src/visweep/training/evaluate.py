"""Accuracy and loss of a stacked model on images it does not learn from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from visweep.data.resident import ResidentData, ResidentSplit
from visweep.training.amounts import EVALUATED
from visweep.training.memory import attempt, insist

Predicted = Callable[[Tensor], Tensor]
"""Logits (K, B, classes) for uint8 images (B, C, H, W), or (K, B, C, H, W): each replica's own."""
Through = Callable[[Predicted, Tensor], Tensor]
Seen = Callable[[range], Tensor]
"""The images with these indices, as uint8: as `Predicted` takes them."""


@dataclass(frozen=True)
class Evaluation:
    """One number per replica.

    Attributes:
        loss: mean cross-entropy in nats, without label smoothing.
        accuracy: fraction of images classified correctly.
    """

    loss: tuple[float, ...]
    accuracy: tuple[float, ...]


@dataclass(frozen=True)
class Tally:
    """What an evaluation has counted, still on the device.

    Attributes:
        loss: (K,) float64, the sum over the images.
        correct: (K, images) bool, which were classified correctly.
    """

    loss: Tensor
    correct: Tensor

    def read(self) -> Evaluation:
        """The same per image; waits for the device."""
        images = self.correct.shape[1]
        accuracy = self.correct.sum(1).double() / images
        return Evaluation(tuple((self.loss / images).tolist()), tuple(accuracy.tolist()))


@torch.no_grad()
def tally(
    model: nn.Module,
    data: ResidentData,
    split: ResidentSplit,
    replicas: int,
    dtype: torch.dtype,
    through: Through = lambda predicted, images: predicted(images),
    seen: Seen | None = None,
    equal: bool = False,
) -> Tally:
    """Evaluate with dropout off; the model is left in training mode.

    Args:
        model: of K replicas.
        data: that `split` is part of.
        split: the images.
        replicas: K.
        dtype: of the forward pass.
        through: by which way logits come from images, such as a captured graph.
        seen: how images are seen; None for the plain transform, which leaves them as they are.
        equal: whether all batches have equally many images, as graphs want: the last one then
            looks again at some that have been counted.

    Raises:
        OutOfMemory: a single image does not fit in memory.
    """
    loss = torch.zeros(replicas, dtype=torch.float64, device=data.device)
    correct: list[Tensor] = []
    model.eval()
    size = min(EVALUATED.get(data.device.type, 512), len(split))
    predicted = partial(predict, model, data, replicas=replicas, dtype=dtype)
    images = _plain(split) if seen is None else seen

    def look_at(batch: range) -> Tensor:
        return through(predicted, images(batch))

    start = 0
    while start < len(split):
        stop = min(start + size, len(split))
        first = stop - size if equal else start
        logits = _predicted(partial(look_at, range(first, stop)), size)
        if logits is None:
            size //= 2
            continue
        logits = logits[:, start - first :]
        labels = split.labels[start:stop].expand(replicas, -1)
        start = stop
        losses = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
        loss += losses.view(replicas, -1).sum(1)
        correct.append(logits.argmax(-1) == labels)
    model.train()
    return Tally(loss, torch.cat(correct, 1))


def _plain(split: ResidentSplit) -> Seen:
    return lambda batch: split.images[batch.start : batch.stop]


def _predicted(logits: Callable[[], Tensor], size: int) -> Tensor | None:
    """The logits of `size` images; None where fewer may fit in memory."""
    return attempt(logits) if size > 1 else insist(logits, "the evaluation of an image")


def predict(
    model: nn.Module, data: ResidentData, images: Tensor, replicas: int, dtype: torch.dtype
) -> Tensor:
    """Logits (K, B, classes), at least float32, for uint8 images (B, C, H, W), or (K, B, C, H, W)
    where each replica has its own."""
    normal = data.normalise(images, dtype)
    logits: Tensor = model(normal.expand(replicas, *normal.shape[-4:]))
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
