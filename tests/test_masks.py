"""The random bytes of dropout masks, and what is made of them."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chi2

from visweep.masks import PIECE, Bytes, drawn_mask

FRACTION = 0.12549768131857153
DRAWN = [20, 223, 7, 148, 30, 184, 2, 8]
SIZES = st.integers(1, 40) | st.integers(PIECE - 9, PIECE + 9)


def stream(*key: int | str) -> Bytes:
    begun = Bytes()
    begun.begin(*key)
    return begun


def is_uniform(values: np.ndarray) -> bool:
    """By a chi-squared test of 256 bins, which uniform ones fail once in 5,000 times."""
    expected = values.size / 256
    observed = np.bincount(values.ravel(), minlength=256)
    statistic = float(np.square(observed - expected).sum() / expected)
    return 1e-4 < chi2.sf(statistic, 255) < 1 - 1e-4


class TestBytes:
    def test_are_uniform_at_every_position_of_a_word(self) -> None:
        drawn = stream(0, "here").draw(8 * 100_000).reshape(-1, 8)
        assert all(is_uniform(drawn[:, position]) for position in range(8))

    def test_at_the_beginning_of_like_streams_are_uniform_and_differ(self) -> None:
        """Keys of neighbouring steps: the first word of each, as masks of a few elements have."""
        first = np.stack([stream(0, "step", step, "drop").draw(16) for step in range(100_000)])
        assert all(is_uniform(first[:, position]) for position in range(16))
        assert is_uniform(first[1:] - first[:-1])
        assert len(np.unique(first, axis=0)) == len(first)

    def test_need_not_fill_words(self) -> None:
        whole = stream(1).draw(40)
        for count in range(1, 20):
            assert np.array_equal(stream(1).draw(count), whole[:count])

    def test_never_change(self) -> None:
        """Others for the same key would change every stored result."""
        begun = stream(3, "step", 17, "blocks.3.mlp.drop1")
        assert begun.fraction() == FRACTION
        assert begun.draw(8).tolist() == DRAWN

    @given(st.lists(st.integers(1, 30), max_size=4))
    def test_of_a_key_are_the_same_whatever_was_drawn_before(self, counts: list[int]) -> None:
        used = stream("before")
        for count in counts:
            used.draw(count)
        used.begin("here", 7)
        assert np.array_equal(used.draw(99), stream("here", 7).draw(99))

    def test_fractions_lie_below_one(self) -> None:
        begun = stream(0)
        drawn = [begun.fraction() for _ in range(10_000)]
        assert 0 <= min(drawn) < 0.01
        assert 0.99 < max(drawn) < 1


@given(SIZES, st.sampled_from([torch.bfloat16, torch.float32, torch.float64]), st.integers(0, 99))
def test_a_mask_is_that_of_bytes_drawn_at_once(count: int, dtype: torch.dtype, seed: int) -> None:
    rates = [0.0, 0.3, 0.999]
    mask = drawn_mask([(stream(seed), range(3))], rates, count, dtype)
    whole = stream(seed)
    nudge = whole.fraction()
    drawn = torch.from_numpy(whole.draw(count).astype(np.int64))
    for row, rate in zip(mask, rates, strict=True):
        kept = torch.tensor(1 / (1 - rate), dtype=dtype)
        expected = torch.where(drawn >= int(256 * rate + nudge), kept, torch.zeros_like(kept))
        assert torch.equal(row, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_nothing_is_dropped_at_rate_zero(dtype: torch.dtype) -> None:
    for seed in range(50):
        mask = drawn_mask([(stream(seed), [0])], [0.0], 1000, dtype)
        assert torch.equal(mask, torch.ones_like(mask))
