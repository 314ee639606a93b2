"""Writing a model of a study into a folder, once it is seen to be right."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console

from visweep import data, text
from visweep.cli.choosing import Chosen, Wanted, choose
from visweep.cli.facts import CARD, Facts, origin, told
from visweep.cli.model_card import card
from visweep.cli.output import check_new_folder
from visweep.data.dataset import Dataset
from visweep.data.resident import to_device
from visweep.errors import DataError, ExportError, UsageError
from visweep.storage.folder import Folder
from visweep.training import exported as folders
from visweep.training import onnx_file
from visweep.training.classifier import Classifier, Preprocessing
from visweep.training.exported import Exported
from visweep.training.passes import Member
from visweep.training.trained import CPU, Trained, allowed_change

_CHECKED = 66
"""Images that torch and onnxruntime must agree on: batches of 1, 2, … 11."""


def export(console: Console, wanted: Wanted) -> None:
    """Write the folder, whole or not at all, once its ONNX file is seen to be right.

    Raises:
        UsageError: an option is bad, there is no such trial, or its weights were not kept.
        CheckpointError: the weights are damaged, or another run's.
        ExportError: what would be written is not the trained model.
    """
    if wanted.output is not None:
        check_new_folder(wanted.output)
    chosen = choose(wanted)
    output = wanted.output or Path(f"{_safe(wanted.study)}-trial-{chosen.trial.number}")
    check_new_folder(output)
    if chosen.threads is not None:
        # As in the search: sums are rounded by it.
        torch.set_num_threads(chosen.threads)
    dataset = _images(chosen)
    found, facts = _taken_out(chosen, dataset)
    _require_accuracy(facts)
    try:
        with Folder(output.absolute()).filling() as folder:
            facts = _fill(folder, found, facts, dataset)
    except OSError as e:
        raise UsageError(f"--output: {output} cannot be written ({e.strerror})") from e
    for line in told(facts, output):
        text.print_line(console, line)


def _images(chosen: Chosen) -> Dataset:
    dataset = data.load(chosen.specification.data)
    if dataset.fingerprint != chosen.specification.fingerprint:
        raise DataError(f"--data-dir: these are not the images of study {chosen.wanted.study!r}")
    return dataset


def _taken_out(chosen: Chosen, dataset: Dataset) -> tuple[Exported, Facts]:
    """The model of one seed, and what is known of it."""
    member = Member(chosen.model, chosen.train)
    trained = Trained(member, to_device(dataset, CPU, 0), chosen.checkpoint)
    seed = _seed(chosen, trained)
    classifier = Classifier(trained.replica(seed), Preprocessing.of(dataset))
    found = Exported(chosen.model, dataset.classes, classifier)
    facts = Facts(
        chosen=chosen,
        seed=seed,
        preprocessing=classifier.preprocessing,
        classes=dataset.classes,
        train_images=len(dataset.train),
        val_images=len(dataset.val),
        then=trained.val_accuracy[trained.seeds.index(seed)],
        now=_accuracy(found, dataset),
    )
    return found, facts


def _fill(folder: Path, found: Exported, facts: Facts, dataset: Dataset) -> Facts:
    """Returns what is known now."""
    folders.write(found, folder, origin(facts))
    path = folder / onnx_file.ONNX
    onnx_file.write_onnx(found, path)
    # What was written is what is compared, not what it was written from.
    written = folders.read(folder, "--output")
    off = onnx_file.require_same(written, path, _examples(dataset))
    facts = replace(facts, onnx_off=off)
    (folder / CARD).write_text(card(facts), encoding="utf-8")
    return facts


def _seed(chosen: Chosen, trained: Trained) -> int:
    wanted = chosen.wanted.seed
    if wanted is None:
        return trained.best_seed()
    if wanted not in trained.seeds:
        raise UsageError(
            f"--seed: {wanted} is not among the seeds of trial {chosen.trial.number}; "
            f"accepted: {', '.join(map(str, trained.seeds))}"
        )
    return wanted


def _accuracy(found: Exported, dataset: Dataset) -> float:
    """On the validation images."""
    right = found.logits(_inner(dataset)).argmax(1) == torch.from_numpy(dataset.val.labels)
    return float(right.double().mean())


def _inner(dataset: Dataset) -> torch.Tensor:
    """The validation images without the border that a classifier gives them."""
    inner = slice(dataset.padding, dataset.val.images.shape[-1] - dataset.padding)
    return torch.from_numpy(dataset.val.images[..., inner, inner])


def _examples(dataset: Dataset) -> torch.Tensor:
    """Images that torch and onnxruntime are compared on: of the data set, and noise."""
    noise = torch.Generator().manual_seed(0)
    real = _inner(dataset)[: _CHECKED // 2]
    shape = (_CHECKED - len(real), *real.shape[1:])
    return torch.cat([real, torch.randint(0, 256, shape, generator=noise, dtype=torch.uint8)])


def _require_accuracy(facts: Facts) -> None:
    """See that it is the model that was trained: other weights, or pixels, show at once."""
    if abs(facts.now - facts.then) > allowed_change(facts.then, facts.val_images):
        raise ExportError(
            f"trial {facts.chosen.trial.number}: what would be exported has a validation accuracy "
            f"of {text.percent(facts.now)}, and the trained model had "
            f"{text.percent(facts.then)}; nothing was written"
        )


def _safe(study: str) -> str:
    return study.replace("/", "_")
