"""A trained model together with its preprocessing: from pixels to logits, one replica."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from visweep.data.dataset import Dataset


@dataclass(frozen=True)
class Preprocessing:
    """What became of the images that a model was trained on, once they were square.

    Attributes:
        image_size: height and width of what a classifier is given, in pixels.
        channels: 1 for grey, 3 for RGB.
        padding: width of the black border that it is given then.
        mean, std: of each channel, in [0, 1]: the model sees (pixel / 255 - mean) / std.
    """

    image_size: int
    channels: int
    padding: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, dataset: Dataset) -> Preprocessing:
        """That of a data set's images."""
        mean, std = dataset.moments
        fields = dataset.model_fields
        return cls(
            image_size=fields["image_size"] - 2 * dataset.padding,
            channels=fields["in_chans"],
            padding=dataset.padding,
            mean=tuple(mean),
            std=tuple(std),
        )

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Preprocessing:
        """That whose fields were written as JSON values."""
        return cls(
            image_size=int(values["image_size"]),
            channels=int(values["channels"]),
            padding=int(values["padding"]),
            mean=tuple(map(float, values["mean"])),
            std=tuple(map(float, values["std"])),
        )


class Classifier(nn.Module):
    """(B, channels, image_size, image_size) uint8 to logits (B, classes) float32.

    Its arithmetic is that of `ResidentData.normalise`, so that it gives what the trainer's own
    evaluation gives in float32.

    Args:
        model: of one replica.
        preprocessing: of its images.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.model = model
        self.preprocessing = preprocessing
        for name in ("mean", "std"):
            values = torch.tensor(getattr(preprocessing, name), dtype=torch.float32)
            self.register_buffer(name, values.view(-1, 1, 1) * 255.0, persistent=False)
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        pixels = F.pad(images.to(torch.float32), [self.preprocessing.padding] * 4)
        normal = (pixels - self.mean) / self.std
        return cast(Tensor, self.model(normal[None])[0])
