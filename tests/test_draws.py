"""The draws: distributed as they should be, and dependent on nothing but their key."""

import math
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chi2
from torch import Tensor

from visweep import draws as draws_module
from visweep.draws import Draws, Part, key

CPU = torch.device("cpu")
SEEDS = st.lists(st.integers(0, 2**31), min_size=1, max_size=4, unique=True)
RATES = st.floats(0.0, 0.99)
SHAPES = st.lists(st.integers(1, 7), min_size=1, max_size=3).map(tuple)
PARTS = st.lists(st.integers(-(2**40), 2**40) | st.text(max_size=5), min_size=1, max_size=4)


def at(step: int, *seeds: int, device: torch.device = CPU) -> Draws:
    return Draws(seeds or (0,), device, ("step", step))


class TestKey:
    @pytest.mark.parametrize(
        ("parts", "expected"),
        [
            ((0, "init", "head"), 8064869309574738571),
            ((3, "step", 17, "blocks.3.mlp.drop1"), 9197083993354860873),
            ((-1, "epoch", 2**40, "Grüße"), 3733749205092377281),
        ],
    )
    def test_never_changes(self, parts: tuple[int | str, ...], expected: int) -> None:
        """Another key for the same parts would change every stored result."""
        assert key(*parts) == expected

    def test_is_the_same_in_another_process(self) -> None:
        code = "from visweep.draws import key; print(key(3, 'step', 17, 'drop'))"
        out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert int(out.stdout) == key(3, "step", 17, "drop")

    @given(PARTS, PARTS)
    def test_differs_when_a_part_differs(
        self, one: list[int | str], other: list[int | str]
    ) -> None:
        assert (key(*one) == key(*other)) == (one == other)

    @given(PARTS)
    def test_is_a_seed_that_every_generator_takes(self, parts: list[int | str]) -> None:
        assert 0 <= key(*parts) < 2**63

    def test_parts_do_not_run_together(self) -> None:
        assert len({key("a", "b"), key("ab"), key("a, b"), key(1, 2), key(12), key("1", 2)}) == 6


DRAWN: dict[str, Callable[[Draws], Tensor]] = {
    "integers": lambda draws: draws.integers(-3, 9, (4, 5), "here"),
    "permutation": lambda draws: draws.permutation(23, "here"),
    "mask": lambda draws: draws.dropout_mask((4, 5), [0.3] * len(draws), torch.float32, "here"),
}


@pytest.mark.parametrize("draw", DRAWN.values(), ids=DRAWN)
class TestDependOnTheKeyAlone:
    @given(SEEDS, st.integers(0, 10**6))
    def test_a_replica_draws_what_it_draws_alone(
        self, draw: Callable[[Draws], Tensor], seeds: list[int], step: int
    ) -> None:
        stacked = draw(at(step, *seeds))
        for k, seed in enumerate(seeds):
            assert torch.equal(stacked[k], draw(at(step, seed))[0])

    def test_whatever_was_drawn_before(self, draw: Callable[[Draws], Tensor]) -> None:
        draws = at(3, 0, 1)
        fresh = draw(draws)
        torch.manual_seed(99)
        draws.dropout_mask((5,), [0.3, 0.4], torch.float32, "elsewhere")
        draws.at("step", 4).permutation(5, "here")
        assert torch.equal(draw(draws), fresh)
        assert torch.equal(draw(draws.at("epoch", 1).at("step", 3)), fresh)

    def test_leaves_torchs_own_generator_alone(self, draw: Callable[[Draws], Tensor]) -> None:
        before = torch.get_rng_state()
        draw(at(3, 0, 1))
        assert torch.equal(torch.get_rng_state(), before)

    def test_differs_with_seed_step_and_moment(self, draw: Callable[[Draws], Tensor]) -> None:
        all_ = [draw(at(0, 0)), draw(at(0, 1)), draw(at(1, 0)), draw(Draws((0,), CPU, ("x", 0)))]
        for i, one in enumerate(all_):
            assert all(not torch.equal(one, other) for other in all_[:i])


