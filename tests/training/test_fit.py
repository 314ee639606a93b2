"""The fit loop: it learns, tells of every epoch, and says why it ended."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from visweep.config import ConvNetConfig, ModelConfig, TrainConfig, ViTConfig
from visweep.data.dataset import Dataset, Split
from visweep.data.resident import to_device
from visweep.draws import Draws
from visweep.errors import UsageError
from visweep.training.fit import fit
from visweep.training.passes import Pass
from visweep.training.results import EpochResult


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_learns(
    model: ModelConfig, train: TrainConfig, many_quadrants: Dataset, precision: str
) -> None:
    if isinstance(model, ViTConfig):
        model = model.replace(class_token=False)  # learns faster
    train = train.replace(epochs=8, lr=1e-2, translate=0, flip=False, precision=precision)
    result = fit(model, train, many_quadrants, device="cpu")
    assert result.ended == "completed"
    assert min(result.history[-1].val_accuracy) > 0.9
    assert min(result.train_accuracy) > 0.9


def test_the_callback_hears_of_every_epoch(
    model: ModelConfig, train: TrainConfig, quadrants: Dataset
) -> None:
    heard: list[EpochResult] = []
    result = fit(model, train, quadrants, on_epoch=heard.append, device="cpu")
    assert result.history == tuple(heard)
    assert [r.epoch for r in heard] == [1, 2, 3, 4]
    for epoch in heard:
        assert epoch.images == 5 * 16 * 2  # whole batches, both replicas
        assert len(epoch.train_loss) == len(epoch.val_loss) == len(epoch.val_accuracy) == 2
        assert epoch.mean_val_accuracy == pytest.approx(sum(epoch.val_accuracy) / 2)
        assert epoch.train_seconds > 0
        assert epoch.val_seconds > 0
        assert not epoch.replayed
        assert not epoch.diverged
    assert result.ended == "completed"
    assert result.seconds == sum(r.train_seconds + r.val_seconds for r in heard)
    assert result.images_per_second == pytest.approx(4 * 160 / sum(r.train_seconds for r in heard))
    assert result.num_params == sum(p[0].numel() for p in result.model.parameters())
    assert result.peak_memory > 2**20


def test_the_callback_stops_the_run(
    model: ModelConfig, train: TrainConfig, quadrants: Dataset
) -> None:
    whole = fit(model, train, quadrants, device="cpu")
    stopped = fit(model, train, quadrants, on_epoch=lambda r: r.epoch == 2, device="cpu")
    assert stopped.ended == "stopped"
    assert [r.val_loss for r in stopped.history] == [r.val_loss for r in whole.history[:2]]


def test_stopping_at_the_last_epoch_is_completing(
    vit: ViTConfig, train: TrainConfig, quadrants: Dataset
) -> None:
    result = fit(vit, train, quadrants, on_epoch=lambda r: r.epoch == 4, device="cpu")
    assert result.ended == "completed"


def test_a_diverged_run_ends_at_once(
    model: ModelConfig, train: TrainConfig, quadrants: Dataset
) -> None:
    result = fit(model, train.replace(lr=1e6), quadrants, device="cpu")
    assert result.ended == "diverged"
    assert result.history[-1].diverged
    assert len(result.history) < train.epochs
    assert all(0.0 <= accuracy <= 1.0 for accuracy in result.history[-1].val_accuracy)


@pytest.mark.parametrize("field", ["train_loss", "val_loss"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_one_replicas_loss_is_enough_to_diverge(field: str, value: float) -> None:
    finite = EpochResult(1, (1.0, 2.0), (1.0, 2.0), (0.5, 0.5), 1.0, 1.0, 10)
    assert not finite.diverged
    assert EpochResult(**{**vars(finite), field: (1.0, value)}).diverged


def test_train_accuracy_is_on_the_plain_probe_images_with_dropout_off(
    vit: ViTConfig, train: TrainConfig, quadrants: Dataset
) -> None:
    result = fit(vit.replace(drop=0.5), train, quadrants, device="cpu")
    assert not result.model.training
    pixels = quadrants.train.images.astype(np.float32)
    indices = np.round(np.linspace(0, len(pixels) - 1, len(quadrants.val))).astype(int)
    images = torch.from_numpy((pixels[indices] - pixels.mean()) / pixels.std())
    labels = torch.from_numpy(quadrants.train.labels[indices])
    with torch.no_grad():
        logits = result.model(torch.stack([images, images]))
    expected = (logits.argmax(-1) == labels).double().mean(1).tolist()
    assert result.train_accuracy == tuple(expected)


def test_train_loss_of_the_first_step_is_torchs(
    convnet: ConvNetConfig, train: TrainConfig, quadrants: Dataset
) -> None:
    """One step that takes in every image: its loss belongs to the initial weights. They are few
    enough for one ghost batch."""
    some = Split(quadrants.train.images[:60], quadrants.train.labels[:60])
    quadrants = replace(quadrants, train=some)
    one_step = train.replace(
        epochs=1, batch_size=60, lr=1e-30, weight_decay=0.0, translate=0, flip=False, seeds=(3,)
    )
    result = fit(convnet.replace(drop=0.0), one_step, quadrants, device="cpu")
    pixels = quadrants.train.images.astype(np.float32)
    images = torch.from_numpy((pixels - pixels.mean()) / pixels.std())
    logits = result.model.train()(images[None])[0]
    labels = torch.from_numpy(quadrants.train.labels)
    expected = torch.nn.CrossEntropyLoss(label_smoothing=0.1)(logits, labels)
    assert result.history[0].train_loss[0] == pytest.approx(expected.item(), rel=1e-5)


def test_every_epoch_and_replica_takes_the_images_in_an_order_of_its_own(
    vit: ViTConfig, train: TrainConfig, quadrants: Dataset
) -> None:
    resident = to_device(quadrants, torch.device("cpu"))
    run = Pass.of(vit, train.replace(translate=0, flip=False), resident)
    known = resident.normalise(resident.train.images, torch.float32).flatten(1)
    seen: list[torch.Tensor] = []  # (K, B), which image each one is

    def identify(module: nn.Module, args: tuple[torch.Tensor, Draws | None]) -> None:
        if module.training:
            seen.append(torch.cdist(args[0].flatten(2), known).argmin(-1))

    run.model.register_forward_pre_hook(identify)
    for epoch in (1, 2):
        run.epoch([epoch])
    assert [batch.shape for batch in seen] == [(2, 16)] * 10
    orders = [*torch.cat(seen[:5], 1), *torch.cat(seen[5:], 1)]
    for i, order in enumerate(orders):
        assert len(order.unique()) == 80  # none twice
        assert all(not torch.equal(order, other) for other in orders[:i])


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float64"])
@pytest.mark.parametrize("seeds", [(3,), (3, 5)], ids=["K=1", "K=2"])
def test_number_formats(
    model: ModelConfig,
    train: TrainConfig,
    quadrants: Dataset,
    precision: str,
    seeds: tuple[int, ...],
) -> None:
    """Weights stay float32 or wider, and the curve is the same up to rounding."""
    train = train.replace(seeds=seeds)
    exact = fit(model, train.replace(precision="float64"), quadrants, device="cpu")
    result = fit(model, train.replace(precision=precision), quadrants, device="cpu")
    expected = torch.float64 if precision == "float64" else torch.float32
    assert {value.dtype for value in result.model.state_dict().values()} == {expected}
    for ours, theirs in zip(result.history, exact.history, strict=True):
        assert ours.train_loss == pytest.approx(theirs.train_loss, abs=0.02)
        assert ours.val_loss == pytest.approx(theirs.val_loss, abs=0.05)


@pytest.mark.parametrize("block", ["basic", "late_relu", "preadd_relu"])
def test_every_block_type_trains_in_bfloat16(
    convnet: ConvNetConfig, train: TrainConfig, many_quadrants: Dataset, block: str
) -> None:
    train = train.replace(epochs=5, translate=0, flip=False, precision="bfloat16")
    result = fit(convnet.replace(block=block), train, many_quadrants, device="cpu")
    assert min(result.history[-1].val_accuracy) > 0.9


def test_resident_data_may_be_shared_between_runs(
    vit: ViTConfig, train: TrainConfig, quadrants: Dataset
) -> None:
    resident = to_device(quadrants, torch.device("cpu"))
    shared = [fit(vit, train, resident) for _ in range(2)]
    own = fit(vit, train, quadrants, device="cpu")
    for result in shared:
        assert [r.val_loss for r in result.history] == [r.val_loss for r in own.history]


class TestRefused:
    @pytest.mark.parametrize(
        ("change", "line"),
        [
            ({"image_size": 16}, "image_size: the model has 16; accepted for quadrants: 8"),
            ({"in_chans": 3}, "in_chans: the model has 3; accepted for quadrants: 1"),
            ({"num_classes": 10}, "num_classes: the model has 10; accepted for quadrants: 4"),
        ],
    )
    def test_a_model_of_another_shape(
        self,
        model: ModelConfig,
        train: TrainConfig,
        quadrants: Dataset,
        change: dict[str, int],
        line: str,
    ) -> None:
        with pytest.raises(UsageError) as refusal:
            fit(model.replace(**change), train, quadrants, device="cpu")
        assert str(refusal.value) == line

    def test_a_batch_larger_than_the_data(
        self, vit: ViTConfig, train: TrainConfig, quadrants: Dataset, tmp_path: Path
    ) -> None:
        fit(vit, train.replace(batch_size=86, epochs=1), quadrants, device="cpu")
        with pytest.raises(UsageError) as refusal:
            fit(
                vit,
                train.replace(batch_size=87),
                quadrants,
                device="cpu",
                checkpoint=tmp_path / "file",
            )
        assert str(refusal.value) == (
            "--batch-size: 87 is larger than the training set; accepted: 1 to 86"
        )
        assert not any(tmp_path.iterdir())

    def test_mirroring_images_that_it_would_spoil(
        self, vit: ViTConfig, train: TrainConfig, quadrants: Dataset
    ) -> None:
        letters = replace(quadrants, name="letters", may_flip=False)
        with pytest.raises(UsageError) as refusal:
            fit(vit, train.replace(flip=True), letters, device="cpu")
        assert str(refusal.value) == "flip: mirrored images of letters are not of their class"

    def test_one_pixel_of_one_image_has_no_variance(
        self, train: TrainConfig, quadrants: Dataset
    ) -> None:
        deep = ConvNetConfig(image_size=8, num_classes=4, widths=(4, 4, 4, 4), depths=(1, 1, 1, 1))
        with pytest.raises(UsageError, match=r"^--batch-size: 1 is too small for batch norm"):
            fit(deep, train.replace(batch_size=1), quadrants, device="cpu")
        flat = deep.replace(widths=(4, 4, 4), depths=(1, 1, 1))
        whole = quadrants.train
        some = replace(quadrants, train=Split(whole.images[:4], whole.labels[:4]))
        assert fit(flat, train.replace(batch_size=1, epochs=1), some, device="cpu").history
