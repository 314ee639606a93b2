from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from visweep import data
from visweep.config import DataConfig
from visweep.data.cluttered import COUNTS, Clutter, build, enlarge, render
from visweep.data.dataset import Dataset, fingerprint
from visweep.errors import UsageError


@pytest.fixture(scope="module")
def full_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cluttered")


@pytest.fixture
def keep(full_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Use one cache for the whole module."""
    monkeypatch.setenv("VISWEEP_CACHE", str(full_cache))


@pytest.fixture(scope="module")
def dataset(full_cache: Path) -> Iterator[Dataset]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VISWEEP_CACHE", str(full_cache))
        yield data.load("cluttered-digits")


def test_shapes_and_classes(dataset: Dataset, keep: None):
    for split, part in ((dataset.train, "train"), (dataset.val, "val")):
        assert split.images.shape == (COUNTS[part], 1, 32, 32)
        assert split.images.dtype == np.uint8
        assert split.labels.shape == (COUNTS[part],)
        assert split.labels.dtype == np.int64
    assert data.load_test("cluttered-digits").images.shape == (COUNTS["test"], 1, 32, 32)
    assert dataset.classes == tuple("0123456789")
    assert not dataset.may_flip
    assert dataset.model_fields == {"image_size": 32, "in_chans": 1, "num_classes": 10}


def test_parts_show_different_digits_and_label_them_rightly(dataset: Dataset, keep: None):
    scanned = load_digits().target
    splits = (dataset.train, dataset.val, data.load_test("cluttered-digits"))
    seen: set[int] = set()
    for split in splits:
        assert split.groups is not None
        np.testing.assert_array_equal(split.labels, scanned[split.groups])
        sources = set(split.groups.tolist())
        assert not seen & sources
        seen |= sources
        assert np.bincount(split.labels).min() >= 0.9 * len(split) / 10
    assert seen == set(range(len(scanned)))


def test_the_labelled_digit_is_in_the_image(dataset: Dataset):
    # Noise, fragments and place aside, the enlarged digit fits somewhere almost exactly.
    clutter = Clutter()
    digits = (load_digits().images / 16.0).astype(np.float32)
    assert dataset.val.groups is not None
    for i in range(20):
        digit = enlarge(digits[dataset.val.groups[i]][None], clutter.digit)[0]
        image = dataset.val.images[i, 0] / 255.0
        views = np.lib.stride_tricks.sliding_window_view(image, digit.shape)
        # Where there is ink, there is at least that much, but for the noise.
        lacking = np.maximum(digit - views, 0).mean(axis=(-1, -2))
        assert lacking.min() < 0.6 * clutter.noise + 0.01


def test_made_twice_it_is_the_same(dataset: Dataset):
    # `dataset` came from another cache folder: this one is empty.
    again = data.load("cluttered-digits")
    assert again.fingerprint == dataset.fingerprint
    np.testing.assert_array_equal(again.train.images, dataset.train.images)
    np.testing.assert_array_equal(again.val.groups, dataset.val.groups)


def test_read_from_the_cache_it_is_the_same(dataset: Dataset, keep: None):
    again = data.load("cluttered-digits")
    assert again.fingerprint == dataset.fingerprint
    np.testing.assert_array_equal(again.train.images, dataset.train.images)
    np.testing.assert_array_equal(again.train.labels, dataset.train.labels)
    np.testing.assert_array_equal(again.train.groups, dataset.train.groups)


def test_made_in_under_three_seconds():
    start = time.process_time()
    for part in COUNTS:
        build(part, 0)
    assert time.process_time() - start < 3.0


def test_the_same_on_every_machine():
    # Golden. When `render` changes on purpose, raise `cluttered.VERSION` too.
    digits = (np.arange(5 * 64).reshape(5, 8, 8) % 17 / 16).astype(np.float32)
    clutter = Clutter(size=32, digit=20, fragments=3, fragment=7, noise=0.1)
    images, labels = render(digits, np.arange(5), 50, 7, clutter)
    assert fingerprint(images, labels) == (
        "413623227765b2b33cf2f1a30621f4fdfcdd69a76f9bcbe2b26875735ccdfb73"
    )


def test_a_split_seed_changes_train_and_val_but_not_test(dataset: Dataset, keep: None):
    other = data.load(DataConfig(split_seed=1))
    assert other.fingerprint != dataset.fingerprint
    assert set(other.val.groups.tolist()) != set(dataset.val.groups.tolist())
    test, other_test = data.load_test(DataConfig()), data.load_test(DataConfig(split_seed=1))
    np.testing.assert_array_equal(test.images, other_test.images)
    assert not set(test.groups.tolist()) & set(other.train.groups.tolist())


def test_other_clutter_is_never_taken_from_the_cache():
    plain = build("val", 0, Clutter(noise=0.0))
    noisy = build("val", 0, Clutter(noise=0.2))
    assert (plain.images != noisy.images).mean() > 0.3


def test_train_size_takes_an_even_part(dataset: Dataset, keep: None):
    some = data.load(DataConfig(train_size=205))
    assert len(some.train) == 205
    counts = np.bincount(some.train.labels)
    assert counts.max() - counts.min() <= 1
    np.testing.assert_array_equal(some.train.labels, load_digits().target[some.train.groups])
    np.testing.assert_array_equal(some.val.images, dataset.val.images)
    everything = {image.tobytes() for image in dataset.train.images}
    assert all(image.tobytes() in everything for image in some.train.images)
    assert some.fingerprint != dataset.fingerprint


@pytest.mark.parametrize("size", [1, 9, COUNTS["train"] + 1])
def test_a_train_size_that_cannot_be_is_refused(size: int, keep: None):
    accepted = rf"10 \(one image per class\) to {COUNTS['train']} \(all training images\)"
    with pytest.raises(UsageError, match=rf"^--train-size: {size} is not in {accepted}$"):
        data.load(DataConfig(train_size=size))


def test_image_size_resizes_and_leaves_the_fingerprint(dataset: Dataset, keep: None):
    small = data.load(DataConfig(image_size=16))
    assert small.train.images.shape == (COUNTS["train"], 1, 16, 16)
    assert small.fingerprint == dataset.fingerprint
    assert data.load_test(DataConfig(image_size=16)).images.shape[-1] == 16


@pytest.mark.parametrize("size", [8, 14, 20, 31])
def test_enlarge_is_bilinear(size: int):
    digits = (np.random.default_rng(0).integers(0, 17, (4, 8, 8)) / 16).astype(np.float32)
    for digit, large in zip(digits, enlarge(digits, size), strict=True):
        expected = Image.fromarray(digit).resize((size, size), Image.Resampling.BILINEAR)
        np.testing.assert_allclose(large, np.asarray(expected), atol=1e-6)


def test_an_unknown_name_is_refused_with_the_nearest():
    with pytest.raises(UsageError, match=r"^--dataset: .*did you mean 'cluttered-digits'"):
        data.load("clutered-digits")
    with pytest.raises(UsageError, match=r"^--dataset: .*did you mean 'cifar10'"):
        data.load_test("cifar-10")


def test_names_are_those_that_can_be_loaded():
    assert data.names()[0] == "cluttered-digits"
    assert {"cifar10", "cifar100", "fashion-mnist", "mnist", "svhn", "stl10"} < set(data.names())
    assert {"imagenette", "imagefolder"} < set(data.names())


def test_neither_an_error_nor_the_embedded_set_needs_torch():
    program = (
        "import sys\n"
        "from visweep import data, errors\n"
        "try:\n"
        "    data.load('fashon-mnist')\n"
        "except errors.UsageError as e:\n"
        "    print(e)\n"
        "data.load('cluttered-digits')\n"
        "assert not {'torch', 'optuna', 'sqlalchemy'} & set(sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert "did you mean 'fashion-mnist'" in done.stdout
