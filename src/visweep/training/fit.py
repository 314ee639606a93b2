"""The shared trainer: `fit` trains K replicas of one configuration in one pass.

It knows nothing of searches. Whoever calls it hears of every epoch and may stop it there.
"""

from __future__ import annotations

from pathlib import Path

from visweep.config import ConvNetConfig, ModelConfig, TrainConfig
from visweep.data.dataset import Dataset
from visweep.data.resident import ResidentData, to_device
from visweep.errors import UsageError
from visweep.training.device import reset_peak_memory, resolve_device, used
from visweep.training.memory import insist
from visweep.training.passes import Member
from visweep.training.resolve import require_batch
from visweep.training.results import FitResult, OnEpoch
from visweep.training.room import Room
from visweep.training.rounds import Rounds
from visweep.training.run import Run


def fit(
    model_config: ModelConfig,
    train_config: TrainConfig,
    data: Dataset | ResidentData,
    *,
    on_epoch: OnEpoch | None = None,
    checkpoint: Path | None = None,
    device: str = "auto",
    others_beside: bool = False,
    room: Room | None = None,
) -> FitResult:
    """Train one replica per seed of `train_config.seeds`, all in one pass.

    Args:
        model_config: what to train; its image size, channels and classes must be the data's.
        train_config: how to train it.
        data: the images; a `Dataset` is first copied to `device`.
        on_epoch: called after each epoch. Where it returns True, the run stops there; where it
            returns some of `EpochResult.seeds`, those replicas do, and the others go on in a
            smaller pass: also where the loss of one is no number any more, which else ends the
            run. After a resume it first hears of the epochs in the checkpoint again.
        checkpoint: a file that is written after each epoch, before `on_epoch` is called. If it
            exists, the run goes on from it: on a CPU of the same type, with the same versions
            and number of threads, to the same bits as without the interruption.
        device: `auto`, `cpu`, `cuda` or `cuda:N`; ignored where `data` already is on a device.
        others_beside: whether other processes train on the device, and could make room.
        room: what the run may take; replicas and batches that are estimated to take more are
            divided.

    Raises:
        UsageError: the configurations do not fit the data or the machine.
        CheckpointError: the checkpoint is damaged or belongs to another run.
        OutOfMemory: it does not fit in memory, however it is divided. Nothing of the run is held
            then.
        Crowded: it does not fit beside the others.
    """
    if isinstance(data, Dataset):
        data = to_device(data, resolve_device(device), train_config.translate)
    require_fit(model_config, train_config, data)
    reset_peak_memory(data.device)
    member = Member(model_config, train_config)
    with used(data.device):
        return insist(
            lambda: _fit(
                Run(member, data, on_epoch, checkpoint),
                Rounds(data, others_beside=others_beside, room=room),
            ),
            "the model",
        )


def _fit(run: Run, rounds: Rounds) -> FitResult:
    rounds.join(run)
    while not run.over:
        for turn in rounds.round():
            turn.take()
    return rounds.leave(run)


def require_fit(model: ModelConfig, train: TrainConfig, data: ResidentData) -> None:
    """See that the configurations fit the data.

    Raises:
        UsageError: they do not.
    """
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
