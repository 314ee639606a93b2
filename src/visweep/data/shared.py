"""The images in memory that processes share; knows no torch until they are to be trained on."""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import reduction
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from visweep import text
from visweep.data.dataset import Dataset, Moments, Split, with_border
from visweep.errors import DataError

if TYPE_CHECKING:
    import torch

    from visweep.data.resident import ResidentData

_MEMORY = Path("/dev/shm")
"""Where Linux keeps files in memory; elsewhere the system's cache of files does as well."""
_ALIGNED = 64


@dataclass(frozen=True)
class _Place:
    """Where an array lies in the shared memory."""

    offset: int
    shape: tuple[int, ...]
    dtype: str


class _Memory:
    """A file without a name. It is gone with the last process that has it open.

    It can be passed to a process that is being started.
    """

    def __init__(self, file: int) -> None:
        self._file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return _received, (reduction.DupFd(self._file),)

    def mapped(self) -> mmap.mmap:
        # Training only reads it, but torch has no tensors that cannot be written to.
        return mmap.mmap(self._file, 0)


def _received(passed: Any) -> _Memory:
    return _Memory(passed.detach())


@dataclass(frozen=True)
class SharedData:
    """A data set that is not copied when it is passed to a process that is being started.

    Attributes:
        name, classes, fingerprint, may_flip, padding, moments: see `Dataset`.
        margin: width of the border of its training images.
    """

    name: str
    classes: tuple[str, ...]
    fingerprint: str
    may_flip: bool
    padding: int
    moments: Moments
    margin: int
    _memory: _Memory
    _places: Mapping[str, _Place]

    def to(self, device: torch.device) -> ResidentData:
        """The images on a training device: on the CPU where they are, elsewhere a copy."""
        from visweep.data.resident import resident

        memory = self._memory.mapped()
        arrays = {name: _array(memory, place) for name, place in self._places.items()}
        bordered = arrays["bordered"]
        inner = slice(self.margin, bordered.shape[-1] - self.margin)
        images = {"train": bordered[..., inner, inner], "val": arrays["val_images"]}
        train, val = (
            Split(images[part], arrays[f"{part}_labels"], arrays.get(f"{part}_groups"))
            for part in images
        )
        dataset = Dataset(
            name=self.name,
            classes=self.classes,
            train=train,
            val=val,
            fingerprint=self.fingerprint,
            may_flip=self.may_flip,
            padding=self.padding,
        )
        return resident(dataset, bordered, self.moments, device)


@contextmanager
def shared(dataset: Dataset, margin: int) -> Iterator[SharedData]:
    """Put the images into memory that processes which are started in here can share.

    Args:
        dataset: the images.
        margin: largest translation of a training image, in pixels.

    Raises:
        DataError: there is not enough shared memory.
    """
    arrays: dict[str, npt.NDArray[Any]] = {
        "bordered": with_border(dataset.train.images, margin),
        "train_labels": dataset.train.labels,
        "val_images": dataset.val.images,
        "val_labels": dataset.val.labels,
    }
    for part, split in (("train", dataset.train), ("val", dataset.val)):
        if split.groups is not None:
            arrays[f"{part}_groups"] = split.groups
    with tempfile.TemporaryFile(dir=_MEMORY if _MEMORY.is_dir() else None) as file:
        try:
            places = {name: _write(file, array) for name, array in arrays.items()}
            file.flush()
        except OSError as e:
            size = text.memory(sum(array.nbytes for array in arrays.values()))
            raise DataError(
                f"--workers: the images ({size}) do not fit into this machine's shared memory; "
                "accepted: 1, or more of it (a container: docker run --shm-size=2g)"
            ) from e
        yield SharedData(
            name=dataset.name,
            classes=dataset.classes,
            fingerprint=dataset.fingerprint,
            may_flip=dataset.may_flip,
            padding=dataset.padding,
            moments=dataset.moments,
            margin=margin,
            _memory=_Memory(file.fileno()),
            _places=places,
        )


def _write(file: IO[bytes], array: npt.NDArray[Any]) -> _Place:
    file.seek(-file.tell() % _ALIGNED, os.SEEK_CUR)
    place = _Place(file.tell(), array.shape, array.dtype.str)
    file.write(np.ascontiguousarray(array).data)
    return place


def _array(memory: mmap.mmap, place: _Place) -> npt.NDArray[Any]:
    return np.ndarray(place.shape, place.dtype, memory, place.offset)
