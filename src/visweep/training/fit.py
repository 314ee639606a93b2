"""The shared trainer: `fit` trains K replicas of one configuration in one pass.

It knows nothing of searches. Whoever calls it hears of every epoch and may stop it there.
"""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from visweep import models
from visweep.config import ConvNetConfig, ModelConfig, TrainConfig, to_json
from visweep.data.dataset import Dataset
from visweep.data.resident import Augmenter, ResidentData, to_device
from visweep.draws import Draws
from visweep.errors import UsageError
from visweep.models.layers import initialise
from visweep.training import checkpoint as checkpoints
from visweep.training.device import (
    compute_dtype,
    master_dtype,
    peak_memory,
    reset_peak_memory,
    resolve_device,
    resolve_precision,
)
from visweep.training.evaluate import Evaluation, evaluate
from visweep.training.memory import attempt, insist
from visweep.training.micro import MicroBatches
from visweep.training.optimizer import AdamW, FlatParameters, schedule
from visweep.training.resolve import require_batch
from visweep.training.results import EpochResult, FitResult, OnEpoch

VERSION = 2
"""Of the draws, and of how parameters are laid out: a run of another one does not go on here."""


def fit(
    model_config: ModelConfig,
    train_config: TrainConfig,
    data: Dataset | ResidentData,
    *,
    on_epoch: OnEpoch | None = None,
    checkpoint: Path | None = None,
    device: str = "auto",
) -> FitResult:
    """Train one replica per seed of `train_config.seeds`, all in one pass.

    Args:
        model_config: what to train; its image size, channels and classes must be the data's.
        train_config: how to train it.
        data: the images; a `Dataset` is first copied to `device`.
        on_epoch: called after each epoch; returning True stops the run there. After a resume it
            first hears of the epochs in the checkpoint again.
        checkpoint: a file that is written after each epoch, before `on_epoch` is called. If it
            exists, the run goes on from it: on a CPU of the same type, with the same versions
            and number of threads, to the same bits as without the interruption.
        device: `auto`, `cpu`, `cuda` or `cuda:N`; ignored where `data` already is on a device.

    Raises:
        UsageError: the configurations do not fit the data or the machine.
        CheckpointError: the checkpoint is damaged or belongs to another run.
        OutOfMemory: it does not fit in memory, however its batches are divided. Nothing of the
            run is held then.
    """
    if isinstance(data, Dataset):
        data = to_device(data, resolve_device(device), train_config.translate)
    _check_fit(model_config, train_config, data)
    reset_peak_memory(data.device)
    return insist(
        lambda: _fit(model_config, train_config, data, on_epoch, checkpoint), "the model"
    )


def _fit(
    model_config: ModelConfig,
    train_config: TrainConfig,
    data: ResidentData,
    on_epoch: OnEpoch | None,
    checkpoint: Path | None,
) -> FitResult:
    run = Run(model_config, train_config, data)
    history = run.resume(checkpoint) if checkpoint is not None and checkpoint.exists() else []
    stop = _deliver(history, on_epoch)
    while not stop and len(history) < train_config.epochs:
        result = run.epoch(len(history) + 1)
        history.append(result)
        if checkpoint is not None:
            run.save(checkpoint, history)
        stop = bool(on_epoch and on_epoch(result)) or result.diverged
    return run.result(history)


def _deliver(history: list[EpochResult], on_epoch: OnEpoch | None) -> bool:
    stop = False
    for result in history:
        stop = bool(on_epoch and on_epoch(result)) and not result.replayed
    return stop or (bool(history) and history[-1].diverged)


def _check_fit(model: ModelConfig, train: TrainConfig, data: ResidentData) -> None:
    for field, value in data.dataset.model_fields.items():
        if getattr(model, field) != value:
            raise UsageError(
                f"{field}: the model has {getattr(model, field)}; "
                f"accepted for {data.dataset.name}: {value}"
            )
    if train.translate > data.train.margin:
        raise UsageError(
            f"translate: {train.translate} pixels, but the resident images have a border of "
            f"{data.train.margin}; give `to_device` a larger margin"
        )
    if train.flip and not data.dataset.may_flip:
        raise UsageError(f"flip: mirrored images of {data.dataset.name} are not of their class")
    require_batch(train.batch_size, len(data.train))
    _require_statistics(model, train.batch_size)


def _require_statistics(model: ModelConfig, batch_size: int) -> None:
    """Batch norm has no variance of a single value."""
    if not isinstance(model, ConvNetConfig) or batch_size > 1:
        return
    if model.image_size <= 2 ** (len(model.widths) - 1):
        raise UsageError("--batch-size: 1 is too small for batch norm over one pixel; accepted: 2")


