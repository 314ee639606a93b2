"""Bringing images to the size that a model is given.

Pillow does the work: its filter widens with the reduction (antialiasing), and its arithmetic on
8-bit images is in whole numbers, so that every machine gets the same pixels.
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageOps

from visweep.data.dataset import Images, with_border


def padding(own: int, size: int | None) -> int:
    """Width of the black border by which `to_size` brings images of `own` pixels to their size;
    0 where it resizes them, or leaves them as they are."""
    return 2 if own == 28 and size in (None, 32) else 0


def to_size(images: Images, size: int | None) -> Images:
    """(N, C, H, H) to (N, C, size, size), uint8; `size` None means the data set's own size.

    Images of 28 pixels count as images of 32: they get a black border of two pixels, since few
    patch sizes divide 28. Any other size asked for is a bilinear resize.
    """
    own = images.shape[-1]
    border = padding(own, size)
    if border:
        return with_border(images, border)
    if size is None or size == own:
        return images
    out = np.empty((*images.shape[:2], size, size), np.uint8)
    for planes, image in zip(out, images, strict=True):
        for plane, channel in zip(planes, image, strict=True):
            resized = Image.fromarray(channel).resize((size, size), Image.Resampling.BILINEAR)
            plane[:] = np.asarray(resized)
    return out


def square(image: Image.Image, size: int) -> Image.Image:
    """The shorter side resized to `size` pixels, the longer one cropped about its centre."""
    return ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR)
