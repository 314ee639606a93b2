"""How far a run's validation accuracy might be from that on other images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from visweep import data as datasets
from visweep.analysis.statistics.sampling import binomial_error, mean_error
from visweep.config import DataConfig, ModelConfig, TrainConfig, ViTConfig
from visweep.data.dataset import Dataset, Split
from visweep.data.resident import to_device
from visweep.training.fit import fit
from visweep.training.passes import Member, Pass
from visweep.training.results import FitResult
from visweep.training.rounds import Rounds
from visweep.training.run import Run

CPU = torch.device("cpu")


def grouped(dataset: Dataset, groups: int) -> Dataset:
    val = dataset.val
    return replace(dataset, val=Split(val.images, val.labels, np.arange(len(val)) % groups))


def shares(result: FitResult, dataset: Dataset) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """In which share of the replicas each validation image is classified correctly."""
    data = to_device(dataset, CPU)
    normal = data.normalise(data.val.images, torch.float32)
    with torch.no_grad():
        logits = result.model(normal.expand(2, *normal.shape))
    return (logits.argmax(-1) == data.val.labels).double().mean(0).numpy()


def test_without_groups_images_are_independent(
    model: ModelConfig, train: TrainConfig, quadrants: Dataset
) -> None:
    result = fit(model, train, quadrants)
    assert result.val_error == mean_error(shares(result, quadrants))
    alone = fit(model, train.replace(seeds=(3,)), quadrants)
    few = (40 / 39) ** 0.5
    expected = few * binomial_error(alone.history[-1].mean_val_accuracy, 40)
    assert alone.val_error == pytest.approx(expected)


def test_images_of_one_group_are_no_independent_evidence(
    model: ModelConfig, train: TrainConfig, quadrants: Dataset
) -> None:
    dataset = grouped(quadrants, 8)
    result = fit(model, train, dataset)
    assert result.val_error == mean_error(shares(result, dataset), dataset.val.groups)
    assert result.val_error != mean_error(shares(result, dataset))


def test_of_too_few_images_nothing_is_said(
    vit: ViTConfig, train: TrainConfig, quadrants: Dataset
) -> None:
    assert fit(vit, train, grouped(quadrants, 1)).val_error is None


def test_it_takes_no_further_evaluation(
    vit: ViTConfig, train: TrainConfig, quadrants: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluated: list[object] = []
    tally = Pass._tally

    def watched(self: Pass, split: object, *more: object) -> object:
        evaluated.append(split is self.data.val)
        return tally(self, split, *more)  # type: ignore[arg-type]

    monkeypatch.setattr(Pass, "_tally", watched)
    fit(vit, train, quadrants)
    assert sum(evaluated) == train.epochs


def test_in_another_pass_it_is_the_same(
    vit: ViTConfig, train: TrainConfig, quadrants: Dataset, tmp_path: Path
) -> None:
    """A run that shares a pass, or was at its end already, is evaluated anew."""
    exact, data = train.replace(precision="float64"), to_device(quadrants, CPU)
    expected = fit(vit, exact, data, checkpoint=tmp_path / "run").val_error
    assert fit(vit, exact, data, checkpoint=tmp_path / "run").val_error == expected
    rounds = Rounds(data)
    runs = [Run(Member(vit, exact.replace(seeds=s)), data) for s in ((3, 5), (8,))]
    for run in runs:
        rounds.join(run)
    while not runs[0].over:
        for turn in rounds.round():
            turn.take()
    assert rounds.leave(runs[0]).val_error == expected


def test_at_its_end_already_it_is_that_of_the_model_as_it_was_trained(
    vit: ViTConfig, train: TrainConfig, quadrants: Dataset, tmp_path: Path
) -> None:
    """Not of its weights in full precision."""
    coarse, data = train.replace(precision="bfloat16"), to_device(quadrants, CPU)
    expected = fit(vit, coarse, data, checkpoint=tmp_path / "run").val_error
    dtypes: list[torch.dtype] = []
    tally = Pass._tally

    def watched(self: Pass, split: object, *more: object) -> object:
        if split is self.data.val:
            dtypes.append(self.model.head.weight.dtype)
        return tally(self, split, *more)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Pass, "_tally", watched)
        assert fit(vit, coarse, data, checkpoint=tmp_path / "run").val_error == expected
    assert dtypes == [torch.bfloat16]


def test_the_embedded_set_tells_which_images_share_a_digit() -> None:
    val = datasets.load(DataConfig()).val
    assert val.groups is not None
    assert len(val.groups) == len(val)
    assert 30 < len(set(val.groups.tolist())) < len(val) / 2
