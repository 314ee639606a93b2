"""A model that is taken out of a checkpoint: the same numbers, in torch and in onnxruntime."""

from __future__ import annotations

import json
import pickle
import warnings
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from visweep.config import ConvNetConfig, ModelConfig, TrainConfig, ViTConfig
from visweep.data.dataset import Dataset, Split, with_border
from visweep.data.resident import to_device
from visweep.errors import CheckpointError, ExportError, UsageError
from visweep.training import onnx_file
from visweep.training.classifier import Classifier, Preprocessing
from visweep.training.evaluate import predict
from visweep.training.exported import CONFIG, WEIGHTS, Exported, read, write
from visweep.training.fit import fit
from visweep.training.passes import Member
from visweep.training.results import FitResult
from visweep.training.trained import CPU, Trained


def trained(
    model: ModelConfig, train: TrainConfig, dataset: Dataset, path: Path
) -> tuple[Trained, FitResult]:
    result = fit(model, train, dataset, checkpoint=path, device="cpu")
    return Trained(Member(model, train), to_device(dataset, CPU, 0), path), result


def exported(
    model: ModelConfig, train: TrainConfig, dataset: Dataset, path: Path, seed: int
) -> Exported:
    replica = trained(model, train, dataset, path)[0].replica(seed)
    classifier = Classifier(replica, Preprocessing.of(dataset))
    return Exported(model, dataset.classes, classifier)


def padded(dataset: Dataset, width: int) -> Dataset:
    """The same images, as if a border had been given to them."""

    def bordered(split: Split) -> Split:
        return Split(with_border(split.images, width), split.labels)

    parts = {"train": bordered(dataset.train), "val": bordered(dataset.val)}
    fields = {"name": "bordered", "classes": dataset.classes, "fingerprint": "print"}
    return Dataset(**fields, **parts, may_flip=True, padding=width)  # type: ignore[arg-type]


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float64"])
def test_a_replica_is_the_one_that_was_trained(
    model: ModelConfig, train: TrainConfig, quadrants: Dataset, tmp_path: Path, precision: str
) -> None:
    exact = train.replace(precision=precision, epochs=2)
    found, result = trained(model, exact, quadrants, tmp_path / "run")
    assert found.seeds == (3, 5)
    assert found.val_accuracy == result.history[-1].val_accuracy
    for row, seed in enumerate(found.seeds):
        alone = found.replica(seed).state_dict()
        whole = result.model.state_dict()
        assert alone.keys() == whole.keys()
        for name, value in whole.items():
            assert torch.equal(alone[name], value[row : row + 1].float()), name


def test_the_best_seed_is_the_first_of_the_best(
    vit: ViTConfig, train: TrainConfig, quadrants: Dataset, tmp_path: Path
) -> None:
    found, _ = trained(vit, train.replace(epochs=1), quadrants, tmp_path / "run")
    for accuracies, best in (((0.4, 0.6), 5), ((0.6, 0.4), 3), ((0.5, 0.5), 3)):
        found.val_accuracy = accuracies
        assert found.best_seed() == best


def test_a_run_that_has_not_come_to_its_end_is_refused(
    vit: ViTConfig, train: TrainConfig, quadrants: Dataset, tmp_path: Path
) -> None:
    path = tmp_path / "run"
    fit(vit, train, quadrants, checkpoint=path, on_epoch=lambda r: r.epoch == 3, device="cpu")
    data = to_device(quadrants, CPU, 0)
    with pytest.raises(CheckpointError, match="3 of 4 epochs"):
        Trained(Member(vit, train), data, path)
    with pytest.raises(CheckpointError, match="another run"):
        Trained(Member(vit, train.replace(seeds=(3, 6))), data, path)


@pytest.mark.parametrize("width", [0, 2])
def test_a_classifier_gives_what_the_evaluation_gives(
    model: ModelConfig, train: TrainConfig, quadrants: Dataset, tmp_path: Path, width: int
) -> None:
    """To the bit: the border is part of it, and the pixels are given as they are in a file."""
    dataset = padded(quadrants, width) if width else quadrants
    model = model.replace(image_size=8 + 2 * width)
    found = exported(model, train.replace(seeds=(5,)), dataset, tmp_path / "run", 5)
    data = to_device(dataset, CPU, 0)
    with torch.no_grad():
        expected = predict(found.classifier.model, data, data.val.images, 1, torch.float32)[0]
    inner = torch.from_numpy(quadrants.val.images)
    assert found.preprocessing.image_size == 8
    assert torch.equal(found.logits(inner), expected)