@given(SEEDS, st.data(), SHAPES, st.sampled_from([torch.float32, torch.bfloat16, torch.float64]))
def test_a_replicas_mask_is_its_own_whatever_rates_stand_beside_it(
    seeds: list[int], data: st.DataObject, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    rates = data.draw(st.lists(RATES, min_size=len(seeds), max_size=len(seeds)))
    stacked = at(5, *seeds).dropout_mask(shape, rates, dtype, "drop")
    assert stacked.shape == (len(seeds), *shape)
    assert stacked.dtype == dtype
    for k, (seed, rate) in enumerate(zip(seeds, rates, strict=True)):
        alone = at(5, seed).dropout_mask(shape, [rate], dtype, "drop")[0]
        assert torch.equal(stacked[k], alone)
        kept = torch.tensor(1 / (1 - rate), dtype=dtype)
        assert ((alone == 0) | (alone == kept)).all()


@given(SEEDS, st.data(), st.integers(1, 9), st.integers(1, 3))
def test_a_part_of_a_batch_has_the_draws_that_it_has_in_the_whole(
    seeds: list[int], data: st.DataObject, images: int, tokens: int
) -> None:
    chosen = data.draw(st.lists(st.integers(0, images - 1), min_size=1, unique=True))
    whole = at(5, *seeds)
    part = whole.of(Part(torch.tensor(chosen), images))
    rates = [0.3] * len(seeds)

    def mask(draws: Draws, count: int, *shape: int) -> Tensor:
        drawn = draws.dropout_mask((count, *shape), rates, torch.float32, "drop")
        return drawn.view(len(seeds), count // tokens, tokens, *shape)

    for shape in ((), (4,), (2, 3)):
        drawn = mask(part, len(chosen) * tokens, *shape)
        assert torch.equal(drawn, mask(whole, images * tokens, *shape)[:, chosen])
    shift = part.integers(0, 5, (len(chosen), 2), "shift")
    assert torch.equal(shift, whole.integers(0, 5, (images, 2), "shift")[:, chosen])


def z_score(successes: int, count: int, probability: float) -> float:
    deviation = math.sqrt(count * probability * (1 - probability))
    return (successes - count * probability) / max(deviation, 1e-9)


# Rates between multiples of 1/256, at both ends too; 0.25 is one.
@pytest.mark.parametrize("rate", [0.0004, 0.1, 0.25, 0.3, 1 / 3, 0.7, 0.9, 0.9985])
@pytest.mark.parametrize("beside", [(), (0.5,)], ids=["alone", "beside another rate"])
def test_elements_are_dropped_at_exactly_the_rate(rate: float, beside: tuple[float, ...]) -> None:
    """Over steps. Splitting bytes at the nearest multiple of 1/256 would be off by up to 0.2
    points, which most of these rates would show."""
    steps, size = 4000, 2048
    dropped = 0
    for step in range(steps):
        draws = at(step, *range(1 + len(beside)))
        mask = draws.dropout_mask((size,), [rate, *beside], torch.float32, "drop")[0]
        dropped += int((mask == 0).sum())
    # One mask's elements share their split, so its share of the variance shrinks with the steps.
    fraction = rate * 256 % 1
    shared = size**2 * steps * fraction * (1 - fraction) / 256**2
    deviation = math.sqrt(size * steps * rate * (1 - rate) + shared)
    assert abs(dropped - steps * size * rate) < 4 * deviation


def test_every_element_of_a_mask_is_dropped_alike() -> None:
    """No position within a word, nor the ragged end, is favoured."""
    steps, size, rate = 4000, 19, 0.3
    masks = torch.stack(
        [at(s).dropout_mask((size,), [rate], torch.float32, "drop")[0] for s in range(steps)]
    )
    for dropped in (masks == 0).sum(0).tolist():
        assert abs(z_score(dropped, steps, rate)) < 4.5


def correlation(one: Tensor, other: Tensor) -> float:
    """In standard deviations of what independent draws give."""
    one, other = one.double().flatten(), other.double().flatten()
    return torch.corrcoef(torch.stack([one, other]))[0, 1].item() * math.sqrt(len(one))


NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")


class TestIndependence:
    size = (200_000,)

    @pytest.fixture(params=["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, NO_GPU])])
    def device(self, request: pytest.FixtureRequest) -> torch.device:
        return torch.device(request.param)

    def mask(self, draws: Draws, place: str) -> Tensor:
        return draws.dropout_mask(self.size, [0.3] * len(draws), torch.float32, place)

    def test_of_seeds(self, device: torch.device) -> None:
        masks = self.mask(at(0, 0, 1, 2, device=device), "drop")
        assert max(abs(correlation(masks[i], masks[j])) for i, j in ((0, 1), (0, 2), (1, 2))) < 4

    def test_of_steps(self, device: torch.device) -> None:
        masks = [self.mask(at(step, device=device), "drop") for step in range(3)]
        assert max(abs(correlation(masks[i], masks[j])) for i, j in ((0, 1), (0, 2), (1, 2))) < 4

    def test_of_places(self, device: torch.device) -> None:
        draws = at(0, device=device)
        masks = [self.mask(draws, f"blocks.{i}.mlp.drop1") for i in range(3)]
        assert max(abs(correlation(masks[i], masks[j])) for i, j in ((0, 1), (0, 2), (1, 2))) < 4

    def test_of_neighbouring_elements(self, device: torch.device) -> None:
        mask = self.mask(at(0, device=device), "drop")[0]
        for lag in (1, 2, 7, 8, 9, 64):
            assert abs(correlation(mask[lag:], mask[:-lag])) < 4

    def test_of_a_masks_rate_from_step_to_step(self) -> None:
        """The split between two multiples of 1/256 is drawn anew for each step and place."""
        rate = 0.5 / 256
        counts = [
            (at(step).dropout_mask((2048,), [rate], torch.float32, "drop") == 0).sum().item()
            for step in range(200)
        ]
        none = sum(count == 0 for count in counts)  # split at 0: half of the steps
        assert abs(z_score(none, 200, 0.5)) < 4


def test_a_replica_that_drops_nothing_draws_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draws follow one another on a GPU: it would draw something else at the next place."""
    monkeypatch.setattr(draws_module, "_seeds_for_every_place", lambda device: False)
    together, alone = at(0, 1, 2), at(0, 1)
    one, other = together.dropout_mask((99,), [0.0, 0.3], torch.float32, "drop")
    assert torch.equal(one, torch.ones(99))
    assert 0 in other
    found, _ = together.dropout_mask((99,), [0.3, 0.3], torch.float32, "attn_drop")
    assert torch.equal(found, alone.dropout_mask((99,), [0.3], torch.float32, "attn_drop")[0])


class TestIntegers:
    @given(st.integers(-100, 100), st.integers(1, 50), SHAPES)
    def test_lie_in_range(self, low: int, width: int, shape: tuple[int, ...]) -> None:
        drawn = at(0, 1, 2).integers(low, low + width, shape, "here")
        assert drawn.shape == (2, *shape)
        assert low <= drawn.min()
        assert drawn.max() < low + width

    def test_are_uniform(self) -> None:
        observed = torch.bincount(at(0).integers(0, 5, (50_000,), "shift")[0]).double()
        statistic = ((observed - 10_000).square() / 10_000).sum().item()
        assert chi2.sf(statistic, 4) > 1e-4


class TestPermutation:
    @given(st.integers(1, 300), SEEDS)
    def test_holds_each_index_once(self, size: int, seeds: list[int]) -> None:
        drawn = at(0, *seeds).permutation(size, "order")
        assert torch.equal(drawn.sort(1).values, torch.arange(size).expand(len(seeds), -1))

    def test_puts_each_index_everywhere_alike(self) -> None:
        drawn = torch.stack([at(step).permutation(5, "order")[0] for step in range(5000)])
        for position in range(5):
            observed = torch.bincount(drawn[:, position], minlength=5).double()
            statistic = ((observed - 1000).square() / 1000).sum().item()
            assert chi2.sf(statistic, 4) > 1e-4


def test_what_a_captured_mask_reads_stays_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """For every moment of a run, and as its draws of a part do; and goes with them."""
    monkeypatch.setattr(draws_module, "_seeds_for_every_place", lambda device: False)

    def places(draws: Draws) -> list[int]:
        return [t.data_ptr() for t in draws._columns((0.1, 0.3), torch.float32)]

    draws = Draws((3, 5), torch.device("cpu"), ("step", 0))
    there = places(draws)
    for other in (draws.at("step", 1), draws.at_each("step", [2, 3]), draws):
        assert places(other) == there
    assert places(Draws((3, 5), torch.device("cpu"), ("step", 0))) != there
