"""An image file has the pixels that a data set would have given to a model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from published_files import pixels as digits
from published_files import write_idx
from visweep import data
from visweep.config import DataConfig
from visweep.data.dataset import with_border
from visweep.data.picture import content_of, files_in, pixels
from visweep.data.resize import to_size
from visweep.data.source import ArrayPart
from visweep.errors import DataError

OPTION = "IMAGE"


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("own", "size"), [(28, None), (28, 64), (32, None), (32, 48), (96, 32)])
def test_a_published_image_saved_as_a_file(
    channels: int, own: int, size: int | None, tmp_path: Path
) -> None:
    """Also where the data set gives its images a border: that is added to the file's pixels."""
    rng = np.random.default_rng(own)
    images = rng.integers(0, 256, (3, channels, own, own), dtype=np.uint8)
    wanted = to_size(images, size)
    padding = ArrayPart(images, np.zeros(3, np.int64)).padding(size)
    assert padding == (2 if own == 28 and size is None else 0)
    for image, expected in zip(images, wanted, strict=True):
        path = tmp_path / "image.png"
        Image.fromarray(image[0] if channels == 1 else image.transpose(1, 2, 0)).save(path)
        found = pixels(path, expected.shape[-1] - 2 * padding, channels, OPTION)
        np.testing.assert_array_equal(with_border(found[None], padding)[0], expected)


def test_a_data_set_says_what_border_it_has(tmp_path: Path) -> None:
    write_idx(tmp_path / "mnist")
    where = {"name": "mnist", "data_dir": str(tmp_path / "mnist")}
    assert data.load(DataConfig(**where)).padding == 2
    assert data.load(DataConfig(**where, image_size=32)).padding == 2
    assert data.load(DataConfig(**where, image_size=28)).padding == 0
    assert data.load("cluttered-digits").padding == 0
    for name in "ab":
        (tmp_path / "own" / name).mkdir(parents=True)
        for index, image in enumerate(digits(6, 28, 28, seed=ord(name))):
            Image.fromarray(image).save(tmp_path / "own" / name / f"{index}.png")
    own = DataConfig(name="imagefolder", data_dir=str(tmp_path / "own"), image_size=32)
    assert data.load(own).padding == 0


def test_errors_name_what_led_to_the_file(tmp_path: Path) -> None:
    (tmp_path / "notes.png").write_text("no image")
    for read in (content_of, lambda path, option: pixels(path, 8, 1, option)):
        with pytest.raises(DataError) as refused:
            read(tmp_path / "notes.png", OPTION)
        assert str(refused.value) == (
            f"IMAGE: the image {tmp_path / 'notes.png'} cannot be read "
            "(of no image format that is known); repair or remove it"
        )
    with pytest.raises(DataError, match=r"^IMAGE: .*No such file"):
        files_in(tmp_path / "nowhere", OPTION)
