"""What `--dry-run` measures of an epoch."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from visweep.config import TrainConfig, ViTConfig
from visweep.data.dataset import Dataset
from visweep.data.resident import to_device
from visweep.training import cost
from visweep.training.amounts import EVALUATED


@pytest.mark.parametrize("at_a_time", [40, 50, 1000])
def test_an_epoch_is_its_steps_and_its_evaluations(
    vit: ViTConfig,
    train: TrainConfig,
    many_quadrants: Dataset,
    monkeypatch: pytest.MonkeyPatch,
    at_a_time: int,
) -> None:
    """Here each takes a second: 512 images in steps of some, and 100 that are looked at."""
    monkeypatch.setitem(EVALUATED, "cpu", at_a_time)

    def second(piece: Callable[[], object], device: torch.device) -> float:
        piece()
        return 1.0

    monkeypatch.setattr(cost, "_fastest", second)
    data = to_device(many_quadrants, torch.device("cpu"))
    steps = 512 // train.batch_size
    looks = 100 / min(at_a_time, 100)
    assert cost.seconds_per_epoch(vit, train, data) == steps + looks
    curves = train.replace(train_curves=True)
    assert cost.seconds_per_epoch(vit, curves, data) == steps + 3 * looks
