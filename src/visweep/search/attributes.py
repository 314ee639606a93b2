"""What a trial that was trained says of that when it has ended, next to its value."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from statistics import fmean
from typing import Any

from visweep.training.results import EpochResult, FitResult

VAL_ERROR = "val_error_points"
"""Trial attribute: see `FitResult.val_error`."""
TRAIN_CURVES = "train_curves"
"""Trial attribute: training accuracy by epoch, `plain` and `augmented`; see `EpochResult`."""


def attributes_of(result: FitResult) -> dict[str, Any]:
    """What a trial says of its training, JSON values by the names of its user attributes."""
    last = result.history[-1]
    loss = fmean(last.val_loss)
    divided = {
        "micro_batch": result.micro_batch,
        "replicas_at_once": result.replicas_at_once,
    }
    return {
        # JSON has no NaN, and the dashboard's page does not take it.
        **({"val_loss": loss} if isfinite(loss) else {}),
        "train_accuracy": fmean(result.train_accuracy),
        **({} if result.val_error is None else {VAL_ERROR: result.val_error}),
        "val_accuracy_per_seed": list(last.val_accuracy),
        "epochs": len(result.history),
        "seconds": round(result.seconds, 3),
        "images_per_second": round(result.images_per_second, 1),
        "peak_memory_bytes": result.peak_memory,
        "num_params": result.num_params,
        **_train_curves(result.history),
        **{name: value for name, value in divided.items() if value is not None},
    }


def _train_curves(history: Sequence[EpochResult]) -> dict[str, Any]:
    """Training accuracy by epoch, the mean over the replicas, where it was measured in each."""
    if not all(epoch.plain_train_accuracy for epoch in history):
        return {}
    curves = {
        "plain": [fmean(epoch.plain_train_accuracy) for epoch in history],
        "augmented": [fmean(epoch.augmented_train_accuracy) for epoch in history],
    }
    return {TRAIN_CURVES: curves}
