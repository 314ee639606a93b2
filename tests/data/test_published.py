from __future__ import annotations

import gzip
import hashlib
import http.server
import pickle
import socket
import struct
import tarfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torchvision.datasets as tv
from PIL import Image

from visweep import data
from visweep.config import DataConfig
from visweep.data import published
from visweep.errors import DataError, UsageError

FASHION = Path("/usr/share/datasets/fashion-mnist")  # Debian's package dataset-fashion-mnist


# --- small files in the published formats ---------------------------------------------------


def idx(array: np.ndarray) -> bytes:
    header = bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.tobytes()


def pixels(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def write_idx(folder: Path, train: int = 60, test: int = 20, suffix: str = ".gz") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for seed, (stem, count) in enumerate((("train", train), ("t10k", test))):
        for name, array in (
            (f"{stem}-images-idx3-ubyte", pixels(count, 28, 28, seed=seed)),
            (f"{stem}-labels-idx1-ubyte", (np.arange(count) % 10).astype(np.uint8)),
        ):
            content = gzip.compress(idx(array)) if suffix else idx(array)
            (folder / f"{name}{suffix}").write_bytes(content)


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


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()


def pack(folder: Path, archive: Path) -> None:
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, folder.name)


def make_cifar10(site: Path, patch: pytest.MonkeyPatch) -> None:
    folder = site / "cifar-10-batches-py"
    folder.mkdir()
    batches = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]
    for seed, name in enumerate(batches):
        batch = {"data": pixels(20, 3072, seed=seed), "labels": [i % 10 for i in range(20)]}
        (folder / name).write_bytes(pickle.dumps(batch, protocol=2))
    names = [f"class {i}" for i in range(10)]
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": names}, protocol=2))
    pack(folder, site / "cifar-10-python.tar.gz")
    sums = [[name, md5(folder / name)] for name in batches]
    patch.setattr(tv.CIFAR10, "train_list", sums[:-1])
    patch.setattr(tv.CIFAR10, "test_list", sums[-1:])
    patch.setitem(tv.CIFAR10.meta, "md5", md5(folder / "batches.meta"))
    patch.setattr(tv.CIFAR10, "tgz_md5", md5(site / "cifar-10-python.tar.gz"))


def make_cifar100(site: Path, patch: pytest.MonkeyPatch) -> None:
    folder = site / "cifar-100-python"
    folder.mkdir()
    for seed, (name, count) in enumerate((("train", 1000), ("test", 100))):
        batch = {
            "data": pixels(count, 3072, seed=seed),
            "fine_labels": [i % 100 for i in range(count)],
            "coarse_labels": [0] * count,
        }
        (folder / name).write_bytes(pickle.dumps(batch, protocol=2))
    names = [f"class {i}" for i in range(100)]
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": names}, protocol=2))
    pack(folder, site / "cifar-100-python.tar.gz")
    patch.setattr(tv.CIFAR100, "train_list", [["train", md5(folder / "train")]])
    patch.setattr(tv.CIFAR100, "test_list", [["test", md5(folder / "test")]])
    patch.setitem(tv.CIFAR100.meta, "md5", md5(folder / "meta"))
    patch.setattr(tv.CIFAR100, "tgz_md5", md5(site / "cifar-100-python.tar.gz"))


def make_svhn(site: Path, patch: pytest.MonkeyPatch) -> None:
    for seed, (part, count) in enumerate((("train", 100), ("test", 20))):
        path = site / f"{part}_32x32.mat"
        labels = (np.arange(count) % 10 + 1).astype(np.uint8)  # 10 stands for the digit 0
        images = pixels(count, 3, 32, 32, seed=seed).transpose(2, 3, 1, 0)
        scipy.io.savemat(path, {"X": images, "y": labels[:, None]})
        url = f"http://nowhere.invalid/{path.name}"
        patch.setitem(tv.SVHN.split_list, part, [url, path.name, md5(path)])


