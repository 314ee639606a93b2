"""What a number of seeds can show: against tables, integrals and simulation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from scipy.integrate import quad

from visweep.analysis.statistics.paired import paired_test
from visweep.analysis.statistics.power import detectable, seeds_needed


@pytest.mark.parametrize(("effect", "pairs"), [(0.2, 199), (0.5, 34), (0.8, 15)])
def test_cohens_effects_need_as_many_pairs_as_the_textbooks_say(effect: float, pairs: int) -> None:
    """Small, medium and large effects, in units of the scatter: level 0.05, power 0.8."""
    assert seeds_needed(effect, 1.0, 1) == pairs


def power(effect: float, scatter: float, pairs: int, rows: int) -> float:
    """By integrating over what the scatter is measured to be, without a noncentral t."""
    critical = stats.t.isf(0.025 / rows, pairs - 1)
    shift = effect * np.sqrt(pairs) / scatter

    def shown(quantile: float) -> float:
        measured = np.sqrt(stats.chi2.ppf(quantile, pairs - 1) / (pairs - 1))
        return float(stats.norm.cdf(shift - critical * measured))

    return quad(shown, 0, 1, limit=200)[0]


@pytest.mark.parametrize(
    ("pairs", "rows"), [(2, 1), (2, 10), (2, 200), (3, 10), (5, 1), (5, 10), (5, 1000), (30, 10)]
)
def test_the_detectable_effect_is_shown_in_four_of_five_studies(pairs: int, rows: int) -> None:
    effect = detectable(0.7, pairs, rows)
    assert power(effect, 0.7, pairs, rows) == pytest.approx(0.8, abs=1e-4)


def test_by_simulation() -> None:
    """4,000 studies of 5 seeds: 0.80 within four standard errors, 0.025."""
    rng = np.random.default_rng(5)
    differences = detectable(1.06, 5, 10) + 1.06 * rng.standard_normal((4000, 5))
    assert np.mean(paired_test(differences).p < 0.05 / 10) == pytest.approx(0.8, abs=0.025)


@given(st.floats(0.05, 20.0), st.floats(0.01, 20.0), st.integers(1, 2000))
def test_the_seeds_needed_are_the_fewest(effect: float, scatter: float, rows: int) -> None:
    seeds = seeds_needed(effect, scatter, rows)
    assert detectable(scatter, seeds, rows) <= effect
    assert seeds == 2 or detectable(scatter, seeds - 1, rows) > effect


@given(st.floats(0.01, 20.0), st.integers(2, 200), st.integers(1, 500))
def test_seeds_help_rows_cost_and_scatter_scales(scatter: float, pairs: int, rows: int) -> None:
    effect = detectable(scatter, pairs, rows)
    assert detectable(scatter, pairs + 1, rows) < effect < detectable(scatter, pairs, rows + 1)
    assert detectable(2 * scatter, pairs, rows) == pytest.approx(2 * effect)


@pytest.mark.timeout(20)
def test_extremes_have_an_answer() -> None:
    # 1.2816, the 80 % quantile of |N(0, 1)|, times the critical value over √2.
    far = stats.norm.ppf(0.9) * stats.t.isf(0.025 / 10**5, 1) / 2**0.5
    assert detectable(1.0, 2, 10**5) == pytest.approx(far)
    # With so many seeds the scatter is known, and the normal law holds.
    known = (stats.norm.isf(0.0025) + stats.norm.isf(0.2)) * 700
    assert seeds_needed(0.1, 70.0, 10) == pytest.approx(known**2, rel=1e-4)


def test_what_cannot_be_told() -> None:
    with pytest.raises(ValueError, match="two pairs"):
        detectable(1.0, 1, 1)
    with pytest.raises(ValueError, match="scatter"):
        detectable(0.0, 5, 1)
    with pytest.raises(ValueError, match="scatter"):
        seeds_needed(1.0, float("nan"), 1)
    with pytest.raises(ValueError, match="one row"):
        detectable(1.0, 5, 0)
    with pytest.raises(ValueError, match="larger than 0"):
        seeds_needed(0.0, 1.0, 1)
