from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from visweep import data
from visweep.config import DataConfig
from visweep.errors import DataError, UsageError


def picture(seed: int, size: tuple[int, int] = (20, 24), grey: bool = False) -> Image.Image:
    shape = (size[1], size[0]) if grey else (size[1], size[0], 3)
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


def fill(folder: Path, classes: str = "ab", count: int = 12, first: int = 0) -> None:
    """`count` pictures for each class, no two alike."""
    for c, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            picture(first + 1000 * c + i).save(folder / name / f"{i}.png")


def config(folder: Path, **fields) -> DataConfig:
    return DataConfig(name="imagefolder", data_dir=str(folder), **fields)


def as_set(split: data.Split) -> set[tuple[bytes, int]]:
    return {(image.tobytes(), int(y)) for image, y in zip(split.images, split.labels, strict=True)}


def refusal(folder: Path | None, load=data.load) -> str:
    """The one line with which a folder is refused."""
    data_dir = None if folder is None else str(folder)
    with pytest.raises(DataError) as caught:
        load(DataConfig(name="imagefolder", data_dir=data_dir))
    assert isinstance(caught.value, UsageError)
    message = str(caught.value)
    assert "\n" not in message
    assert "--data-dir" in message
    return message


def test_one_folder_per_class(tmp_path: Path):
    fill(tmp_path / "x", "abc", count=20)
    dataset = data.load(config(tmp_path / "x"))
    assert dataset.classes == ("a", "b", "c")
    assert dataset.train.images.shape == (48, 3, 64, 64)
    assert np.bincount(dataset.val.labels).tolist() == [4, 4, 4]
    assert not as_set(dataset.train) & as_set(dataset.val)
    assert dataset.may_flip


def test_train_and_val_folders(tmp_path: Path):
    fill(tmp_path / "train", count=10)
    fill(tmp_path / "val", count=3, first=500)
    fill(tmp_path / "test", count=4, first=700)
    dataset = data.load(config(tmp_path))
    assert np.bincount(dataset.train.labels).tolist() == [10, 10]
    assert np.bincount(dataset.val.labels).tolist() == [3, 3]
    assert np.bincount(data.load_test(config(tmp_path)).labels).tolist() == [4, 4]


def test_train_without_val_is_divided(tmp_path: Path):
    fill(tmp_path / "train", count=10)
    fill(tmp_path / "test", count=2, first=700)
    dataset = data.load(config(tmp_path))
    assert (len(dataset.train), len(dataset.val)) == (16, 4)


def test_train_may_be_a_class(tmp_path: Path):
    fill(tmp_path, ("car", "plane", "train"), count=5)
    assert data.load(config(tmp_path)).classes == ("car", "plane", "train")


def test_pixels_are_those_of_the_file(tmp_path: Path):
    fill(tmp_path / "train")
    fill(tmp_path / "val", count=1)
    whole = picture(0, (64, 64))
    whole.save(tmp_path / "val" / "a" / "0.png")
    dataset = data.load(config(tmp_path))
    np.testing.assert_array_equal(dataset.val.images[0].transpose(1, 2, 0), np.asarray(whole))
    assert data.load(config(tmp_path, image_size=24)).val.images.shape[-2:] == (24, 24)


def test_grey_only_if_every_image_is(tmp_path: Path):
    for i in range(6):
        for name in "ab":
            (tmp_path / name).mkdir(exist_ok=True)
            picture(i + ord(name), grey=True).save(tmp_path / name / f"{i}.png")
    assert data.load(config(tmp_path)).train.images.shape[1] == 1
    picture(99).save(tmp_path / "a" / "colour.png")
    assert data.load(config(tmp_path)).train.images.shape[1] == 3


def test_the_test_images_have_as_many_channels_as_the_others(tmp_path: Path):
    fill(tmp_path / "train")
    for name in "ab":
        (tmp_path / "test" / name).mkdir(parents=True)
        picture(1, grey=True).save(tmp_path / "test" / name / "0.png")
    assert data.load_test(config(tmp_path)).images.shape == (2, 3, 64, 64)


def test_palettes_and_transparency_become_rgb(tmp_path: Path):
    fill(tmp_path / "train")
    for name in "ab":
        (tmp_path / "val" / name).mkdir(parents=True)
    red = Image.new("RGB", (8, 8), (255, 0, 0))
    red.quantize(4).save(tmp_path / "val" / "a" / "p.png", transparency=bytes([255, 0]))
    Image.new("RGBA", (8, 8), (255, 0, 0, 128)).save(tmp_path / "val" / "b" / "rgba.png")
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "val" / "b" / "cmyk.tif")
    for image in data.load(config(tmp_path)).val.images:
        assert (image.reshape(3, -1).T == (255, 0, 0)).all()


