"""Published data sets: read as they lie, downloaded where missing, refused when damaged."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torchvision.datasets as tv

from published_files import (
    MAKERS,
    Site,
    fresh,
    idx,
    make_cifar10,
    make_imagenette,
    make_stl10,
    make_svhn,
    pack,
    pixels,
    point_to,
    write_idx,
)
from visweep import data
from visweep.config import DataConfig
from visweep.data import published
from visweep.errors import DataError, UsageError

FASHION = Path("/usr/share/datasets/fashion-mnist")  # Debian's package dataset-fashion-mnist


def config(name: str, folder: Path | None, **fields) -> DataConfig:
    return DataConfig(name=name, data_dir=None if folder is None else str(folder), **fields)


def refusal(call: Callable[[], object]) -> str:
    """The one line with which a data set is refused."""
    with pytest.raises(DataError) as caught:
        call()
    assert isinstance(caught.value, UsageError)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- MNIST and Fashion-MNIST ----------------------------------------------------------------


@pytest.mark.parametrize(("name", "may_flip"), [("mnist", False), ("fashion-mnist", True)])
def test_the_published_files_are_read_as_they_lie(name: str, may_flip: bool, tmp_path: Path):
    write_idx(tmp_path)
    dataset = data.load(config(name, tmp_path))
    assert dataset.train.images.shape == (50, 1, 32, 32)  # 28 pixels and a border
    assert np.bincount(dataset.train.labels).tolist() == [5] * 10
    assert np.bincount(dataset.val.labels).tolist() == [1] * 10
    assert dataset.may_flip is may_flip
    assert len(dataset.classes) == 10
    originals = {image.tobytes(): i % 10 for i, image in enumerate(pixels(60, 28, 28))}
    for split in (dataset.train, dataset.val):
        for image, label in zip(split.images[:, 0, 2:-2, 2:-2], split.labels, strict=True):
            assert originals.pop(image.tobytes()) == label
    assert not originals
    test = data.load_test(config(name, tmp_path))
    np.testing.assert_array_equal(test.images[:, 0, 2:-2, 2:-2], pixels(20, 28, 28, seed=1))
    assert test.labels.tolist() == list(range(10)) * 2


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_where_and_how_they_lie_changes_nothing(suffix: str, tmp_path: Path):
    write_idx(tmp_path / "flat")
    write_idx(tmp_path / "tv" / "FashionMNIST" / "raw", suffix=suffix)
    flat = data.load(config("fashion-mnist", tmp_path / "flat"))
    torchvisions = data.load(config("fashion-mnist", tmp_path / "tv"))
    assert flat.fingerprint == torchvisions.fingerprint
    np.testing.assert_array_equal(flat.train.images, torchvisions.train.images)


def test_torchvision_reads_the_same(tmp_path: Path):
    write_idx(tmp_path / "MNIST" / "raw", suffix="")
    expected = tv.MNIST(tmp_path, train=False)
    test = data.load_test(config("mnist", tmp_path, image_size=28))
    np.testing.assert_array_equal(test.images[:, 0], expected.data.numpy())
    np.testing.assert_array_equal(test.labels, expected.targets.numpy())


def test_the_default_folder_is_in_the_cache(cache: Path):
    write_idx(cache / "datasets" / "MNIST" / "raw")
    assert len(data.load("mnist").train) == 50


@pytest.mark.parametrize("part", ["train-images-idx3", "train-labels-idx1"])
def test_a_change_of_content_changes_the_fingerprint(part: str, tmp_path: Path):
    write_idx(tmp_path, suffix="")
    before = data.load(config("mnist", tmp_path))
    path = tmp_path / f"{part}-ubyte"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert data.load(config("mnist", tmp_path)).fingerprint != before.fingerprint


def test_the_size_asked_for_is_no_part_of_the_fingerprint(tmp_path: Path):
    write_idx(tmp_path)
    native = data.load(config("mnist", tmp_path))
    for size in (16, 28, 32):
        resized = data.load(config("mnist", tmp_path, image_size=size))
        assert resized.train.images.shape[-1] == size
        assert resized.fingerprint == native.fingerprint


def test_train_size_and_split_seed(tmp_path: Path):
    write_idx(tmp_path, train=300)
    whole = data.load(config("mnist", tmp_path))
    some = data.load(config("mnist", tmp_path, train_size=23))
    assert sorted(np.bincount(some.train.labels)) == [2] * 7 + [3] * 3
    np.testing.assert_array_equal(some.val.images, whole.val.images)
    other = data.load(config("mnist", tmp_path, split_seed=4))
    assert other.fingerprint != whole.fingerprint
    assert len(other.val) == len(whole.val)
    with pytest.raises(UsageError, match=r"^--train-size: 241 is not in 10 .* to 240 "):
        data.load(config("mnist", tmp_path, train_size=241))


def cut_short(content: bytes) -> bytes:
    return content[: len(content) // 2]


def emptied(content: bytes) -> bytes:
    return b""


def other_bytes(content: bytes) -> bytes:
    return b"<html>not found</html>"


def one_bit_flipped(content: bytes) -> bytes:
    at = len(content) // 2
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


def compression_garbled(content: bytes) -> bytes:
    return content[:10] + b"\xff" * 10 + content[20:]


def of_another_type(content: bytes) -> bytes:
    return content[:2] + b"\x09" + content[3:]


@pytest.mark.parametrize(
    "damage", [cut_short, emptied, other_bytes, one_bit_flipped, compression_garbled]
)
@pytest.mark.parametrize("part", ["train-images-idx3", "train-labels-idx1"])
def test_a_damaged_gz_file_is_named(damage, part: str, tmp_path: Path):
    write_idx(tmp_path)
    path = tmp_path / f"{part}-ubyte.gz"
    path.write_bytes(damage(path.read_bytes()))
    assert str(path) in refusal(lambda: data.load(config("mnist", tmp_path)))


@pytest.mark.parametrize("damage", [cut_short, emptied, other_bytes, of_another_type])
def test_a_damaged_plain_file_is_named(damage, tmp_path: Path):
    write_idx(tmp_path, suffix="")
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(damage(path.read_bytes()))
    assert str(path) in refusal(lambda: data.load(config("mnist", tmp_path)))


def test_images_and_labels_that_do_not_belong_together(tmp_path: Path):
    write_idx(tmp_path, suffix="")
    labels = tmp_path / "train-labels-idx1-ubyte"
    labels.write_bytes(idx(np.zeros(59, np.uint8)))
    assert str(labels) in refusal(lambda: data.load(config("mnist", tmp_path)))
    labels.write_bytes(idx(np.full(60, 10, np.uint8)))
    assert "a label from 0 to 9" in refusal(lambda: data.load(config("mnist", tmp_path)))
    labels.write_bytes(idx(pixels(60, 28, 28)))
    assert str(labels) in refusal(lambda: data.load(config("mnist", tmp_path)))


def test_a_file_in_place_of_the_folder(tmp_path: Path):
    (tmp_path / "file").write_text("")
    message = refusal(lambda: data.load(config("mnist", tmp_path / "file")))
    assert "--data-dir" in message
    assert "is a file" in message


@pytest.mark.skipif(not FASHION.is_dir(), reason="dataset-fashion-mnist is not installed")
def test_debians_fashion_mnist():
    dataset = data.load(config("fashion-mnist", FASHION, train_size=1000))
    assert dataset.val.images.shape == (6_000, 1, 32, 32)
    assert np.bincount(dataset.val.labels).tolist() == [600] * 10
    assert np.bincount(dataset.train.labels).tolist() == [100] * 10
    # The published mean and deviation of the training pixels, 0.2860 and 0.3530, at 28 pixels.
    images = data.load(config("fashion-mnist", FASHION, image_size=28)).train.images
    assert abs(images.mean() / 255 - 0.2860) < 0.001
    assert abs(images.std() / 255 - 0.3530) < 0.001
    assert len(data.load_test(config("fashion-mnist", FASHION))) == 10_000


# --- what torchvision reads: its own classes, told the checksums of small files ---------------


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """No server answers (port 9 discards), on whatever machine the tests run."""
    point_to("http://127.0.0.1:9", monkeypatch)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    (tmp_path / "site").mkdir()
    site = Site(tmp_path / "site")
    thread = threading.Thread(target=site.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield site
    site.server.shutdown()
    site.server.server_close()
    thread.join()


EXPECTED = {  # training images, validation images, test images, size
    "cifar10": (80, 20, 20, 32),
    "cifar100": (800, 200, 100, 32),
    "svhn": (80, 20, 20, 32),
    "stl10": (40, 10, 20, 96),
    "imagenette": (80, 20, 20, 64),
    "fashion-mnist": (80, 20, 20, 32),
}


@pytest.mark.parametrize("name", list(EXPECTED))
def test_downloaded_when_missing_and_then_read_from_disk(
    name: str, site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    MAKERS[name](site.folder, monkeypatch)
    point_to(site.url, monkeypatch)
    target = tmp_path / "made" / "when missing"
    dataset = data.load(config(name, target))
    test = data.load_test(config(name, target))
    train, val, tests, size = EXPECTED[name]
    channels = 1 if name == "fashion-mnist" else 3
    assert dataset.train.images.shape == (train, channels, size, size)
    assert dataset.val.images.shape == (val, channels, size, size)
    assert test.images.shape == (tests, channels, size, size)
    assert np.ptp(np.bincount(dataset.val.labels)) == 0
    assert dataset.may_flip is (name != "svhn")
    assert not list(tmp_path.rglob(".visweep-*"))
    assert not list(target.rglob("*.tar.gz"))
    monkeypatch.undo()  # also forgets the checksums
    MAKERS[name](fresh(tmp_path / "again"), monkeypatch)
    point_to("http://127.0.0.1:9", monkeypatch)
    again = data.load(config(name, target))
    assert again.fingerprint == dataset.fingerprint
    np.testing.assert_array_equal(again.train.images, dataset.train.images)


def test_pixels_and_labels_arrive_as_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for make in (make_cifar10, make_svhn, make_stl10):
        make(tmp_path, monkeypatch)
    cifar = data.load_test(config("cifar10", tmp_path))
    np.testing.assert_array_equal(cifar.images, pixels(20, 3072, seed=5).reshape(20, 3, 32, 32))
    assert cifar.labels.tolist() == [i % 10 for i in range(20)]
    svhn = data.load_test(config("svhn", tmp_path))
    np.testing.assert_array_equal(svhn.images, pixels(20, 3, 32, 32, seed=1))
    assert svhn.labels.tolist() == [(i + 1) % 10 for i in range(20)]
    stl10 = data.load_test(config("stl10", tmp_path))
    # Published column by column.
    columns = pixels(20, 3, 96, 96, seed=1)
    np.testing.assert_array_equal(stl10.images, columns.transpose(0, 1, 3, 2))
    assert stl10.labels.tolist() == [i % 10 for i in range(20)]


def test_imagenettes_labels_and_test_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    make_imagenette(tmp_path, monkeypatch)
    dataset = data.load(config("imagenette", tmp_path))
    assert dataset.classes[1] == "English springer"
    test = data.load_test(config("imagenette", tmp_path, image_size=32))
    assert test.images.shape[-1] == 32
    for split in (dataset.train, dataset.val, test):
        shade = split.images[:, 0, 16, 16].astype(int)
        assert np.abs(shade - 20 * split.labels).max() <= 4  # JPEG is not exact


def test_imagenette_is_taken_large_enough(offline: None, tmp_path: Path):
    for size, archive in ((None, "2-160."), (160, "2-160."), (192, "2-320."), (400, "2.")):
        wanted = config("imagenette", tmp_path, image_size=size)
        assert f"put imagenette{archive}tgz" in refusal(lambda c=wanted: data.load(c))


@pytest.mark.parametrize("name", published.NAMES)
@pytest.mark.parametrize("load", [data.load, data.load_test])
def test_offline_and_missing_is_one_clear_line(
    name: str, load, offline: None, tmp_path: Path, cache: Path
):
    message = refusal(lambda: load(config(name, tmp_path / "data")))
    assert f"--dataset {name}" in message
    assert str(tmp_path / "data") in message
    assert "put " in message
    assert "cluttered-digits, which needs no download" in message
    assert list(tmp_path.iterdir()) == []  # not even an empty folder
    assert str(cache) in refusal(lambda: load(name))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["cifar10", "svhn", "imagenette", "fashion-mnist"])
def test_a_download_that_breaks_off_does_not_break_the_next(
    name: str, site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    MAKERS[name](site.folder, monkeypatch)
    point_to(site.url, monkeypatch)
    target = config(name, fresh(tmp_path / "target"))
    site.breaks_off = True
    assert "download failed" in refusal(lambda: data.load(target))
    assert list((tmp_path / "target").iterdir()) == []
    site.breaks_off = False
    assert len(data.load(target).train) == EXPECTED[name][0]


def test_a_damaged_copy_is_downloaded_again(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    make_cifar10(site.folder, monkeypatch)
    point_to(site.url, monkeypatch)
    whole = data.load(config("cifar10", tmp_path / "data"))
    batch = tmp_path / "data" / "cifar-10-batches-py" / "data_batch_3"
    batch.write_bytes(batch.read_bytes()[:1000])
    assert data.load(config("cifar10", tmp_path / "data")).fingerprint == whole.fingerprint


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "stl10", "imagenette"])
def test_an_archive_put_there_by_hand_is_unpacked(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, offline: None
):
    made = fresh(tmp_path / "made")
    MAKERS[name](made, monkeypatch)
    target = fresh(tmp_path / "target")
    (archive,) = (path for path in made.iterdir() if path.is_file())
    (target / archive.name).write_bytes(archive.read_bytes())
    assert len(data.load(config(name, target)).train) == EXPECTED[name][0]
    assert (target / archive.name).exists()  # the user's own file stays


def test_an_archive_that_is_damaged_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, offline: None
):
    made, target = fresh(tmp_path / "made"), fresh(tmp_path / "target")
    make_cifar10(made, monkeypatch)
    archive = target / "cifar-10-python.tar.gz"
    whole = (made / archive.name).read_bytes()
    for content in (b"", b"<html>", whole[: len(whole) // 2]):
        archive.write_bytes(content)
        assert str(archive) in refusal(lambda: data.load(config("cifar10", target)))
        assert [path.name for path in target.iterdir()] == [archive.name]


def test_an_archive_of_something_else_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, offline: None
):
    make_cifar10(fresh(tmp_path / "made"), monkeypatch)
    (fresh(tmp_path / "target") / "note.txt").write_text("hello")
    pack(tmp_path / "target" / "note.txt", tmp_path / "target" / "cifar-10-python.tar.gz")
    message = refusal(lambda: data.load(config("cifar10", tmp_path / "target")))
    assert "is not what was published" in message


def test_the_default_timeout_is_put_back(offline: None, tmp_path: Path):
    refusal(lambda: data.load(config("svhn", tmp_path)))
    assert socket.getdefaulttimeout() is None