class Run:
    """The moving parts of one run: stacked model, optimiser, data and draws."""

    def __init__(self, model: ModelConfig, train: TrainConfig, data: ResidentData) -> None:
        self.config = train
        self.data = data
        self.replicas = len(train.seeds)
        self.micro = MicroBatches(model, train.batch_size, data.device)
        self.dtype = compute_dtype(train, data.device)
        self.identity = {
            "trainer": VERSION,
            "model": to_json(model),
            "train": {
                **to_json(train),
                "precision": resolve_precision(train.precision, data.device),
            },
            "data": data.dataset.fingerprint,
        }
        self.draws = Draws(train.seeds, data.device, ("start",))
        self.model = models.build(model, self.replicas)
        initialise(self.model, Draws(train.seeds, torch.device("cpu"), ("init",)))
        master = master_dtype(self.dtype)
        self.model.to(device=data.device, dtype=master)
        self.flat = FlatParameters(self.model, master, data.device, self.dtype)
        self.optimizer = AdamW(
            self.flat, [train.lr] * self.replicas, [train.weight_decay] * self.replicas
        )
        self.augmenter = Augmenter(data.train, train.translate, train.flip)
        self.steps_per_epoch = len(data.train) // train.batch_size
        self.factors = schedule(train, self.steps_per_epoch)

    def epoch(self, epoch: int) -> EpochResult:
        started = time.perf_counter()
        train_loss = self._train(epoch)
        trained = time.perf_counter()
        val = self._evaluate()
        return EpochResult(
            epoch=epoch,
            train_loss=train_loss,
            val_loss=val.loss,
            val_accuracy=val.accuracy,
            train_seconds=trained - started,
            val_seconds=time.perf_counter() - trained,
            images=self.steps_per_epoch * self.config.batch_size * self.replicas,
        )

    def _train(self, epoch: int) -> tuple[float, ...]:
        size = self.config.batch_size
        order = self.draws.at("epoch", epoch).permutation(len(self.data.train), "order")
        first = (epoch - 1) * self.steps_per_epoch
        total = torch.zeros(self.replicas, dtype=torch.float64, device=self.data.device)
        self.model.train()
        for index in range(self.steps_per_epoch):
            total += self.step(first + index, order[:, index * size : (index + 1) * size])
        return tuple((total / self.steps_per_epoch).tolist())

    def step(self, step: int, indices: Tensor) -> Tensor:
        """One update of every replica; returns their losses (K,), still on the device.

        What does not fit in memory is tried again in smaller parts, also in the steps to come.

        Raises:
            OutOfMemory: nothing smaller is left to be tried.
        """
        statistics = [buffer.clone() for buffer in self.model.buffers()]
        while (losses := self._try(step, indices)) is None:
            self.micro.halve()
            reset_peak_memory(self.data.device)
            for buffer, before in zip(self.model.buffers(), statistics, strict=True):
                buffer.copy_(before)
        self.flat.clip(self.config.clip_norm)
        self.optimizer.step(self.factors[step])
        self.flat.refresh()
        return losses

    def _try(self, step: int, indices: Tensor) -> Tensor | None:
        """The losses of a step, its gradient in `flat`; None if smaller parts may fit."""
        gradient = partial(self._gradient, step, indices)
        if not self.micro.smallest:
            return attempt(gradient)
        what = f"a pass over {self.micro.size} of {self.config.batch_size} images"
        return insist(gradient, what)

    def _gradient(self, step: int, indices: Tensor) -> Tensor:
        draws = self.draws.at("step", step)
        losses: list[Tensor] = []
        for part in self.micro.parts:
            if part is None:
                loss = self._loss(indices, draws)
            else:
                loss = self._loss(indices[:, part.images], draws.of(part))
            self.flat.backward(loss.sum(), add=bool(losses))
            losses.append(loss.detach())
        return torch.stack(losses).sum(0)

    def _loss(self, indices: Tensor, draws: Draws) -> Tensor:
        """What these images add to the mean loss of the whole batch, (K,)."""
        images, labels = self.augmenter.batch(indices, draws)
        logits = self.model(self.data.normalise(images, self.dtype), draws)
        losses = F.cross_entropy(
            logits.flatten(0, 1).to(self.flat.values.dtype),
            labels.flatten(),
            label_smoothing=self.config.label_smoothing,
            reduction="none",
        )
        return losses.view(self.replicas, -1).sum(1) / self.config.batch_size

    def _evaluate(self, probe: bool = False) -> Evaluation:
        split = self.data.probe if probe else self.data.val
        return evaluate(self.model, self.data, split, self.replicas, self.dtype)

    def save(self, path: Path, history: list[EpochResult]) -> None:
        tensors = {
            "values": self.flat.values,
            "buffers": dict(self.model.named_buffers()),
            "optimizer": self.optimizer.state(),
            "micro_batch": self.micro.size,
        }
        checkpoints.write(path, self.identity, history, tensors)

    def resume(self, path: Path) -> list[EpochResult]:
        """Load a checkpoint and return its epochs, all but the last marked as replayed."""
        history, tensors = checkpoints.read(path, self.identity, EpochResult, self.data.device)
        with torch.no_grad():
            self.flat.values.copy_(tensors["values"])
            for name, buffer in self.model.named_buffers():
                buffer.copy_(tensors["buffers"][name])
        self.flat.refresh()
        self.optimizer.load_state(tensors["optimizer"])
        # It is no other sum of gradients, but rounded otherwise.
        self.micro.shrink_to(tensors.get("micro_batch", self.micro.size))
        return history

    def result(self, history: list[EpochResult]) -> FitResult:
        if history[-1].diverged:
            ended = "diverged"
        else:
            ended = "completed" if len(history) == self.config.epochs else "stopped"
        train_accuracy = self._evaluate(probe=True).accuracy
        self.flat.widen()
        return FitResult(
            history=tuple(history),
            ended=ended,
            train_accuracy=train_accuracy,
            num_params=self.flat.values.shape[1],
            peak_memory=peak_memory(self.data.device),
            model=self.model.eval(),
            micro_batch=self.micro.size if self.micro.divided else None,
        )
