"""One image file: whether it can be used, and its pixels at the size that a model is given.

Errors begin with the option, or argument, that led to the file.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from visweep.data.dataset import Images
from visweep.data.resize import square
from visweep.errors import DataError

EXTENSIONS = frozenset(
    {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
)
"""In a folder, files with other names are no images and are passed over."""

_GREY = frozenset({"1", "L", "LA"})
_COLOUR = frozenset({"P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"})


def files_in(folder: Path, option: str) -> list[Path]:
    """The image files in a folder and below it; what is hidden is passed over.

    Raises:
        DataError: a folder cannot be read.
    """
    images = []
    for entry in entries(folder, option):
        if entry.is_dir():
            images += files_in(entry, option)
        elif entry.suffix.lower() in EXTENSIONS:
            images.append(entry)
    return images


def entries(folder: Path, option: str) -> list[Path]:
    """What is in a folder and not hidden.

    Raises:
        DataError: the folder cannot be read.
    """
    try:
        return [entry for entry in folder.iterdir() if not entry.name.startswith(".")]
    except OSError as e:
        raise DataError(
            f"{option}: {folder} cannot be read ({e.strerror}); expected a folder of images"
        ) from e


def content_of(path: Path, option: str) -> tuple[bytes, bool]:
    """The bytes of an image file, and whether it has no colour channels; it is not decoded yet.

    Raises:
        DataError: it is no image of 8 bits a channel.
    """
    try:
        content = path.read_bytes()
        with Image.open(io.BytesIO(content)) as image:
            mode = image.mode
    except Exception as e:  # Pillow's readers raise whatever damage leads them to
        raise _unreadable(path, e, option) from e
    if mode not in _GREY | _COLOUR:
        raise DataError(f"{option}: {path} has pixels of format {mode}; expected 8 bits")
    return content, mode in _GREY


def pixels(path: Path, size: int, channels: int, option: str) -> Images:
    """An image as (channels, size, size) uint8: upright, grey for one channel and RGB for three,
    the shorter side resized to `size` pixels and the longer one cropped about its centre.

    Raises:
        DataError: it cannot be read.
    """
    try:
        with Image.open(path) as image:
            upright = ImageOps.exif_transpose(image)
            if "transparency" in upright.info:
                upright = upright.convert("RGBA")
            fitted = square(upright.convert("L" if channels == 1 else "RGB"), size)
    except Exception as e:
        raise _unreadable(path, e, option) from e
    return np.asarray(fitted).reshape(size, size, channels).transpose(2, 0, 1)


def _unreadable(path: Path, error: Exception, option: str) -> DataError:
    reason = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, UnidentifiedImageError):
        reason = "of no image format that is known"
    return DataError(f"{option}: the image {path} cannot be read ({reason}); repair or remove it")
