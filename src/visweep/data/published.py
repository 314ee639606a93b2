"""Data sets that others published, read through torchvision and downloaded when missing.

They lie in `--data-dir`, or else in the user's cache folder, laid out as torchvision does it;
the files of MNIST and Fashion-MNIST may also lie in the folder as they were published.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from visweep.config import DataConfig
from visweep.data import folder
from visweep.data.dataset import Images, Labels
from visweep.data.download import obtain, unpack
from visweep.data.idx import read_idx
from visweep.data.source import ArrayPart, Part, Source
from visweep.errors import DataError
from visweep.folders import cache_dir

NAMES = ("cifar10", "cifar100", "fashion-mnist", "mnist", "svhn", "stl10", "imagenette")

_DIGITS = tuple("0123456789")
_CLOTHES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
_STL10 = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")
_IMAGENETTE = {
    "n01440764": "tench",
    "n02102040": "English springer",
    "n02979186": "cassette player",
    "n03000684": "chain saw",
    "n03028079": "church",
    "n03394916": "French horn",
    "n03417042": "garbage truck",
    "n03425413": "gas pump",
    "n03445777": "golf ball",
    "n03888257": "parachute",
}


def load(config: DataConfig) -> Source:
    """The published training images; digits must not be mirrored, all else may be.

    Raises:
        DataError: they are neither on disk nor to be had from the network, or are damaged.
    """
    found = _find_or_download(config, train=True)
    return Source(found.classes, found.part, val=None, may_flip=found.classes != _DIGITS)


def load_test(config: DataConfig) -> Part:
    """The published test images (of `imagenette`, those published as validation images).

    Raises:
        DataError: they are neither on disk nor to be had from the network, or are damaged.
    """
    return _find_or_download(config, train=False).part


_Read = tuple[tuple[str, ...], Images, Any]
_Open = Callable[[Path, bool, bool], _Read]


class _Found(NamedTuple):
    classes: tuple[str, ...]
    part: Part


class _Reader(Protocol):
    """How one data set is found in a folder."""

    @property
    def files(self) -> tuple[str, ...]:
        """What to put into the folder by hand; an archive is unpacked from there."""

    def find(self, root: Path, train: bool) -> _Found | None:
        """The training or the test images; None where there is no intact copy in `root`."""

    def download(self, root: Path, train: bool) -> None:
        """Download into `root`."""


def _find_or_download(config: DataConfig, *, train: bool) -> _Found:
    reader = _reader(config)
    root = _root(config)
    found = reader.find(root, train)
    if found is None:
        archives = [root / file for file in reader.files if _is_archive(file)]
        if archives and archives[0].is_file():
            unpack(archives[0], root)
        else:
            obtain(config.name, root, reader.files, lambda at: _download(reader, at, train))
        found = reader.find(root, train)
    if found is None:
        raise DataError(
            f"--dataset {config.name}: what {root} holds is not what was published; "
            f"expected {', '.join(reader.files)}"
        )
    return found


def _download(reader: _Reader, root: Path, train: bool) -> None:
    reader.download(root, train)
    for file in filter(_is_archive, reader.files):
        (root / file).unlink()  # it is unpacked by now


def _is_archive(file: str) -> bool:
    return file.endswith((".tar.gz", ".tgz"))


def _root(config: DataConfig) -> Path:
    if config.data_dir is None:
        return cache_dir() / "datasets"
    root = Path(config.data_dir).expanduser()
    if root.exists() and not root.is_dir():
        raise DataError(f"--data-dir: {root} is a file; expected the folder of {config.name}")
    return root


def _reader(config: DataConfig) -> _Reader:
    if config.name == "imagenette":
        return _Imagenette(config.image_size or folder.DEFAULT_SIZE)
    return _READERS[config.name]


@dataclass(frozen=True)
class _Idx:
    """MNIST and its likes: four idx files.

    Attributes:
        name: torchvision's.
        classes: name of each class.
    """

    name: str
    classes: tuple[str, ...]
    files: tuple[str, ...] = (
        *("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"),
        *("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"),
    )

    def find(self, root: Path, train: bool) -> _Found | None:
        stem = "train" if train else "t10k"
        for place in (root, root / self.name / "raw"):
            images = _plain_or_gz(place / f"{stem}-images-idx3-ubyte")
            labels = _plain_or_gz(place / f"{stem}-labels-idx1-ubyte")
            if images and labels:
                return _Found(self.classes, self._read(images, labels))
        return None

    def _read(self, image_file: Path, label_file: Path) -> ArrayPart:
        images, labels = read_idx(image_file, 3), read_idx(label_file, 1).astype(np.int64)
        fits = len(images) == len(labels) and images.shape[1] == images.shape[2]
        if not fits or labels.max(initial=0) >= len(self.classes):
            raise DataError(
                f"--data-dir: {label_file} and {image_file.name} do not belong together; "
                f"expected square images with a label from 0 to {len(self.classes) - 1} each"
            )
        return ArrayPart(images[:, None], labels)

    def download(self, root: Path, train: bool) -> None:
        import torchvision.datasets

        getattr(torchvision.datasets, self.name)(root, train=train, download=True)


def _plain_or_gz(path: Path) -> Path | None:
    # The compressed file first: it has a checksum of its own.
    for candidate in (path.with_name(f"{path.name}.gz"), path):
        if candidate.is_file():
            return candidate
    return None


@dataclass(frozen=True)
class _Arrays:
    """What torchvision itself reads into arrays, after comparing the files' checksums.

    Attributes:
        files: the archive or the files that are published.
        open: (folder, train, download) to classes, images (N, C, H, H) and labels.
    """

    files: tuple[str, ...]
    open: _Open

    def find(self, root: Path, train: bool) -> _Found | None:
        try:
            classes, images, labels = self.open(root, train, False)
        except RuntimeError:  # torchvision's word for missing or damaged
            return None
        as_array: Labels = np.asarray(labels, np.int64)
        return _Found(classes, ArrayPart(np.ascontiguousarray(images), as_array))

    def download(self, root: Path, train: bool) -> None:
        self.open(root, train, True)


def _cifar(name: str) -> _Open:
    def read(root: Path, train: bool, download: bool) -> _Read:
        import torchvision.datasets

        data = getattr(torchvision.datasets, name)(root, train=train, download=download)
        return tuple(data.classes), data.data.transpose(0, 3, 1, 2), data.targets

    return read


def _svhn(root: Path, train: bool, download: bool) -> _Read:
    from torchvision.datasets import SVHN

    data = SVHN(root, split="train" if train else "test", download=download)
    return _DIGITS, data.data, data.labels


def _stl10(root: Path, train: bool, download: bool) -> _Read:
    from torchvision.datasets import STL10

    data = STL10(root, split="train" if train else "test", download=download)
    return _STL10, data.data, data.labels


@dataclass(frozen=True)
class _Imagenette:
    """Photographs of many shapes, published at several sizes; the smallest that is large enough
    is taken."""

    image_size: int

    @property
    def _size(self) -> str:
        if self.image_size > 320:
            return "full"
        return "320px" if self.image_size > 160 else "160px"

    @property
    def _folder(self) -> str:
        suffix = {"full": "", "320px": "-320", "160px": "-160"}
        return f"imagenette2{suffix[self._size]}"

    @property
    def files(self) -> tuple[str, ...]:
        return (f"{self._folder}.tgz",)

    def find(self, root: Path, train: bool) -> _Found | None:
        place = root / self._folder
        if not ((place / "train").is_dir() and (place / "val").is_dir()):
            return None
        files = folder.scan(place / ("train" if train else "val"), tuple(_IMAGENETTE))
        classes = tuple(_IMAGENETTE.values())
        return _Found(classes, folder.FilePart(classes, files, channels=3))

    def download(self, root: Path, train: bool) -> None:
        from torchvision.datasets import Imagenette

        Imagenette(root, split="train", size=self._size, download=True)


_READERS: dict[str, _Reader] = {
    "cifar10": _Arrays(("cifar-10-python.tar.gz",), _cifar("CIFAR10")),
    "cifar100": _Arrays(("cifar-100-python.tar.gz",), _cifar("CIFAR100")),
    "fashion-mnist": _Idx("FashionMNIST", _CLOTHES),
    "mnist": _Idx("MNIST", _DIGITS),
    "svhn": _Arrays(("train_32x32.mat", "test_32x32.mat"), _svhn),
    "stl10": _Arrays(("stl10_binary.tar.gz",), _stl10),
}
