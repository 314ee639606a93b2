"""Every type of a ViT's blocks is trained, and what shares a pass as if it were alone."""

from __future__ import annotations

from typing import get_args

import pytest
import torch

from visweep.config import TrainConfig, ViTBlock, ViTConfig
from visweep.data.dataset import Dataset
from visweep.data.resident import to_device
from visweep.training.fit import fit
from visweep.training.passes import Member, Pass


@pytest.mark.parametrize("block", get_args(ViTBlock))
def test_ragged_members_are_trained_as_if_alone(
    vit: ViTConfig, train: TrainConfig, quadrants: Dataset, block: ViTBlock
) -> None:
    """20 steps in float64, with replicas, depths, heads and rates that differ."""
    vit, train = vit.replace(block=block), train.replace(precision="float64")
    members = [
        Member(vit, train),
        Member(vit.replace(depth=1, num_heads=4, drop=0.3), train.replace(seeds=(3,), lr=2e-3)),
        Member(vit.replace(depth=3), train.replace(seeds=(8,), weight_decay=0.3)),
    ]
    data = to_device(quadrants, torch.device("cpu"))
    shared, alone = Pass(members, data), [Pass([member], data) for member in members]
    for epoch in range(1, train.epochs + 1):
        results = shared.epoch([epoch] * len(members))
        for result, own in zip(results, alone, strict=True):
            (expected,) = own.epoch([epoch])
            assert result.val_accuracy == expected.val_accuracy
            assert result.train_loss == pytest.approx(expected.train_loss, abs=1e-8)
            assert result.val_loss == pytest.approx(expected.val_loss, abs=1e-8)
    for index, own in enumerate(alone):
        values, expected_values = shared.state(index).values, own.state(0).values
        torch.testing.assert_close(values, expected_values, rtol=0, atol=1e-8)


@pytest.mark.parametrize("block", get_args(ViTBlock))
def test_each_learns_in_bfloat16(
    vit: ViTConfig, train: TrainConfig, many_quadrants: Dataset, block: ViTBlock
) -> None:
    model = vit.replace(block=block, class_token=False)  # without it, it learns faster
    train = train.replace(epochs=8, lr=1e-2, seeds=(3,), translate=0, flip=False)
    result = fit(model, train.replace(precision="bfloat16"), many_quadrants, device="cpu")
    assert min(result.history[-1].val_accuracy) > 0.9
