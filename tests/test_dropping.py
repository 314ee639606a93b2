"""Dropout in one pass: bit by bit what torch makes of a mask."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from visweep import dropping, maskless
from visweep.draws import Draws, Part
from visweep.masks import Row, beginning, drawn_mask

DTYPES = st.sampled_from([torch.bfloat16, torch.float32, torch.float64])
RATES = st.lists(st.sampled_from([0.0, 0.001, 0.1, 0.5, 0.999]), min_size=1, max_size=3)
COUNTS = st.integers(1, 70) | st.integers(4090, 4100)


def rows_of(rates: list[float]) -> list[Row]:
    return [Row(beginning(seed, "here"), rate) for seed, rate in enumerate(rates)]


def normal(seed: int, *shape: int, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator).to(dtype)


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Signs of zeros, too."""
    first, second = (x.detach().contiguous().view(torch.uint8) for x in (one, other))
    return torch.equal(first, second)


class TestDropped:
    @given(RATES, COUNTS, DTYPES, st.integers(0, 99), st.booleans())
    def test_is_the_product_with_a_mask_and_so_is_its_gradient(
        self, rates: list[float], count: int, dtype: torch.dtype, seed: int, inplace: bool
    ) -> None:
        rows = rows_of(rates)
        x = normal(seed, len(rates), count, dtype=dtype).requires_grad_()
        gradient = normal(seed + 1, len(rates), count, dtype=dtype)
        mask = drawn_mask(rows, count, dtype)
        out = dropping.dropped(x * 1, rows, inplace=inplace)
        assert same_bits(out, x * mask)
        assert same_bits(torch.autograd.grad(out, x, gradient)[0], gradient * mask)

    def test_in_place_takes_no_new_memory(self) -> None:
        x = torch.ones(1, 100)
        assert dropping.dropped(x, rows_of([0.3]), inplace=True).data_ptr() == x.data_ptr()
        assert (x == 0).any()

    def test_a_gradient_that_others_share_is_not_changed(self) -> None:
        x = torch.ones(1, 100, requires_grad=True)
        gradient = torch.ones(1, 100)
        dropping.dropped(x, rows_of([0.3]), inplace=False).backward(gradient)
        assert (gradient == 1).all()

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
    def test_what_is_not_a_number_stays_none(self, dtype: torch.dtype) -> None:
        x = torch.full((1, 100), torch.nan, dtype=dtype)
        assert dropping.dropped(x, rows_of([0.5]), inplace=False).isnan().all()
        x = torch.full((1, 100), torch.inf, dtype=dtype)
        assert not dropping.dropped(x, rows_of([0.5]), inplace=False).isfinite().any()


@pytest.mark.skipif(not dropping.knows_gelu(torch.bfloat16), reason="not on this processor")
class TestDroppedGelu:
    @given(RATES, COUNTS, st.integers(0, 99), st.sampled_from([1e-3, 1.0, 30.0]))
    def test_is_gelus_product_with_a_mask_and_so_is_its_gradient(
        self, rates: list[float], count: int, seed: int, scale: float
    ) -> None:
        rows = rows_of(rates)
        x = normal(seed, len(rates), count, dtype=torch.bfloat16).mul_(scale).requires_grad_()
        gradient = normal(seed + 1, len(rates), count, dtype=torch.bfloat16)
        out, expected = (
            dropping.dropped_gelu(x, rows),
            F.gelu(x) * drawn_mask(rows, count, x.dtype),
        )
        assert same_bits(out, expected)
        ours, torchs = (torch.autograd.grad(y, x, gradient)[0] for y in (out, expected))
        assert same_bits(ours, torchs)

    def test_of_every_number(self) -> None:
        rows = rows_of([0.0])
        every = dropping._every_number()
        x = every[every.isfinite()][None].requires_grad_()
        gradient = normal(0, *x.shape, dtype=x.dtype)
        ours, torchs = dropping.dropped_gelu(x, rows), F.gelu(x)
        assert same_bits(ours, torchs)
        grads = [torch.autograd.grad(y, x, gradient)[0] for y in (ours, torchs)]
        assert same_bits(*grads)


class TestDraws:
    """Which way is taken depends on how much there is; what comes of it does not."""

    @pytest.fixture(autouse=True)
    def one_thread(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch, "get_num_threads", lambda: 1)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
    @pytest.mark.parametrize("parted", [False, True])
    def test_both_ways_are_the_same(
        self, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, parted: bool
    ) -> None:
        draws = Draws((3, 5), torch.device("cpu"), ("step", 7))
        if parted:
            draws = draws.of(Part(torch.tensor([2, 0]), 4))
        x, rates = normal(0, 2, 2, 9, dtype=dtype), (0.3, 0.1)
        found = []
        for least in (1, 1000):
            monkeypatch.setattr(maskless, "LEAST", least)
            found.append(
                (
                    draws.dropped(x, rates, "here"),
                    draws.dropped(x.clone(), rates, "here", inplace=True),
                    draws.dropped_gelu(x, rates, "here"),
                )
            )
        assert all(same_bits(one, other) for one, other in zip(*found, strict=True))
        assert same_bits(found[0][0], x * draws.dropout_mask((2, 9), rates, dtype, "here"))

    @pytest.mark.parametrize("inplace", [False, True])
    def test_numbers_may_lie_in_any_order(
        self, monkeypatch: pytest.MonkeyPatch, inplace: bool
    ) -> None:
        monkeypatch.setattr(maskless, "LEAST", 1)
        draws = Draws((3,), torch.device("cpu"), ("step", 7))
        x = normal(0, 1, 9, 50, dtype=torch.bfloat16).transpose(1, 2)
        expected = draws.dropped(x.contiguous(), [0.3], "here")
        assert same_bits(draws.dropped(x, [0.3], "here", inplace=inplace), expected)

    def test_several_threads_share_out_products_with_a_mask(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        draws = Draws((3,), torch.device("cpu"), ("step", 7))
        one = draws.dropped(torch.ones(1, maskless.LEAST), [0.3], "here")
        monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
        monkeypatch.delattr(dropping, "dropped")
        assert same_bits(draws.dropped(torch.ones(1, maskless.LEAST), [0.3], "here"), one)

    def test_much_is_dropped_without_a_mask(self, monkeypatch: pytest.MonkeyPatch) -> None:
        draws = Draws((3,), torch.device("cpu"), ("step", 7))
        monkeypatch.delattr(Draws, "dropout_mask")
        dropped = draws.dropped(torch.ones(1, maskless.LEAST), [0.3], "here")
        assert 0.65 < dropped.count_nonzero() / maskless.LEAST < 0.75
