"""What `visweep shift` has measured of trials, as they keep it."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optuna.trial import FrozenTrial

from visweep.analysis.overview import mapping
from visweep.storage.specification import ARM

SHIFT = "shift"
"""Trial attribute: `visweep.training.shift.Robustness`, as JSON values."""

HOW_FAR = (
    "the mean over eight directions (right, left, up, down, and as many pixels both ways); what "
    "moves in is black, and what moves out is lost"
)
HOW_EQUIVARIANT = (
    "Equivariance error: how far the features of a shifted image are from the shifted features of "
    "the image, in the interior of the map, relative to how much features vary. 0: they move with "
    "the image; 1.4: they have no more in common than those of another image. Each layer is asked "
    "about the smallest shift that its map can follow, its stride, and about 8 pixels where it "
    "can follow those. Error after pooling: the same of the features that the head reads, which "
    "are to stay as they are."
)


@dataclass(frozen=True)
class LayerError:
    """The equivariance error of one layer.

    Attributes:
        name: of the layer.
        stride: pixels that the cells of its map lie apart.
        error: at a shift by its stride.
        far_error: at a shift by 8 pixels, where it can follow that.
    """

    name: str
    stride: int
    error: float
    far_error: float | None


@dataclass(frozen=True)
class Shifted:
    """What shifts do to the model of a trial.

    Attributes:
        trial: its number.
        name: of its arm, or else of the trial.
        pixels: how far images were shifted.
        accuracy: at each distance, a fraction.
        invariance: error after pooling, at each distance.
        layers: in the model's order.
    """

    trial: int
    name: str
    pixels: tuple[int, ...]
    accuracy: tuple[float, ...]
    invariance: tuple[float, ...]
    layers: tuple[LayerError, ...]


def read_shifted(trials: Sequence[FrozenTrial]) -> list[Shifted]:
    """Of the trials that were measured, by number; what cannot be read is left out."""
    return [found for trial in trials if (found := shifted(trial)) is not None]


def shifted(trial: FrozenTrial) -> Shifted | None:
    """Of one trial; None where it was not measured, or what it says cannot be read."""
    kept = mapping(trial.user_attrs, SHIFT)
    pixels, accuracy, invariance = (
        _numbers(kept.get(name)) for name in ("pixels", "accuracy", "invariance")
    )
    if not pixels or not len(pixels) == len(accuracy) == len(invariance):
        return None
    return Shifted(
        trial=trial.number,
        name=named(trial),
        pixels=tuple(map(int, pixels)),
        accuracy=accuracy,
        invariance=invariance,
        layers=_layers(kept),
    )


def named(trial: FrozenTrial) -> str:
    """What a model is called by: its arm, or its trial."""
    arm = trial.params.get(ARM)
    return f"{arm} (trial {trial.number})" if isinstance(arm, str) else f"trial {trial.number}"


def _layers(kept: Mapping[str, Any]) -> tuple[LayerError, ...]:
    errors, strides = mapping(kept, "equivariance"), mapping(kept, "strides")
    far = mapping(mapping(kept, "far"), "equivariance")
    return tuple(
        LayerError(
            name=name,
            stride=int(strides[name]),
            error=float(error),
            far_error=float(far[name]) if _is_number(far.get(name)) else None,
        )
        for name, error in errors.items()
        if _is_number(error) and _is_number(strides.get(name))
    )


def _numbers(values: object) -> tuple[float, ...]:
    if not isinstance(values, list) or not all(map(_is_number, values)):
        return ()
    return tuple(map(float, values))


def _is_number(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) <= sys.float_info.max
