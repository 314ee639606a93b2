"""The accuracy on new images: by hand, and how often its interval holds the truth."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from visweep.analysis.statistics.generalisation import Generalisation, generalisation


def test_by_hand() -> None:
    """Two runs, four images: means 3/4 and 1/2, so ±1/8 by seeds."""
    found = generalisation([[1, 1, 1, 0], [1, 1, 0, 0]])
    assert found.accuracy == pytest.approx(0.625)
    assert found.seed_error == pytest.approx(12.5)
    # By image 1, 1, 1/2, 0: a standard deviation of √(11/48).
    assert found.image_error == pytest.approx(100 * np.sqrt(11 / 48) / 2)
    assert (found.seeds, found.images, found.groups) == (2, 4, 4)
    assert (found.low, found.high) == (0.0, 1.0)


def test_where_images_hardly_matter_it_is_the_t_interval_over_seeds() -> None:
    rng = np.random.default_rng(0)
    runs = 0.5 + np.array([-0.1, 0.05, 0.05, 0.0])
    right = rng.random((4, 200_000)) < runs[:, None]
    found = generalisation(right)
    means = right.mean(1)
    low, high = stats.t.interval(0.95, 3, means.mean(), stats.sem(means))
    assert (found.low, found.high) == pytest.approx((low, high), rel=0.01)


def test_where_seeds_do_not_matter_it_is_that_over_images() -> None:
    one = np.arange(400) % 4 > 0
    found = generalisation([one, one, one])
    assert found.seed_error == 0.0
    low, high = stats.t.interval(0.95, 399, one.mean(), stats.sem(one))
    assert (found.low, found.high) == pytest.approx((low, high))


def test_images_of_one_source_are_one_piece_of_evidence() -> None:
    one = np.repeat(np.arange(100) % 4 > 0, 5)
    source = np.repeat(np.arange(100), 5)
    apart, together = generalisation([one, one]), generalisation([one, one], source)
    assert (together.groups, together.images) == (100, 500)
    assert together.image_error == pytest.approx(np.sqrt(5) * apart.image_error, rel=0.01)


def test_one_seed_has_no_interval() -> None:
    found = generalisation([[1, 0, 1]])
    assert (found.low, found.high, found.seed_error) == (None, None, None)
    assert found.accuracy == pytest.approx(2 / 3)


def test_all_right_is_no_error_that_is_known() -> None:
    found = generalisation(np.ones((3, 10)))
    assert (found.low, found.high) == (1.0, 1.0)


@pytest.mark.parametrize("seeds", [3, 10])
@pytest.mark.parametrize("scatter", [0.3, 1.5])
def test_the_interval_covers(seeds: int, scatter: float) -> None:
    """Of 2,000 studies 93 to 97 %; each draws runs, and images by groups, anew.

    An image is classified correctly where its ease, that of its group, the run's luck and chance
    together are above 0; the truth is their mean, a normal probability.
    """
    studies, groups, each = 2_000, 60, 3
    rng = np.random.default_rng(seeds)
    run = scatter / 10 * rng.standard_normal((studies, seeds, 1, 1))
    group = 0.6 * rng.standard_normal((studies, 1, groups, 1))
    rest = rng.standard_normal((studies, seeds, groups, each))
    right = (0.8 + run + group + rest > 0).reshape(studies, seeds, -1)
    truth = float(stats.norm.cdf(0.8 / np.sqrt((scatter / 10) ** 2 + 0.6**2 + 1)))
    source = np.repeat(np.arange(groups), each)
    covered = np.mean([_holds(generalisation(one, source), truth) for one in right])
    assert 0.93 <= covered <= 0.975


def _holds(found: Generalisation, truth: float) -> bool:
    assert found.low is not None
    assert found.high is not None
    return found.low <= truth <= found.high


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="runs times images"):
        generalisation([1, 0])
    with pytest.raises(ValueError, match="two independent"):
        generalisation([[1], [0]])
