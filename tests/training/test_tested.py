"""Which images trained models get right: what their own evaluation counted."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from visweep.config import ModelConfig, TrainConfig
from visweep.data.dataset import Dataset
from visweep.data.resident import to_device
from visweep.training.fit import fit
from visweep.training.passes import Member
from visweep.training.tested import correct
from visweep.training.trained import CPU, Trained


def test_the_share_of_right_images_is_the_accuracy_of_each_replica(
    model: ModelConfig, train: TrainConfig, many_quadrants: Dataset, tmp_path: Path
) -> None:
    data = to_device(many_quadrants, CPU, 0)
    path = tmp_path / "run"
    result = fit(model, train, many_quadrants, checkpoint=path, device="cpu")
    trained = Trained(Member(model, train), data, path)
    right = correct(map(trained.replica, trained.seeds), data, many_quadrants.val)
    assert right.shape == (2, 100)
    assert right.dtype == np.bool_
    assert tuple(right.mean(1)) == result.history[-1].val_accuracy
    assert 0 < right.mean() < 1


def test_images_are_judged_one_by_one(
    vit: ModelConfig, train: TrainConfig, many_quadrants: Dataset, tmp_path: Path
) -> None:
    """Each alone, and more of them than a batch has: as all together."""
    data = to_device(many_quadrants, CPU, 0)
    path = tmp_path / "run"
    fit(vit, train, many_quadrants, checkpoint=path, device="cpu")
    replica = Trained(Member(vit, train), data, path).replica(5)
    split = many_quadrants.train
    (right,) = correct([replica], data, split)
    assert len(right) == 512
    for n in (0, 1, 255, 256, 511):
        one = type(split)(split.images[n : n + 1], split.labels[n : n + 1])
        assert correct([replica], data, one)[0, 0] == right[n]