def test_photographs_stand_upright(tmp_path: Path):
    fill(tmp_path / "train")
    fill(tmp_path / "val", count=1)
    upright = np.zeros((64, 64), np.uint8)
    upright[:32] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: to be turned by 90 degrees clockwise
    turned = Image.fromarray(np.rot90(upright))
    turned.convert("RGB").save(tmp_path / "val" / "a" / "0.png", exif=exif)
    image = data.load(config(tmp_path)).val.images[0]
    np.testing.assert_array_equal(image, np.stack([upright] * 3))


def test_a_copy_under_other_names_and_times_is_the_same(tmp_path: Path):
    fill(tmp_path / "one" / "train")
    fill(tmp_path / "one" / "val", count=4, first=500)
    for place in ("train", "val"):
        for name in "ab":
            files = sorted((tmp_path / "one" / place / name).iterdir())
            target = tmp_path / "two" / "deeper" / place / name / "nested"
            target.mkdir(parents=True)
            for i, file in enumerate(reversed(files)):
                copy = target / f"renamed-{i:03}.PNG"
                shutil.copyfile(file, copy)
                os.utime(copy, (1, 1))
    one, two = data.load(config(tmp_path / "one")), data.load(config(tmp_path / "two" / "deeper"))
    assert one.fingerprint == two.fingerprint
    np.testing.assert_array_equal(one.train.images, two.train.images)
    np.testing.assert_array_equal(one.val.labels, two.val.labels)


def test_renaming_never_moves_an_image_between_parts(tmp_path: Path):
    fill(tmp_path / "x", count=30)
    before = data.load(config(tmp_path / "x"))
    for i, file in enumerate(sorted((tmp_path / "x" / "a").iterdir(), reverse=True)):
        file.rename(file.with_name(f"new{i}.png"))
    after = data.load(config(tmp_path / "x"))
    assert as_set(after.val) == as_set(before.val)
    assert after.fingerprint == before.fingerprint


def change_a_pixel(folder: Path) -> None:
    path = folder / "train" / "a" / "0.png"
    image = Image.open(path)
    red, green, blue = image.getpixel((0, 0))
    image.putpixel((0, 0), (red ^ 1, green, blue))
    image.save(path)


def change_a_validation_image(folder: Path) -> None:
    picture(12345).save(folder / "val" / "b" / "0.png")


def move_to_another_class(folder: Path) -> None:
    (folder / "train" / "a" / "0.png").rename(folder / "train" / "b" / "moved.png")


def move_to_the_other_part(folder: Path) -> None:
    (folder / "train" / "a" / "0.png").rename(folder / "val" / "a" / "moved.png")


def remove_one(folder: Path) -> None:
    (folder / "train" / "b" / "3.png").unlink()


def rename_a_class(folder: Path) -> None:
    for part in ("train", "val"):
        (folder / part / "b").rename(folder / part / "c")


@pytest.mark.parametrize(
    "change",
    [
        change_a_pixel,
        change_a_validation_image,
        move_to_another_class,
        move_to_the_other_part,
        remove_one,
        rename_a_class,
    ],
)
def test_a_change_of_content_changes_the_fingerprint(change, tmp_path: Path):
    fill(tmp_path / "train")
    fill(tmp_path / "val", count=4, first=500)
    before = data.load(config(tmp_path)).fingerprint
    change(tmp_path)
    assert data.load(config(tmp_path)).fingerprint != before


def test_a_change_of_label_alone_changes_the_fingerprint(tmp_path: Path):
    # Sorted by content over both classes, so that the move changes no image's place.
    fill(tmp_path / "x", "ab", count=12)
    files = [*(tmp_path / "x").glob("?/*")]
    files.sort(key=lambda file: hashlib.sha256(file.read_bytes()).digest())
    for part in ("train", "val"):
        for i, file in enumerate(files):
            target = tmp_path / part / ("a" if i < 12 else "b")
            target.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target / f"{i}.png")
    before = data.load(config(tmp_path)).fingerprint
    (tmp_path / "train" / "a" / "11.png").rename(tmp_path / "train" / "b" / "11.png")
    assert data.load(config(tmp_path)).fingerprint != before


def test_the_size_asked_for_is_no_part_of_the_fingerprint(tmp_path: Path):
    fill(tmp_path / "x")
    assert (
        data.load(config(tmp_path / "x", image_size=16)).fingerprint
        == data.load(config(tmp_path / "x")).fingerprint
    )


def test_train_size_and_split_seed(tmp_path: Path):
    fill(tmp_path / "x", "abc", count=30)
    dataset = data.load(config(tmp_path / "x", train_size=31))
    assert sorted(np.bincount(dataset.train.labels)) == [10, 10, 11]
    other = data.load(config(tmp_path / "x", split_seed=1))
    assert as_set(other.val) != as_set(dataset.val)
    with pytest.raises(UsageError, match=r"^--train-size: 73 is not in 3 .* to 72 "):
        data.load(config(tmp_path / "x", train_size=73))


