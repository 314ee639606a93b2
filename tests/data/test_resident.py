from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms.functional import normalize

from visweep.data.dataset import Dataset, Split
from visweep.data.resident import Augmenter, ResidentSplit, to_device
from visweep.draws import Draws

CPU = torch.device("cpu")


def split(count: int, size: int = 8, channels: int = 3, seed: int = 0) -> Split:
    rng = np.random.default_rng(seed)
    # No pixel is black: the border that moves in can be told from the image.
    images = rng.integers(1, 256, (count, channels, size, size), dtype=np.uint8)
    return Split(images, rng.integers(0, 3, count))


def resident(count: int, size: int = 8, channels: int = 3, margin: int = 2) -> ResidentSplit:
    part = split(count, size, channels)
    bordered = np.pad(part.images, ((0, 0), (0, 0), (margin, margin), (margin, margin)))
    return ResidentSplit(torch.from_numpy(bordered), torch.from_numpy(part.labels), margin)


def dataset(train: int = 40, val: int = 10, channels: int = 3) -> Dataset:
    return Dataset(
        name="made up",
        classes=("a", "b", "c"),
        train=split(train, channels=channels, seed=1),
        val=split(val, channels=channels, seed=2),
        fingerprint="",
        may_flip=True,
    )


def draws(*seeds: int, step: int = 3) -> Draws:
    return Draws(seeds, CPU, ("step", step))


def shifted(image: torch.Tensor, y: int, x: int, translate: int) -> torch.Tensor:
    """The slow way: put each pixel where it goes, one by one, onto black."""
    out = torch.zeros_like(image)
    height, width = image.shape[-2:]
    for row in range(height):
        for column in range(width):
            from_row, from_column = row + y - translate, column + x - translate
            if 0 <= from_row < height and 0 <= from_column < width:
                out[:, row, column] = image[:, from_row, from_column]
    return out


@settings(max_examples=25, deadline=None)
@given(
    translate=st.integers(0, 5),
    flip=st.booleans(),
    seed=st.integers(0, 2**62),
    size=st.integers(1, 9),
    channels=st.sampled_from([1, 3]),
    spare=st.integers(0, 2),
)
def test_each_image_moves_and_is_mirrored_on_its_own(translate, flip, seed, size, channels, spare):
    part = resident(12, size, channels, margin=translate + spare)
    indices = torch.randint(0, 12, (2, 7), generator=torch.Generator().manual_seed(0))
    images, labels = Augmenter(part, translate, flip).batch(indices, draws(seed, seed + 1))
    assert images.dtype == torch.uint8
    assert images.shape == (2, 7, channels, size, size)
    at = draws(seed, seed + 1)
    shift = torch.full((2, 7, 2), translate)
    if translate:
        shift = at.integers(0, 2 * translate + 1, (7, 2), "shift")
    mirrored = at.integers(0, 2, (7,), "flip") if flip else torch.zeros(2, 7)
    for k in range(2):
        for b in range(7):
            expected = part.images[indices[k, b]]
            expected = shifted(expected, int(shift[k, b, 0]), int(shift[k, b, 1]), translate)
            if mirrored[k, b]:
                expected = expected.flip(-1)
            assert torch.equal(images[k, b], expected)
            assert labels[k, b] == part.labels[indices[k, b]]


def where(image: torch.Tensor, moved: torch.Tensor, translate: int) -> tuple[int, int]:
    """The offset at which an image was cropped, found without knowing the draws."""
    offsets = range(2 * translate + 1)
    found = [
        (y, x)
        for y in offsets
        for x in offsets
        if torch.equal(shifted(image, y, x, translate), moved)
    ]
    assert len(found) == 1
    return found[0]


def test_all_shifts_occur_equally_often_and_independently():
    part = resident(1, size=5)
    images, _ = Augmenter(part, 1, flip=False).batch(
        torch.zeros(1, 1800, dtype=torch.long), draws(0)
    )
    counts = np.zeros((3, 3))
    for image in images[0]:
        counts[where(part.images[0], image, 1)] += 1
    # 200 expected each; five standard deviations are 67.
    assert np.abs(counts - 200).max() < 67


def test_half_of_the_images_are_mirrored():
    part = resident(1)
    images, _ = Augmenter(part, 0, flip=True).batch(
        torch.zeros(1, 1000, dtype=torch.long), draws(0)
    )
    mirrored = sum(torch.equal(image, part.images[0].flip(-1)) for image in images[0])
    plain = sum(torch.equal(image, part.images[0]) for image in images[0])
    assert mirrored + plain == 1000
    assert abs(mirrored - 500) < 80  # five standard deviations


