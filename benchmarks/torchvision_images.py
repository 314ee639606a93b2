"""Images read the usual way: torchvision, a transform per image, a `DataLoader`."""

from __future__ import annotations

import gzip
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import generated_images
import numpy as np
from generated_images import CifarShaped, generated
from torch.utils.data import DataLoader, Subset
from torchvision import transforms
from torchvision.datasets import FashionMNIST, VisionDataset

from visweep.config import TrainConfig
from visweep.data.splits import Indices, evenly, hold_out, val_count

_VAL_BATCH = 256


@dataclass(frozen=True)
class Kind:
    """A data set as a script knows it.

    Attributes:
        reader: opens it in a folder.
        size: of its images.
        border: black pixels around each of them, which make it one of 32.
        mean, std: of the training images with that border, of each channel.
    """

    reader: type[VisionDataset]
    size: int
    border: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


KINDS = {
    "fashion-mnist": Kind(FashionMNIST, 28, 2, (0.2190,), (0.3318,)),
    "cifar-shaped": Kind(CifarShaped, 32, 0, generated_images.MEAN, generated_images.STD),
}


@dataclass(frozen=True)
class Images:
    """The training images of a data set, divided.

    Attributes:
        kind: which; of `KINDS`.
        root: their folder, as torchvision lays it out.
        train, val: indices of the training and the validation images.
    """

    kind: str
    root: Path
    train: Indices
    val: Indices

    def first(self, train: int, val: int) -> Images:
        """So many images of each part."""
        return Images(self.kind, self.root, self.train[:train], self.val[:val])


def opened(kind: str, data_dir: Path, count: int) -> AbstractContextManager[Path]:
    """The folder of a data set as torchvision wants it, for the while.

    Args:
        kind: which; of `KINDS`.
        data_dir: where Fashion-MNIST lies.
        count: of the images that are generated.
    """
    return generated(count) if kind == "cifar-shaped" else torchvision_root(data_dir)


@contextmanager
def torchvision_root(data_dir: Path) -> Iterator[Path]:
    """The folder as torchvision wants it; published archives are unpacked for the while."""
    if (data_dir / "FashionMNIST" / "raw").is_dir():
        yield data_dir
        return
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder) / "FashionMNIST" / "raw"
        raw.mkdir(parents=True)
        for archive in data_dir.glob("*-ubyte.gz"):
            with gzip.open(archive) as packed, (raw / archive.stem).open("wb") as file:
                shutil.copyfileobj(packed, file)
        yield Path(folder)


def divide(root: Path, train_size: int | None = None, kind: str = "fashion-mnist") -> Images:
    """The images, divided as `visweep.data.load` does it, so that both sides have the same."""
    labels = np.asarray(KINDS[kind].reader(root).targets)
    train, val = hold_out(labels, val_count(len(labels)), "validation", 0)
    if train_size is not None:
        train = train[evenly(labels[train], train_size, "train size", 0)]
    return Images(kind, root, train, val)


def data_loaders(
    images: Images, config: TrainConfig, loaders: int, device: str
) -> tuple[DataLoader, DataLoader]:
    """Batches for training and for validation, prepared by so many processes.

    `persistent_workers` keeps these from one epoch to the next, which saves their start;
    `pin_memory` lets the copies to a GPU overlap with its work, and is of no use on the CPU.
    """
    kind = KINDS[images.kind]
    whole = kind.size + 2 * kind.border
    augmented = [transforms.RandomCrop(whole, padding=kind.border + config.translate)]
    if config.flip:
        augmented.append(transforms.RandomHorizontalFlip())
    plain = [transforms.Pad(kind.border)] if kind.border else []
    load = partial(
        DataLoader,
        num_workers=loaders,
        # As in a script of its own; a process of a benchmark would pass on how it was started.
        multiprocessing_context="fork" if loaders else None,
        persistent_workers=loaders > 0,
        pin_memory=device.startswith("cuda"),
    )
    train = Subset(_published(kind, images.root, augmented), images.train.tolist())
    val = Subset(_published(kind, images.root, plain), images.val.tolist())
    return (
        load(train, config.batch_size, shuffle=True, drop_last=True),
        load(val, _VAL_BATCH),
    )


def _published(kind: Kind, root: Path, steps: list[object]) -> VisionDataset:
    # The first version of the transforms: the second was measured to take a third longer here.
    to_input = [transforms.ToTensor(), transforms.Normalize(kind.mean, kind.std)]
    return kind.reader(root, transform=transforms.Compose(steps + to_input))
