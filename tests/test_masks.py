"""The random bytes of dropout masks, and what is made of them."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chi2

from visweep import kernels
from visweep.masks import Row, Stream, beginning, drawn_mask, mask_of_part

SPLIT, FRACTION = 80, 0.12549768131857153
DRAWN = [20, 223, 7, 148, 30, 184, 2, 8]
AT_A_TIME = kernels._PIECE
SIZES = st.integers(1, 40) | st.integers(AT_A_TIME - 9, 2 * AT_A_TIME + 9)
DTYPES = st.sampled_from([torch.bfloat16, torch.float32, torch.float64])


class NumPys:
    """NumPy's own SFC64, begun as a stream is."""

    def __init__(self, *key: int | str) -> None:
        self._source = np.random.SFC64(0)
        self._source.state = {
            "bit_generator": "SFC64",
            "state": {"state": beginning(*key)},
            "has_uint32": 0,
            "uinteger": 0,
        }
        self._source.random_raw(kernels.MIXED)

    def fraction(self) -> float:
        return float(self._source.random_raw() >> 11) / 2.0**53

    def draw(self, count: int) -> np.ndarray:
        return self._source.random_raw(-(-count // 8)).view(np.uint8)[:count]


def stream(*key: int | str, rate: float = 0.3) -> Stream:
    return Stream(Row(beginning(*key), rate))


def is_uniform(values: np.ndarray) -> bool:
    """By a chi-squared test of 256 bins, which uniform ones fail once in 5,000 times."""
    expected = values.size / 256
    observed = np.bincount(values.ravel(), minlength=256)
    statistic = float(np.square(observed - expected).sum() / expected)
    return 1e-4 < chi2.sf(statistic, 255) < 1 - 1e-4


class TestBytes:
    """Those of NumPy's generator; that ours are the same is tested below."""

    def test_are_uniform_at_every_position_of_a_word(self) -> None:
        drawn = NumPys(0, "here").draw(8 * 100_000).reshape(-1, 8)
        assert all(is_uniform(drawn[:, position]) for position in range(8))

    def test_at_the_beginning_of_like_streams_are_uniform_and_differ(self) -> None:
        """Keys of neighbouring steps: the first word of each, as masks of a few elements have."""
        first = np.stack([NumPys(0, "step", step, "drop").draw(16) for step in range(100_000)])
        assert all(is_uniform(first[:, position]) for position in range(16))
        assert is_uniform(first[1:] - first[:-1])
        assert len(np.unique(first, axis=0)) == len(first)

    def test_never_change(self) -> None:
        """Others for the same key would change every stored result."""
        begun = NumPys(3, "step", 17, "blocks.3.mlp.drop1")
        assert begun.fraction() == FRACTION
        assert begun.draw(8).tolist() == DRAWN


@given(SIZES, DTYPES, st.integers(0, 99), st.sampled_from([0.0, 0.001, 0.3, 0.999]))
def test_a_mask_is_that_of_the_bytes_of_numpys_generator(
    count: int, dtype: torch.dtype, seed: int, rate: float
) -> None:
    numpys = NumPys(seed)
    least = int(256 * rate + numpys.fraction())
    drawn = torch.from_numpy(numpys.draw(count).astype(np.int64))
    kept = torch.tensor(1 / (1 - rate), dtype=dtype)
    expected = torch.where(drawn >= least, kept, torch.zeros_like(kept))
    assert torch.equal(stream(seed, rate=rate).mask(count, dtype), expected)


@given(DTYPES, st.lists(st.integers(1, 700), min_size=1, max_size=4), st.integers(0, 99))
def test_a_mask_may_be_drawn_in_parts_of_whole_words(
    dtype: torch.dtype, words: list[int], seed: int
) -> None:
    begun, counts = stream(seed), [8 * count for count in words]
    parts = [begun.mask(count, dtype) for count in counts]
    assert torch.equal(torch.cat(parts), stream(seed).mask(sum(counts), dtype))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_nothing_is_dropped_at_rate_zero(dtype: torch.dtype) -> None:
    for seed in range(50):
        mask = stream(seed, rate=0.0).mask(1000, dtype)
        assert torch.equal(mask, torch.ones_like(mask))


def test_no_element_may_be_kept_in_a_step_where_nearly_all_are_dropped() -> None:
    masks = torch.stack([stream(seed, rate=0.999).mask(1000, torch.float32) for seed in range(50)])
    none = (masks == 0).all(dim=1).sum()
    assert 20 < none < 50  # the split is 256 in three of four


@given(st.data(), DTYPES, st.integers(1, 9), st.integers(1, 5))
def test_of_a_part_of_the_images_it_has_the_columns(
    data: st.DataObject, dtype: torch.dtype, of: int, each: int
) -> None:
    chosen = data.draw(st.lists(st.integers(0, of - 1), min_size=1, unique=True))
    rows = [Row(beginning(seed), rate) for seed, rate in enumerate((0.3, 0.0, 0.1))]
    part = mask_of_part(rows, len(chosen) * each, dtype, torch.tensor(chosen), of)
    whole = drawn_mask(rows, of * each, dtype).view(3, of, each)
    assert torch.equal(part, whole[:, chosen].flatten(1))


def test_kernels_need_no_folder_to_be_kept_in() -> None:
    code = (
        "from numba.core import caching\n"
        "caching.CacheImpl._locator_classes = []\n"
        "from visweep.masks import Row, Stream, beginning\n"
        "import torch\n"
        "print(Stream(Row(beginning(7), 0.3)).mask(9, torch.float32).count_nonzero().item())\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.stderr == ""
    expected = stream(7).mask(9, torch.float32).count_nonzero().item()
    assert int(run.stdout) == expected