def test_what_was_written_is_read_again(
    model: ModelConfig, train: TrainConfig, quadrants: Dataset, tmp_path: Path
) -> None:
    found = exported(model, train, quadrants, tmp_path / "run", 5)
    write(found, tmp_path, {"origin": {"study": "night-run"}})
    again = read(tmp_path, "MODEL")
    assert (again.config, again.classes) == (model, quadrants.classes)
    assert again.preprocessing == found.preprocessing
    images = torch.from_numpy(quadrants.val.images)
    assert torch.equal(again.logits(images), found.logits(images))
    assert json.loads((tmp_path / CONFIG).read_text())["origin"] == {"study": "night-run"}


class Trap:
    def __reduce__(self) -> tuple[object, ...]:
        return print, ("code has run",)


def test_what_is_no_model_is_refused_in_one_line(
    vit: ViTConfig,
    train: TrainConfig,
    quadrants: Dataset,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "model"
    found = exported(vit, train.replace(epochs=1), quadrants, tmp_path / "run", 3)

    def refusal() -> str:
        with pytest.raises(UsageError) as caught:
            read(path, "MODEL")
        line = str(caught.value)
        assert line.startswith("MODEL: ")
        assert "\n" not in line
        return line

    assert "there is no folder" in refusal()
    path.mkdir()
    assert f"has no {CONFIG}" in refusal()
    write(found, path, {})
    config, weights = (path / CONFIG).read_text(), (path / WEIGHTS).read_bytes()

    (path / WEIGHTS).write_bytes(weights[:-1])
    assert "is damaged" in refusal()
    (path / WEIGHTS).write_bytes(pickle.dumps(Trap()))
    assert "is damaged" in refusal()
    assert "code has run" not in capsys.readouterr().out
    (path / WEIGHTS).write_bytes(weights)

    for before, after, reason in (
        ("visweep model 1", "visweep model 2", "of format 'visweep model 2'; accepted: visweep"),
        ('"depth": 2', '"depth": 3', "is damaged"),
        ('"depth": 2', '"depth": "deep"', "depth"),
        ('"top left",', "", "4 logits, 3 classes"),
        ("{", "", "cannot be read"),
    ):
        (path / CONFIG).write_text(config.replace(before, after))
        assert reason in refusal()
    (path / CONFIG).write_text(config)
    read(path, "MODEL")


@pytest.mark.slow
def test_onnxruntime_computes_the_same(
    model: ModelConfig, train: TrainConfig, quadrants: Dataset, tmp_path: Path
) -> None:
    dataset = padded(quadrants, 2)
    model = model.replace(image_size=12)
    found = exported(model, train, dataset, tmp_path / "run", 5)
    path = tmp_path / "model.onnx"
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        onnx_file.write_onnx(found, path)
    assert not said
    images = torch.randint(0, 256, (40, 1, 8, 8), dtype=torch.uint8)
    assert onnx_file.require_same(found, path, images) <= 1e-4
    # Ghost batches are of training alone: an image's logits depend on no other image.
    rows = onnx_file.onnx_logits(path, images[7:8])
    assert np.allclose(rows, onnx_file.onnx_logits(path, images)[7:8], atol=1e-5)

    proto = onnx.load(path)
    onnx.checker.check_model(proto)
    (given,), (gives,) = proto.graph.input, proto.graph.output
    shape = [d.dim_param or d.dim_value for d in given.type.tensor_type.shape.dim]
    assert (given.name, shape) == ("images", ["batch", 1, 8, 8])
    assert given.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert gives.name == "logits"
    (classes,) = (p.value for p in proto.metadata_props if p.key == "classes")
    assert json.loads(classes) == list(dataset.classes)
    # Nothing of this machine.
    assert str(Path(onnx_file.__file__).parent).encode() not in path.read_bytes()

    other = exported(model, train, dataset, tmp_path / "run", 3)
    with pytest.raises(ExportError, match="a logit is off by"):
        onnx_file.require_same(other, path, images)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ExportError, match="cannot run it"):
        onnx_file.require_same(found, path, images)


@pytest.mark.slow
def test_a_batch_of_one_size_only_is_noticed(
    convnet: ConvNetConfig,
    train: TrainConfig,
    quadrants: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The exporter takes a size for a constant without a word where a model asks for it."""
    found = exported(convnet, train, quadrants, tmp_path / "run", 3)
    forward = Classifier.forward
    monkeypatch.setattr(Classifier, "forward", lambda self, x: forward(self, x) * (len(x) // 1))
    path = tmp_path / "model.onnx"
    onnx_file.write_onnx(found, path)
    monkeypatch.undo()
    with pytest.raises(ExportError, match="cannot run it"):
        onnx_file.require_same(found, path, torch.from_numpy(quadrants.val.images))
