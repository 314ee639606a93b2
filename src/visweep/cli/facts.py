"""What is known of a model that is exported: told at the end, and kept beside it for programs."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from visweep import text
from visweep.cli.choosing import Chosen
from visweep.config import to_json
from visweep.storage.specification import provenance
from visweep.training.classifier import Preprocessing
from visweep.training.exported import CONFIG, WEIGHTS
from visweep.training.onnx_file import ONNX

CARD = "README.md"
FILES = (WEIGHTS, ONNX, CONFIG, CARD)


@dataclass(frozen=True)
class Facts:
    """What is known of an exported model.

    Attributes:
        chosen: the trial, and its study.
        seed: of the replica.
        preprocessing: of its images.
        classes: their names.
        train_images, val_images: how many there were.
        then: its validation accuracy when it was trained, in the number format of its training.
        now: its validation accuracy as it was exported, in float32.
        onnx_off: how far a logit of onnxruntime's was off, at most.
    """

    chosen: Chosen
    seed: int
    preprocessing: Preprocessing
    classes: tuple[str, ...]
    train_images: int
    val_images: int
    then: float
    now: float
    onnx_off: float = 0.0

    @property
    def stored(self) -> float:
        """What the study has: the mean over the trial's seeds."""
        return float(self.chosen.trial.value or 0.0)

    @property
    def measured(self) -> Mapping[str, Any]:
        """What else the study has of the trial."""
        return self.chosen.trial.user_attrs


def told(facts: Facts, output: Path) -> Iterator[str]:
    """What the command says at its end."""
    seeds = facts.chosen.train.seeds
    how = "as asked" if facts.chosen.wanted.seed is not None else f"the best of {len(seeds)}"
    which = f", seed {facts.seed} ({how})," if len(seeds) > 1 else ""
    yield (
        f"wrote trial {facts.chosen.trial.number}{which} of {facts.chosen.wanted.study} to "
        f"{output}: {', '.join(FILES)}"
    )
    yield (
        f"validation accuracy {text.percent(facts.now)} of {facts.val_images:,} images "
        f"(when it was trained: {text.percent(facts.then)}); onnxruntime's logits are within "
        f"{facts.onnx_off:.0e} of ours"
    )
    yield f"use it: {shlex.join(['visweep', 'predict', str(output)])} image.png"


def origin(facts: Facts) -> dict[str, Any]:
    """Where the model comes from and what it reached, as JSON values."""
    specification = facts.chosen.specification
    images = to_json(specification.data)
    del images["data_dir"]
    return {
        "origin": {
            "study": facts.chosen.wanted.study,
            "trial": facts.chosen.trial.number,
            "seed": facts.seed,
            "data": {**images, "fingerprint": specification.fingerprint},
            "train": to_json(facts.chosen.train),
        },
        "measured": {
            "val_accuracy": facts.now,
            "val_accuracy_when_trained": facts.then,
            "val_accuracy_of_trial": facts.stored,
            "val_images": facts.val_images,
            **_kept(facts.measured, ("train_accuracy", "num_params", "epochs")),
        },
        "versions": {
            "trained": versions_of_training(facts),
            "exported": provenance("cpu")["versions"],
        },
    }


def versions_of_training(facts: Facts) -> dict[str, Any]:
    """Versions; empty where the trial does not say them."""
    where = facts.measured.get("provenance", {})
    return {**where.get("versions", {}), **_kept(where, ("trainer", "python"))}


def _kept(values: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    return {name: values[name] for name in names if name in values}
