"""The images in memory that processes share."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.multiprocessing  # passes tensors to other processes without a copy
from torch import Tensor

from visweep import text
from visweep.data.dataset import Dataset, Split
from visweep.data.resident import ResidentData, ResidentSplit
from visweep.errors import DataError


@dataclass(frozen=True)
class SharedData:
    """A data set that is not copied when it is passed to another process of this machine.

    Attributes:
        name, classes, fingerprint, may_flip: see `Dataset`.
        train, val, probe, mean, std: see `ResidentData`; in shared memory.
    """

    name: str
    classes: tuple[str, ...]
    fingerprint: str
    may_flip: bool
    train: ResidentSplit
    val: ResidentSplit
    probe: ResidentSplit
    mean: Tensor
    std: Tensor

    def to(self, device: torch.device) -> ResidentData:
        """The images on a training device: on the CPU where they are, elsewhere a copy."""
        dataset = Dataset(
            name=self.name,
            classes=self.classes,
            train=_as_arrays(self.train),
            val=_as_arrays(self.val),
            fingerprint=self.fingerprint,
            may_flip=self.may_flip,
        )
        return ResidentData(
            dataset=dataset,
            train=_moved(self.train, device),
            val=_moved(self.val, device),
            probe=_moved(self.probe, device),
            mean=self.mean.to(device),
            std=self.std.to(device),
        )


def share(data: ResidentData) -> SharedData:
    """Put the images into shared memory; `data`, which must be on the CPU, then lies there too.

    Raises:
        DataError: there is not enough shared memory.
    """
    splits = (data.train, data.val, data.probe)
    tensors = [tensor for split in splits for tensor in (split.bordered, split.labels)]
    try:
        for tensor in (*tensors, data.mean, data.std):
            tensor.share_memory_()  # type: ignore[no-untyped-call]
    except RuntimeError as e:
        size = text.memory(sum(tensor.nbytes for tensor in tensors))
        raise DataError(
            f"--workers: the images ({size}) do not fit into this machine's shared memory; "
            "accepted: 1, or more of it (a container: docker run --shm-size=2g)"
        ) from e
    return SharedData(
        name=data.dataset.name,
        classes=data.dataset.classes,
        fingerprint=data.dataset.fingerprint,
        may_flip=data.dataset.may_flip,
        train=data.train,
        val=data.val,
        probe=data.probe,
        mean=data.mean,
        std=data.std,
    )


def _as_arrays(split: ResidentSplit) -> Split:
    return Split(split.images.numpy(), split.labels.numpy())


def _moved(split: ResidentSplit, device: torch.device) -> ResidentSplit:
    return replace(split, bordered=split.bordered.to(device), labels=split.labels.to(device))
