"""`imagefolder`: the user's own images, one folder per class.

    DIR/train/<class>/*, DIR/val/<class>/*, and optionally DIR/test/<class>/*
    DIR/<class>/*, of which a stratified part then becomes the validation set

The order of the images, and so every split, follows from their content: neither file names nor
paths matter, only which class an image lies in.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from visweep.config import DataConfig
from visweep.data.dataset import Labels, Split, fingerprint
from visweep.data.picture import EXTENSIONS, content_of, entries, files_in, pixels
from visweep.data.source import Source
from visweep.data.splits import Indices
from visweep.errors import DataError

DEFAULT_SIZE = 64
"""Height and width of the images, in pixels, unless another size is asked for."""
_OPTION = "--data-dir"


@dataclass(frozen=True)
class ImageFile:
    """An image that has not been decoded yet.

    Attributes:
        path: where it lies.
        label: index of its class.
        digest: SHA-256 of its bytes.
        grey: whether it has no colour channels.
    """

    path: Path
    label: int
    digest: bytes
    grey: bool


@dataclass(frozen=True)
class FilePart:
    """Image files, to be decoded to one size and number of channels.

    Attributes:
        classes: name of each class.
        files: the images.
        channels: 1 for grey, 3 for RGB.
    """

    classes: tuple[str, ...]
    files: tuple[ImageFile, ...]
    channels: int

    @property
    def labels(self) -> Labels:
        return np.array([file.label for file in self.files], np.int64)

    def take(self, indices: Indices) -> FilePart:
        files = tuple(self.files[index] for index in indices)
        return FilePart(self.classes, files, self.channels)

    def digest(self) -> str:
        return fingerprint(self.classes, self.labels, *(file.digest for file in self.files))

    def read(self, image_size: int | None) -> Split:
        size = image_size or DEFAULT_SIZE
        images = np.empty((len(self.files), self.channels, size, size), np.uint8)
        for planes, file in zip(images, self.files, strict=True):
            planes[:] = pixels(file.path, size, self.channels, _OPTION)
        return Split(images, self.labels)

    def padding(self, image_size: int | None) -> int:
        return 0


def load(config: DataConfig) -> Source:
    """The training images under `config.data_dir`, and the validation images if they lie apart.

    Raises:
        DataError: the folder is not given, missing or empty, an image is damaged, there is only
            one class, or the parts have different classes.
    """
    train, val = _parts(_root(config))
    return Source(train.classes, train, val, may_flip=True)


def load_test(config: DataConfig) -> FilePart:
    """The images in test/ under `config.data_dir`.

    Raises:
        DataError: as for `load`, or there is no test/ beside train/.
    """
    root = _root(config)
    train, _ = _parts(root)
    folder = root / "test"
    if not (_is_parted(root) and folder.is_dir()):
        raise DataError(
            f"--data-dir: {root} has no test images; "
            "expected train/ and test/ with one folder per class each"
        )
    return FilePart(train.classes, scan(folder, train.classes), train.channels)


def _parts(root: Path) -> tuple[FilePart, FilePart | None]:
    parted = _is_parted(root)
    train_folder = root / "train" if parted else root
    has_val = parted and (root / "val").is_dir()
    classes = class_names(train_folder)
    train = scan(train_folder, classes)
    val = scan(root / "val", classes) if has_val else ()
    channels = 1 if all(file.grey for file in train + val) else 3
    val_part = FilePart(classes, val, channels) if has_val else None
    return FilePart(classes, train, channels), val_part


def _root(config: DataConfig) -> Path:
    if config.data_dir is None:
        raise DataError(
            f"--dataset {config.name}: needs --data-dir, a folder with train/ and val/, "
            "or with one folder per class"
        )
    return Path(config.data_dir).expanduser()


def _is_parted(root: Path) -> bool:
    # Without folders in it, train/ may also be a class of its own, among cars and planes.
    train, val = root / "train", root / "val"
    return train.is_dir() and (val.is_dir() or len(_folders(train)) > 0)


def class_names(folder: Path) -> tuple[str, ...]:
    """The names of the classes that have a folder in `folder`.

    Raises:
        DataError: the folder cannot be read, or has fewer than two classes.
    """
    names = tuple(sorted(entry.name for entry in _folders(folder)))
    if len(names) < 2:
        found = f"one class only ({names[0]})" if names else "no class folders"
        raise DataError(
            f"--data-dir: {folder} has {found}; expected two or more folders of images, "
            "one per class"
        )
    return names


def scan(folder: Path, classes: Sequence[str]) -> tuple[ImageFile, ...]:
    """The images of each class, ordered by class and then by content.

    Raises:
        DataError: the folder has other classes, a class has no images, or a file cannot be read.
    """
    found = class_names(folder)
    if set(found) != set(classes):
        missing = ", ".join(sorted(set(classes) - set(found))) or "none"
        unknown = ", ".join(sorted(set(found) - set(classes))) or "none"
        raise DataError(
            f"--data-dir: {folder} has other classes (missing: {missing}; unknown: {unknown}); "
            "expected a folder for each class of the training images"
        )
    files: list[ImageFile] = []
    for label, name in enumerate(classes):
        inside = [_examine(path, label) for path in files_in(folder / name, _OPTION)]
        if not inside:
            raise DataError(
                f"--data-dir: {folder / name} has no images; "
                f"expected files that end in {', '.join(sorted(EXTENSIONS))}"
            )
        files += sorted(inside, key=lambda file: file.digest)
    return tuple(files)


def _folders(folder: Path) -> list[Path]:
    return [entry for entry in entries(folder, _OPTION) if entry.is_dir()]


def _examine(path: Path, label: int) -> ImageFile:
    content, grey = content_of(path, _OPTION)
    return ImageFile(path, label, hashlib.sha256(content).digest(), grey)
