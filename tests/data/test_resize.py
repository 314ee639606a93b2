from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from visweep.data.resize import square, to_size


def some_images(size: int, channels: int = 3, count: int = 4) -> np.ndarray:
    rng = np.random.default_rng(size)
    return rng.integers(0, 256, (count, channels, size, size), dtype=np.uint8)


@pytest.mark.parametrize(("own", "size"), [(32, 64), (32, 16), (96, 32), (28, 64), (32, 33)])
@pytest.mark.parametrize("channels", [1, 3])
def test_resized_as_torch_does_it(own: int, size: int, channels: int):
    images = some_images(own, channels)
    expected = F.interpolate(
        torch.from_numpy(images).double(), (size, size), mode="bilinear", antialias=True
    )
    resized = to_size(images, size)
    assert resized.dtype == np.uint8
    assert np.abs(resized - expected.numpy()).max() <= 1.0


@pytest.mark.parametrize("size", [None, 32])
def test_28_pixels_get_a_black_border(size: int | None):
    images = some_images(28, channels=1)
    padded = to_size(images, size)
    assert padded.shape[-2:] == (32, 32)
    np.testing.assert_array_equal(padded[..., 2:-2, 2:-2], images)
    assert padded.sum() == images.sum()


@pytest.mark.parametrize("own", [28, 32, 96])
def test_their_own_size_leaves_images_alone(own: int):
    images = some_images(own)
    np.testing.assert_array_equal(to_size(images, own), images)
    if own != 28:
        np.testing.assert_array_equal(to_size(images, None), images)


@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 40))
def test_square_is_square_whatever_the_shape(width: int, height: int, size: int):
    assert square(Image.new("RGB", (width, height)), size).size == (size, size)


def test_square_resizes_the_shorter_side_and_crops_the_centre():
    rng = np.random.default_rng(0)
    wide = Image.fromarray(rng.integers(0, 256, (20, 60, 3), dtype=np.uint8))
    expected = wide.resize((30, 10), Image.Resampling.BILINEAR).crop((10, 0, 20, 10))
    np.testing.assert_array_equal(square(wide, 10), expected)
    tall, turned = wide.transpose(Image.Transpose.TRANSPOSE), np.asarray(expected)
    difference = np.asarray(square(tall, 10)).astype(int) - turned.transpose(1, 0, 2)
    assert np.abs(difference).max() <= 1  # Pillow rounds after each of the two directions
