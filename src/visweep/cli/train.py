"""Training one configuration, apart from any search."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from rich.console import Console

from visweep import data, text
from visweep.cli.images import images_asked_for
from visweep.cli.studies import opened
from visweep.config import (
    ConvNetConfig,
    DataConfig,
    ModelConfig,
    TrainConfig,
    ViTConfig,
    completed,
    to_json,
    with_parameters,
)
from visweep.data.resident import to_device
from visweep.errors import DataError, UsageError, unknown_name
from visweep.search.duplicates import trained_as
from visweep.search.room import room_for_one
from visweep.search.study import images_folder, specification_of
from visweep.search.summary import finished
from visweep.search.threads import THREADS
from visweep.training.device import resolve_device, resolve_precision
from visweep.training.fit import fit
from visweep.training.results import EpochResult

_WORDS = {"True": "true", "False": "false"}
_MODELS: dict[str, ModelConfig] = {"vit": ViTConfig(), "convnet": ConvNetConfig()}


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What `visweep train` was asked for; fields are named after the options."""

    study: str | None
    trial: int | None
    model: str
    changes: tuple[str, ...]
    seed: int | None
    epochs: int | None
    dataset: str | None
    data_dir: Path | None
    image_size: int | None
    train_size: int | None
    device: str
    checkpoint: Path | None
    train_curves: bool | None
    storage: str | None


@dataclass(frozen=True)
class _Configuration:
    model: ModelConfig
    train: TrainConfig
    data: DataConfig
    fingerprint: str | None
    threads: int | None = None


def train_once(console: Console, wanted: Wanted) -> None:
    """Train, one line per epoch.

    Raises:
        UsageError: an option is bad, or the data are not the study's.
    """
    device = resolve_device(wanted.device)
    configuration = _from_study(wanted) if wanted.study else _from_options(wanted)
    if configuration.threads is not None:
        # As in the search: sums are rounded by it.
        torch.set_num_threads(configuration.threads)
    dataset = data.load(configuration.data)
    if configuration.fingerprint not in (None, dataset.fingerprint):
        raise DataError(f"--data-dir: these are not the images of study {wanted.study!r}")
    train = configuration.train
    if wanted.study is None:
        train = train.replace(**dataset.train_fields)
    if wanted.seed is not None:
        train = train.replace(seeds=(wanted.seed,))
    if wanted.epochs is not None:
        train = train.replace(epochs=wanted.epochs)
    if wanted.train_curves is not None:
        train = train.replace(train_curves=wanted.train_curves)
    model = configuration.model.replace(**dataset.model_fields)
    model, train = _changed(model, train, wanted.changes)
    shown = {k: v for k, v in completed(to_json(model)).items() if k != "kind"}
    text.print_line(
        console, f"{model.kind} on {dataset.name} ({device}): {text.parameters(shown)}"
    )
    resident = to_device(dataset, device, train.translate)
    precision = resolve_precision(train.precision, device)
    result = fit(
        model,
        train,
        resident,
        on_epoch=lambda r: text.print_line(console, _line(r, train.epochs)),
        checkpoint=wanted.checkpoint,
        room=room_for_one(str(device), precision, torch.get_num_threads()),
    )
    text.print_line(
        console,
        f"{result.ended}: validation accuracy "
        f"{text.percent(result.history[-1].mean_val_accuracy)}, training accuracy "
        f"{text.percent(fmean(result.train_accuracy))}, "
        f"{text.count(result.num_params)} parameters, {text.duration(result.seconds)}, "
        f"{result.images_per_second:,.0f} images/s",
    )


def _from_study(wanted: Wanted) -> _Configuration:
    assert wanted.study is not None
    for option, value in (
        ("--dataset", wanted.dataset),
        ("--image-size", wanted.image_size),
        ("--train-size", wanted.train_size),
    ):
        if value is not None:
            raise UsageError(f"{option}: the study decides that; leave out {option} or --study")
    with opened(wanted.storage, wanted.study, option="--study") as (study, _):
        specification = specification_of(study, "--study")
        threads = study.user_attrs.get(THREADS)
        where = images_folder(study) if wanted.data_dir is None else str(wanted.data_dir)
        candidates = finished(study.get_trials(deepcopy=False))
        if wanted.trial is not None:
            candidates = [t for t in study.get_trials(deepcopy=False) if t.params]
            candidates = [t for t in candidates if t.number == wanted.trial]
        if not candidates:
            which = "finished trial" if wanted.trial is None else f"trial {wanted.trial}"
            raise UsageError(f"--trial: study {wanted.study!r} has no {which}")
    model, train = trained_as(specification, candidates[0])
    images = specification.data.replace(data_dir=where)
    return _Configuration(model, train, images, specification.fingerprint, threads)


def _from_options(wanted: Wanted) -> _Configuration:
    if wanted.trial is not None:
        raise UsageError("--trial: needs --study NAME")
    if wanted.model not in _MODELS:
        raise unknown_name("--model", wanted.model, _MODELS)
    dataset = wanted.dataset or "cluttered-digits"
    chosen = images_asked_for(dataset, wanted.data_dir, wanted.image_size, wanted.train_size)
    return _Configuration(_MODELS[wanted.model], TrainConfig(), chosen, None)


def _changed(
    model: ModelConfig, train: TrainConfig, given: tuple[str, ...]
) -> tuple[ModelConfig, TrainConfig]:
    """The configurations with what `--set` changes; its errors name that option."""
    changes = _changes(given)
    try:
        return with_parameters(model, train, changes)
    except UsageError as e:
        said = str(e).removeprefix("parameter: ")
        raise UsageError(f"--set: {said}") from e


def _changes(given: tuple[str, ...]) -> dict[str, Any]:
    changes: dict[str, Any] = {}
    for change in given:
        name, equals, written = change.partition("=")
        if not (name and equals and written):
            raise UsageError(f"--set: {change!r} is not FIELD=VALUE, such as depth=4")
        try:
            value = json.loads(_WORDS.get(written, written))
        except ValueError:
            value = written
        # No field is a list.
        changes[name] = tuple(value) if isinstance(value, list) else value
    return changes


def _line(result: EpochResult, epochs: int) -> str:
    seconds = result.train_seconds + result.val_seconds
    return (
        f"epoch {result.epoch}/{epochs}: validation accuracy "
        f"{text.percent(result.mean_val_accuracy)}, {_training_accuracies(result)}training loss "
        f"{fmean(result.train_loss):.3f}, {text.duration(seconds)}"
    )


def _training_accuracies(result: EpochResult) -> str:
    if not result.plain_train_accuracy:
        return ""
    plain, augmented = fmean(result.plain_train_accuracy), fmean(result.augmented_train_accuracy)
    return f"training accuracy {text.percent(plain)} ({text.percent(augmented)} augmented), "
