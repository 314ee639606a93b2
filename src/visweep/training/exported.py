"""An exported model: a folder that needs neither the study nor the images that it came from.

`config.json` says what the model is, what becomes of an image first and what the classes are
called; `model.safetensors` holds the weights (numbers alone: no code runs when it is read).
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from visweep import models
from visweep.config import ModelConfig, from_json, to_json
from visweep.errors import UsageError
from visweep.training.classifier import Classifier, Preprocessing

CONFIG, WEIGHTS = "config.json", "model.safetensors"
FORMAT = "visweep model 1"
_BATCH = 128


@dataclass(frozen=True)
class Exported:
    """A model that can be used anywhere.

    Attributes:
        config: of the model.
        classes: the name of each logit.
        classifier: from pixels to logits.
    """

    config: ModelConfig
    classes: tuple[str, ...]
    classifier: Classifier

    @property
    def preprocessing(self) -> Preprocessing:
        return self.classifier.preprocessing

    @torch.no_grad()
    def logits(self, images: Tensor) -> Tensor:
        """(N, classes) float32 for (N, channels, image_size, image_size) uint8, a batch at a
        time."""
        return torch.cat([self.classifier(batch) for batch in torch.split(images, _BATCH)])


def write(exported: Exported, folder: Path, origin: Mapping[str, Any]) -> None:
    """Write a model into an empty folder.

    Args:
        origin: where it comes from and what it reached, as JSON values; for people to read.
    """
    described = {
        "format": FORMAT,
        "model": to_json(exported.config),
        "classes": exported.classes,
        "preprocessing": dataclasses.asdict(exported.preprocessing),
        **origin,
    }
    written = json.dumps(described, indent=2, ensure_ascii=False)
    (folder / CONFIG).write_text(f"{written}\n", encoding="utf-8")
    state = exported.classifier.model.state_dict()
    weights = {name: value.contiguous().clone() for name, value in state.items()}
    (folder / WEIGHTS).write_bytes(safetensors.torch.save(weights, metadata={"format": "pt"}))


def read(folder: Path, option: str) -> Exported:
    """A model that `write` wrote; errors begin with the option, or argument, that named it.

    Raises:
        UsageError: there is none, or it is damaged.
    """
    described = _described(folder, option)
    try:
        config: ModelConfig = from_json(described["model"])
        classes = tuple(str(name) for name in described["classes"])
        preprocessing = Preprocessing.from_json(described["preprocessing"])
        classifier = Classifier(_model(config, folder / WEIGHTS), preprocessing)
        found = Exported(config, classes, classifier)
        _try(found)
    except Exception as e:  # a foreign file may fail in any way
        reason = " ".join(str(e).split()) or type(e).__name__
        raise UsageError(f"{option}: {folder} is damaged ({reason}); export it again") from e
    return found


def _described(folder: Path, option: str) -> dict[str, Any]:
    if not folder.is_dir():
        raise UsageError(f"{option}: there is no folder {folder}; accepted: one of visweep export")
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise UsageError(
                f"{option}: {folder} has no {name}; accepted: a folder of visweep export"
            )
    try:
        described = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        found = described.get("format")
    except (OSError, ValueError, AttributeError) as e:
        raise UsageError(f"{option}: {folder / CONFIG} cannot be read ({e})") from e
    if found != FORMAT:
        raise UsageError(f"{option}: {folder / CONFIG} is of format {found!r}; accepted: {FORMAT}")
    return dict(described)


def _model(config: ModelConfig, weights: Path) -> nn.Module:
    model = models.build(config, 1)
    model.load_state_dict(safetensors.torch.load_file(weights))
    return model


def _try(found: Exported) -> None:
    """One image, so that what does not belong together is noticed before it is used."""
    size = found.preprocessing.image_size
    logits = found.logits(torch.zeros(1, found.preprocessing.channels, size, size).to(torch.uint8))
    if logits.shape[1] != len(found.classes):
        raise ValueError(f"{logits.shape[1]} logits, {len(found.classes)} classes")
