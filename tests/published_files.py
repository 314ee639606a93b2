"""Small files in the formats in which data sets are published, and a web server that has them."""

from __future__ import annotations

import gzip
import hashlib
import http.server
import pickle
import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torchvision.datasets as tv
from PIL import Image


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


def fresh(folder: Path) -> Path:
    folder.mkdir()
    return folder


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