def make_stl10(site: Path, patch: pytest.MonkeyPatch) -> None:
    folder = site / "stl10_binary"
    folder.mkdir()
    for seed, (part, count) in enumerate((("train", 50), ("test", 20), ("unlabeled", 2))):
        pixels(count, 3, 96, 96, seed=seed).tofile(folder / f"{part}_X.bin")
        (np.arange(count) % 10 + 1).astype(np.uint8).tofile(folder / f"{part}_y.bin")
    (folder / "unlabeled_y.bin").unlink()
    (folder / "class_names.txt").write_text("\n".join(f"class {i}" for i in range(10)))
    pack(folder, site / "stl10_binary.tar.gz")
    sums = {path.name: [path.name, md5(path)] for path in folder.glob("*.bin")}
    patch.setattr(
        tv.STL10, "train_list", [sums["train_X.bin"], sums["train_y.bin"], sums["unlabeled_X.bin"]]
    )
    patch.setattr(tv.STL10, "test_list", [sums["test_X.bin"], sums["test_y.bin"]])
    patch.setattr(tv.STL10, "tgz_md5", md5(site / "stl10_binary.tar.gz"))


def make_imagenette(site: Path, patch: pytest.MonkeyPatch) -> None:
    folder = site / "imagenette2-160"
    for part, count in (("train", 10), ("val", 2)):
        for c, wnid in enumerate(tv.Imagenette._WNID_TO_CLASS):
            (folder / part / wnid).mkdir(parents=True)
            for i in range(count):
                image = np.full((30 + i, 40, 3), (c * 20, i, part == "val"), np.uint8)
                Image.fromarray(image).save(folder / part / wnid / f"{i}.JPEG")
    pack(folder, site / "imagenette2-160.tgz")
    url = "http://nowhere.invalid/imagenette2-160.tgz"
    archives = {**tv.Imagenette._ARCHIVES, "160px": (url, md5(site / "imagenette2-160.tgz"))}
    patch.setattr(tv.Imagenette, "_ARCHIVES", archives)


def make_fashion_mnist(site: Path, patch: pytest.MonkeyPatch) -> None:
    write_idx(site, train=100)
    files = [f"{p}-ubyte.gz" for p in ("train-images-idx3", "train-labels-idx1")]
    files += [f"{p}-ubyte.gz" for p in ("t10k-images-idx3", "t10k-labels-idx1")]
    patch.setattr(tv.FashionMNIST, "resources", [(file, md5(site / file)) for file in files])


MAKERS = {
    "cifar10": make_cifar10,
    "cifar100": make_cifar100,
    "svhn": make_svhn,
    "stl10": make_stl10,
    "imagenette": make_imagenette,
    "fashion-mnist": make_fashion_mnist,
}


def point_to(url: str, patch: pytest.MonkeyPatch) -> None:
    """Let torchvision download from `url` alone."""
    for dataset in (tv.CIFAR10, tv.CIFAR100, tv.STL10):
        patch.setattr(dataset, "url", f"{url}/{Path(dataset.url).name}")
    for dataset in (tv.MNIST, tv.FashionMNIST):
        patch.setattr(dataset, "mirrors", [f"{url}/"])
    for part, (_, file, checksum) in tv.SVHN.split_list.items():
        patch.setitem(tv.SVHN.split_list, part, [f"{url}/{file}", file, checksum])
    archives = {
        size: (f"{url}/{Path(old).name}", checksum)
        for size, (old, checksum) in tv.Imagenette._ARCHIVES.items()
    }
    patch.setattr(tv.Imagenette, "_ARCHIVES", archives)


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """No server answers (port 9 discards), on whatever machine the tests run."""
    point_to("http://127.0.0.1:9", monkeypatch)


class Site:
    """A real web server with small files; it can break off each answer half-way."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.breaks_off = False
        site = self

        class Handler(http.server.SimpleHTTPRequestHandler):
            def __init__(self, *args) -> None:
                super().__init__(*args, directory=str(folder))

            def copyfile(self, source, outputfile) -> None:
                content = source.read()
                outputfile.write(content[: len(content) // 2] if site.breaks_off else content)

            def log_message(self, *args) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"


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


def fresh(folder: Path) -> Path:
    folder.mkdir()
    return folder


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
