"""Fashion-MNIST read the usual way: torchvision, a transform per image, a `DataLoader`."""

from __future__ import annotations

import gzip
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch.utils.data import DataLoader, Subset
from torchvision import transforms
from torchvision.datasets import FashionMNIST

from visweep.config import TrainConfig
from visweep.data.splits import Indices, evenly, hold_out, val_count

BORDER = 2
"""Black pixels around each image of 28, which make it one of 32."""
MEAN, STD = (0.2190,), (0.3318,)
"""Of the training images with that border."""
_VAL_BATCH = 256


@dataclass(frozen=True)
class Images:
    """The published training images, divided.

    Attributes:
        root: their folder, as torchvision lays it out.
        train, val: indices of the training and the validation images.
    """

    root: Path
    train: Indices
    val: Indices

    def first(self, train: int, val: int) -> Images:
        """So many images of each part."""
        return Images(self.root, self.train[:train], self.val[:val])


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


def divide(root: Path, train_size: int | None = None) -> Images:
    """The images, divided as `visweep.data.load` does it, so that both sides have the same."""
    labels = FashionMNIST(root).targets.numpy()
    train, val = hold_out(labels, val_count(len(labels)), "validation", 0)
    if train_size is not None:
        train = train[evenly(labels[train], train_size, "train size", 0)]
    return Images(root, train, val)


def data_loaders(
    images: Images, config: TrainConfig, loaders: int, device: str
) -> tuple[DataLoader, DataLoader]:
    """Batches for training and for validation, prepared by so many processes.

    `persistent_workers` keeps these from one epoch to the next, which saves their start;
    `pin_memory` lets the copies to a GPU overlap with its work, and is of no use on the CPU.
    """
    augmented = [transforms.RandomCrop(28 + 2 * BORDER, padding=BORDER + config.translate)]
    if config.flip:
        augmented.append(transforms.RandomHorizontalFlip())
    load = partial(
        DataLoader,
        num_workers=loaders,
        # As in a script of its own; a process of a benchmark would pass on how it was started.
        multiprocessing_context="fork" if loaders else None,
        persistent_workers=loaders > 0,
        pin_memory=device.startswith("cuda"),
    )
    train = Subset(_published(images.root, augmented), images.train.tolist())
    val = Subset(_published(images.root, [transforms.Pad(BORDER)]), images.val.tolist())
    return (
        load(train, config.batch_size, shuffle=True, drop_last=True),
        load(val, _VAL_BATCH),
    )


def _published(root: Path, steps: list[object]) -> FashionMNIST:
    # The first version of the transforms: the second was measured to take a third longer here.
    to_input = [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    return FashionMNIST(root, transform=transforms.Compose(steps + to_input))