def test_the_same_image_may_lie_in_both_parts(tmp_path: Path):
    fill(tmp_path / "train")
    fill(tmp_path / "val")
    dataset = data.load(config(tmp_path))
    assert as_set(dataset.train) == as_set(dataset.val)


def test_other_files_are_passed_over(tmp_path: Path):
    fill(tmp_path / "x")
    before = data.load(config(tmp_path / "x")).fingerprint
    (tmp_path / "x" / "README.txt").write_text("not an image")
    (tmp_path / "x" / "a" / "Thumbs.db").write_bytes(b"\0" * 100)
    (tmp_path / "x" / "a" / "._0.png").write_bytes(b"\0" * 100)
    (tmp_path / "x" / ".cache").mkdir()
    assert data.load(config(tmp_path / "x")).fingerprint == before


def test_without_a_folder():
    assert "needs --data-dir" in refusal(None)


def test_a_missing_folder(tmp_path: Path):
    message = refusal(tmp_path / "nowhere")
    assert str(tmp_path / "nowhere") in message
    assert "No such file or directory" in message
    assert "No such file or directory" in refusal(tmp_path / "nowhere", data.load_test)


def test_a_file_in_place_of_the_folder(tmp_path: Path):
    (tmp_path / "file").write_text("")
    assert "Not a directory" in refusal(tmp_path / "file")


def test_a_name_too_long(tmp_path: Path):
    with pytest.raises(DataError, match="File name too long"):
        data.load(config(tmp_path / ("x" * 300)))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_without_permission(tmp_path: Path):
    fill(tmp_path / "x")
    (tmp_path / "x" / "a").chmod(0)
    try:
        assert "Permission denied" in refusal(tmp_path / "x")
    finally:
        (tmp_path / "x" / "a").chmod(0o755)


def test_an_empty_folder(tmp_path: Path):
    assert "no class folders" in refusal(tmp_path)


def test_an_empty_class(tmp_path: Path):
    fill(tmp_path / "x")
    (tmp_path / "x" / "c").mkdir()
    message = refusal(tmp_path / "x")
    assert f"{tmp_path / 'x' / 'c'} has no images" in message
    assert ".jpg" in message


def test_images_without_class_folders(tmp_path: Path):
    for part in ("train", "val"):
        (tmp_path / part).mkdir()
        picture(0).save(tmp_path / part / "0.png")
    assert f"{tmp_path / 'train'} has no class folders" in refusal(tmp_path)


def test_one_class_only(tmp_path: Path):
    fill(tmp_path / "x", "a")
    assert "one class only (a)" in refusal(tmp_path / "x")


def test_parts_with_different_classes(tmp_path: Path):
    fill(tmp_path / "train", "abc")
    fill(tmp_path / "val", "abd", count=2)
    message = refusal(tmp_path)
    assert "missing: c; unknown: d" in message
    assert str(tmp_path / "val") in message


def test_no_test_images(tmp_path: Path):
    fill(tmp_path / "train")
    assert "has no test images" in refusal(tmp_path, data.load_test)
    fill(tmp_path / "one per class")
    assert "has no test images" in refusal(tmp_path / "one per class", data.load_test)


@pytest.mark.parametrize("kind", ["png", "jpg", "gif", "webp", "tif", "bmp"])
@pytest.mark.parametrize("damage", ["empty", "text", "half"])
def test_a_corrupt_image_is_named(kind: str, damage: str, tmp_path: Path):
    fill(tmp_path / "x")
    path = tmp_path / "x" / "a" / f"broken.{kind}"
    picture(5, (80, 80)).save(path)
    whole = path.read_bytes()
    path.write_bytes({"empty": b"", "text": b"no image", "half": whole[: len(whole) // 2]}[damage])
    # Whether it would be trained on or held out: it is read either way.
    assert str(path) in refusal(tmp_path / "x")


def test_sixteen_bits_are_refused_rather_than_clipped(tmp_path: Path):
    fill(tmp_path / "x")
    path = tmp_path / "x" / "a" / "deep.png"
    Image.fromarray(np.full((8, 8), 40_000, np.uint16)).save(path)
    message = refusal(tmp_path / "x")
    assert str(path) in message
    assert "expected 8 bits" in message


def test_a_class_of_one_image_keeps_it_for_training(tmp_path: Path):
    fill(tmp_path / "x")
    (tmp_path / "x" / "c").mkdir()
    picture(77).save(tmp_path / "x" / "c" / "only.png")
    dataset = data.load(config(tmp_path / "x"))
    assert 2 in dataset.train.labels
    assert 2 not in dataset.val.labels