@pytest.mark.parametrize("flip", [False, True])
def test_a_replica_gets_what_it_would_get_alone(flip: bool):
    augmenter = Augmenter(resident(20), 2, flip)
    seeds = (5, 7, 11)
    indices = draws(*seeds).permutation(20, "order")[:, :8]
    images, labels = augmenter.batch(indices, draws(*seeds))
    for k, seed in enumerate(seeds):
        alone, its_labels = augmenter.batch(indices[k : k + 1], draws(seed))
        assert torch.equal(images[k], alone[0])
        assert torch.equal(labels[k], its_labels[0])
    assert not torch.equal(images[0], images[1])


def test_seeds_and_steps_move_images_differently():
    augmenter = Augmenter(resident(20), 2, flip=True)
    indices = torch.arange(20)[None]
    here, _ = augmenter.batch(indices, draws(0, step=1))
    again, _ = augmenter.batch(indices, draws(0, step=1))
    next_step, _ = augmenter.batch(indices, draws(0, step=2))
    other_seed, _ = augmenter.batch(indices, draws(1, step=1))
    assert torch.equal(here, again)
    assert not torch.equal(here, next_step)
    assert not torch.equal(here, other_seed)


def test_without_augmentation_images_are_as_they_are():
    part = resident(6)
    images, labels = Augmenter(part, 0, flip=False).batch(torch.tensor([[4, 0, 4]]), draws(0))
    assert torch.equal(images[0], part.images[[4, 0, 4]])
    assert torch.equal(labels[0], part.labels[[4, 0, 4]])


@pytest.mark.parametrize("channels", [1, 3])
def test_normalised_as_torchvision_does_it(channels: int):
    data = to_device(dataset(channels=channels), CPU)
    mean, std = data.dataset.moments
    expected = normalize(data.val.images.double() / 255.0, mean, std)
    torch.testing.assert_close(
        data.normalise(data.val.images, torch.float32), expected.float(), rtol=1e-5, atol=1e-5
    )
    stacked = data.normalise(data.val.images.expand(2, *data.val.images.shape), torch.float32)
    torch.testing.assert_close(stacked[1], expected.float(), rtol=1e-5, atol=1e-5)


def test_training_images_have_mean_zero_and_deviation_one():
    data = to_device(dataset(train=200), CPU)
    images = data.normalise(data.train.images, torch.float64)
    torch.testing.assert_close(images.mean((0, 2, 3)), torch.zeros(3).double(), rtol=0, atol=1e-4)
    torch.testing.assert_close(
        images.std((0, 2, 3), correction=0), torch.ones(3).double(), rtol=0, atol=1e-4
    )


@pytest.mark.parametrize("translate", [0, 1, 3])
def test_shifts_take_no_second_copy_of_the_images(translate: int):
    data = to_device(dataset(), CPU, margin=3)
    memory = data.train.bordered.untyped_storage().data_ptr()
    for view in (data.train.images, data.train.crops(translate)):
        assert view.untyped_storage().data_ptr() == memory


def test_normalising_leaves_the_bytes_alone():
    data = to_device(dataset(), CPU)
    before = data.train.images.clone()
    data.normalise(data.train.images, torch.float32)
    assert torch.equal(data.train.images, before)


def test_a_constant_channel_is_not_blown_up():
    flat = Split(np.full((6, 1, 4, 4), 7, np.uint8), np.arange(6) % 2)
    data = to_device(Dataset("flat", ("a", "b"), flat, flat, "", may_flip=True), CPU)
    assert data.normalise(data.train.images, torch.float32).abs().max() < 1e-3


def test_everything_arrives_on_the_device():
    source = dataset()
    data = to_device(source, CPU)
    np.testing.assert_array_equal(data.train.images.numpy(), source.train.images)
    np.testing.assert_array_equal(data.train.labels.numpy(), source.train.labels)
    np.testing.assert_array_equal(data.val.images.numpy(), source.val.images)
    assert data.train.images.dtype == torch.uint8
    assert data.train.labels.dtype == torch.int64
    assert data.device == CPU


@pytest.mark.parametrize(("train", "val", "probe"), [(40, 10, 10), (8, 30, 8), (7, 7, 7)])
def test_the_probe_is_a_spread_of_training_images(train: int, val: int, probe: int):
    data = to_device(dataset(train, val), CPU)
    assert len(data.probe) == probe
    where_from = [
        int((data.train.images == image).flatten(1).all(1).nonzero()[0, 0])
        for image in data.probe.images
    ]
    assert where_from == sorted(set(where_from))
    assert (where_from[0], where_from[-1]) == (0, train - 1)
    assert torch.equal(data.probe.labels, data.train.labels[where_from])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_batches_are_made_on_the_gpu():
    device = torch.device("cuda")
    data = to_device(dataset(), device)
    at = Draws((1, 2), device, ("step", 0))
    images, labels = Augmenter(data.train, 2, flip=True).batch(
        at.permutation(len(data.train), "order")[:, :8], at
    )
    assert images.device.type == labels.device.type == "cuda"
    assert images.shape == (2, 8, 3, 8, 8)
