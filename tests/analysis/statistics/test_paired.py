"""The paired t-test is scipy's, for whole arrays, and admits where it has no scatter."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from visweep.analysis.statistics.paired import paired_test


@pytest.mark.parametrize("pairs", [2, 3, 5, 40])
def test_agrees_with_scipy(pairs: int) -> None:
    rng = np.random.default_rng(pairs)
    baseline = 80 + rng.standard_normal((4, 3, pairs))
    changed = baseline + 0.5 + rng.standard_normal((4, 3, pairs))
    ours = paired_test(changed - baseline)
    theirs = stats.ttest_rel(changed, baseline, axis=-1)
    between = theirs.confidence_interval(0.95)
    assert ours.effect.shape == (4, 3)
    np.testing.assert_allclose(ours.p, theirs.pvalue, rtol=1e-9)
    np.testing.assert_allclose(ours.low, between.low, rtol=1e-9)
    np.testing.assert_allclose(ours.high, between.high, rtol=1e-9)
    np.testing.assert_allclose(ours.effect, (changed - baseline).mean(-1))
    np.testing.assert_allclose(ours.scatter, (changed - baseline).std(-1, ddof=1))


def test_by_hand() -> None:
    """Differences 1, 2 and 3: mean 2, scatter 1, t = 2 √3 with 2 degrees of freedom."""
    test = paired_test([1.0, 2.0, 3.0])
    assert (float(test.effect), float(test.scatter)) == (2.0, 1.0)
    # With 2 degrees of freedom p = 1 - t / √(t² + 2), and t = 4.3027 leaves 5 %.
    assert float(test.p) == pytest.approx(1 - (12 / 14) ** 0.5)
    assert float(test.high) == pytest.approx(2 + 4.302653 / 3**0.5)
    assert float(test.low) == pytest.approx(2 - 4.302653 / 3**0.5)


def test_no_difference_anywhere_is_what_no_effect_predicts() -> None:
    test = paired_test([0.0, 0.0, 0.0])
    assert (float(test.p), float(test.scatter)) == (1.0, 0.0)
    assert np.isnan([test.low, test.high]).all()


def test_the_same_difference_throughout_cannot_be_tested() -> None:
    test = paired_test([1.0, 1.0, 1.0])
    assert (float(test.effect), float(test.scatter)) == (1.0, 0.0)
    assert np.isnan([test.p, test.low, test.high]).all()


def test_rounding_is_not_scatter() -> None:
    """0.3 - 0.2 and 0.8 - 0.7 differ in their last digits: to a plain t-test, by a lot."""
    differences = 100 * (np.array([0.3, 0.8, 0.9]) - np.array([0.2, 0.7, 0.8]))
    with pytest.warns(RuntimeWarning, match="nearly identical"):
        assert stats.ttest_1samp(differences, 0.0).pvalue < 1e-20
    assert np.isnan(paired_test(differences).p)
    assert paired_test(differences - 10).p == 1.0


def test_one_image_of_ten_thousand_is_scatter() -> None:
    assert float(paired_test([1.0, 1.0, 1.01]).p) < 0.05


def test_each_row_is_treated_alone() -> None:
    p = paired_test([[0.0, 0.0], [1.0, 1.0], [1.0, 2.0]]).p
    assert p[0] == 1.0
    assert np.isnan(p[1])
    assert p[2] == pytest.approx(stats.ttest_1samp([1.0, 2.0], 0.0).pvalue)


def test_one_pair_is_too_few() -> None:
    with pytest.raises(ValueError, match="two pairs"):
        paired_test([1.0])
