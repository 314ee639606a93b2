"""Training accuracy after each epoch, under the evaluation and under the training transform."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from visweep.config import ModelConfig, TrainConfig, ViTConfig
from visweep.data.dataset import Dataset
from visweep.data.resident import ResidentData, to_device
from visweep.draws import Draws
from visweep.sealed import read_sealed, write_sealed
from visweep.training.amounts import EVALUATED
from visweep.training.estimate import Calibration, Images, seconds_per_epoch
from visweep.training.fit import fit
from visweep.training.passes import Member, Pass
from visweep.training.results import EpochResult, FitResult
from visweep.training.rounds import Rounds
from visweep.training.run import Run

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def data(many_quadrants: Dataset) -> ResidentData:
    return to_device(many_quadrants, CPU)


@pytest.fixture
def curved(train: TrainConfig) -> TrainConfig:
    return train.replace(train_curves=True, precision="float64", epochs=3, lr=2e-3)


def accuracies(result: FitResult) -> list[tuple[tuple[float, ...], ...]]:
    return [
        (r.val_accuracy, r.plain_train_accuracy, r.augmented_train_accuracy)
        for r in result.history
    ]


def without(result: EpochResult) -> dict[str, object]:
    """An epoch as it is where nothing is measured of the training images."""
    left = {"plain_train_accuracy", "augmented_train_accuracy", "train_seconds", "val_seconds"}
    return {name: value for name, value in vars(result).items() if name not in left}


def by_hand(
    result: FitResult, data: ResidentData, train: TrainConfig, *, moved: bool
) -> list[float]:
    """Of the trained model, image by image: where each is moved to is drawn by hand."""
    count, margin = len(data.dataset.val), train.translate
    chosen = np.linspace(0, len(data.dataset.train) - 1, count).round().astype(int)
    pixels, labels = data.dataset.train.images[chosen], data.dataset.train.labels[chosen]
    found = []
    for replica, seed in enumerate(train.seeds):
        draws = Draws((seed,), CPU, ("probe", len(result.history)))
        places = draws.integers(0, 2 * margin + 1, (count, 2), "shift")[0]
        mirrored = draws.integers(0, 2, (count,), "flip")[0].bool()
        seen = pixels.copy()
        if moved:
            for index, (y, x) in enumerate(places.tolist()):
                wide = np.pad(pixels[index], ((0, 0), (margin, margin), (margin, margin)))
                seen[index] = wide[:, y : y + pixels.shape[2], x : x + pixels.shape[3]]
                if mirrored[index]:
                    seen[index] = seen[index][..., ::-1]
        normal = data.normalise(torch.from_numpy(seen), torch.float64)
        with torch.no_grad():
            logits = result.model(normal.expand(len(train.seeds), *normal.shape))[replica]
        found.append(float((logits.argmax(1) == torch.from_numpy(labels)).double().mean()))
    return found


def test_both_are_those_of_the_model_after_the_epoch(
    model: ModelConfig, curved: TrainConfig, data: ResidentData
) -> None:
    result = fit(model, curved, data)
    last = result.history[-1]
    assert list(last.plain_train_accuracy) == by_hand(result, data, curved, moved=False)
    assert list(last.augmented_train_accuracy) == by_hand(result, data, curved, moved=True)
    assert last.plain_train_accuracy != last.augmented_train_accuracy
    assert result.train_accuracy == last.plain_train_accuracy


def test_nothing_of_what_is_trained_changes(
    model: ModelConfig, curved: TrainConfig, data: ResidentData
) -> None:
    for precision in ("float32", "bfloat16"):
        train = curved.replace(precision=precision)
        plain = fit(model, train.replace(train_curves=False), data)
        found = fit(model, train, data)
        assert [*map(without, found.history)] == [*map(without, plain.history)]
        assert not any(r.plain_train_accuracy for r in plain.history)
        assert found.train_accuracy == plain.train_accuracy
        for name, value in plain.model.state_dict().items():
            assert torch.equal(found.model.state_dict()[name], value), name


def test_without_a_training_transform_both_are_the_same(
    vit: ViTConfig, curved: TrainConfig, data: ResidentData
) -> None:
    result = fit(vit, curved.replace(translate=0, flip=False), data)
    for epoch in result.history:
        assert epoch.augmented_train_accuracy == epoch.plain_train_accuracy


def test_images_are_moved_anew_in_each_epoch(
    vit: ViTConfig, curved: TrainConfig, data: ResidentData
) -> None:
    alone = Pass.of(vit, curved, data)
    moments = [alone.draws.at_each("probe", [number] * 2) for number in (1, 2, 2)]
    images = [alone._as_trained(draws)(range(40)) for draws in moments]
    assert torch.equal(images[1], images[2])
    assert not torch.equal(images[0], images[1])
    assert not torch.equal(images[0][0], images[0][1])  # nor alike for two replicas


def test_how_images_are_divided_into_batches_does_not_matter(
    model: ModelConfig, curved: TrainConfig, data: ResidentData, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = accuracies(fit(model, curved, data))
    monkeypatch.setitem(EVALUATED, "cpu", 7)
    assert accuracies(fit(model, curved, data)) == found


def test_in_a_shared_pass_they_are_those_of_the_run_alone(
    vit: ViTConfig, curved: TrainConfig, data: ResidentData
) -> None:
    members = [
        Member(vit, curved),
        Member(vit.replace(depth=3, num_heads=4), curved.replace(seeds=(8,), epochs=2)),
    ]
    rounds, results = Rounds(data), {}
    runs = [Run(member, data) for member in members]
    for run in runs:
        rounds.join(run)
    while len(results) < len(runs):
        for turn in rounds.round():
            turn.take()
            if turn.run.over:
                results[turn.run] = rounds.leave(turn.run)
    for run, member in zip(runs, members, strict=True):
        alone = fit(member.model, member.train, data)
        assert accuracies(results[run]) == accuracies(alone)
        assert results[run].train_accuracy == alone.train_accuracy


def test_who_wants_them_shares_no_pass_with_who_does_not(
    vit: ViTConfig, curved: TrainConfig
) -> None:
    assert Member(vit, curved).bucket != Member(vit, curved.replace(train_curves=False)).bucket


def test_resumed_they_are_bit_identical(
    model: ModelConfig, curved: TrainConfig, data: ResidentData, tmp_path: Path
) -> None:
    train = curved.replace(precision="bfloat16")
    whole = fit(model, train, data)
    for last in (1, 2):
        path = tmp_path / str(last)
        fit(model, train, data, checkpoint=path, on_epoch=lambda r, last=last: r.epoch == last)
        assert accuracies(fit(model, train, data, checkpoint=path)) == accuracies(whole)


def test_a_run_goes_on_with_them_or_without(
    vit: ViTConfig, curved: TrainConfig, data: ResidentData, tmp_path: Path
) -> None:
    """They are no part of what the run is."""
    path, plain = tmp_path / "run", curved.replace(train_curves=False)
    fit(vit, plain, data, checkpoint=path, on_epoch=lambda r: r.epoch == 1)
    fit(vit, curved, data, checkpoint=path, on_epoch=lambda r: r.epoch == 2 and not r.replayed)
    last = fit(vit, plain, data, checkpoint=path)
    assert [len(r.plain_train_accuracy) for r in last.history] == [0, 2, 0]
    assert last.train_accuracy == fit(vit, plain, data).train_accuracy


def test_a_checkpoint_from_before_they_were_there_goes_on(
    vit: ViTConfig, curved: TrainConfig, data: ResidentData, tmp_path: Path
) -> None:
    path, plain = tmp_path / "run", curved.replace(train_curves=False)
    fit(vit, plain, data, checkpoint=path, on_epoch=lambda r: r.epoch == 1)
    saved = torch.load(io.BytesIO(read_sealed(path)), weights_only=True)
    described = json.loads(saved["described"])
    for epoch in described["history"]:
        del epoch["plain_train_accuracy"], epoch["augmented_train_accuracy"]
    buffer = io.BytesIO()
    torch.save({**saved, "described": json.dumps(described)}, buffer)
    write_sealed(path, buffer.getvalue())
    resumed, whole = fit(vit, plain, data, checkpoint=path), fit(vit, plain, data)
    assert [*map(without, resumed.history)] == [*map(without, whole.history)]


def test_the_last_epochs_is_not_measured_again(
    vit: ViTConfig, curved: TrainConfig, data: ResidentData, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluated: list[int] = []
    evaluate = Pass.evaluate

    def watched(self: Pass, split: object) -> object:
        evaluated.append(1)
        return evaluate(self, split)  # type: ignore[arg-type]

    monkeypatch.setattr(Pass, "evaluate", watched)
    fit(vit, curved, data)
    assert not evaluated
    fit(vit, curved.replace(train_curves=False), data)
    assert evaluated


def test_the_estimate_knows_of_them(vit: ViTConfig, train: TrainConfig) -> None:
    one_a_pass = Calibration(
        device="cpu",
        precision="float64",
        step={},
        evaluation={"passes": 1.0},
        memory={},
        held=0.0,
    )
    for images, probe in ((Images(1000, 300), 3), (Images(100, 300), 1)):
        plain, curved = (
            seconds_per_epoch(vit, train.replace(train_curves=wanted), images, one_a_pass)
            for wanted in (False, True)
        )
        assert plain == 3
        assert curved == 3 + 2 * probe


def test_fields_have_defaults() -> None:
    epoch = EpochResult(1, (0.5,), (0.5,), (0.5,), 1.0, 1.0, 10)
    assert dataclasses.asdict(epoch)["plain_train_accuracy"] == ()
