"""The levels of the looks: exact, against direct calculation and simulation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from visweep.analysis.statistics.paired import Floats, paired_test
from visweep.analysis.statistics.spending import levels


def spent(level: float, pairs: int, last: int) -> float:
    return float(level * (pairs / last) ** 1.5)


def test_a_single_look_has_the_whole_level() -> None:
    assert levels(0.05, 7, 7) == {7: pytest.approx(0.05)}


def test_the_first_look_has_what_is_to_be_spent_by_then() -> None:
    assert levels(0.01, 3, 20)[3] == pytest.approx(spent(0.01, 3, 20))


def test_every_look_has_more_than_is_spent_anew_and_less_than_is_spent_in_all() -> None:
    """The first were a union bound; the second, a plain test that looked once."""
    found = levels(0.05, 3, 20)
    for pairs in range(4, 21):
        total = spent(0.05, pairs, 20)
        assert total - spent(0.05, pairs - 1, 20) < found[pairs] < total


def test_two_looks_by_integration() -> None:
    """At 2 pairs and at 3: the third difference against the sphere that the first two lie on.

    Three independent normal differences have a direction that is uniform on the sphere. Both tests
    are cones around axes on it, so that a fine grid of directions tells their areas.
    """
    found = levels(0.2, 2, 3)
    heights = (np.arange(100) + 0.5) / 100  # equal areas, by Archimedes
    angles = 2 * np.pi * np.arange(20_011) / 20_011
    radius = 1e3 * np.sqrt(1 - heights**2)
    x, y = radius[:, None] * np.cos(angles), radius[:, None] * np.sin(angles)
    three = np.stack([x, y, np.broadcast_to(1e3 * heights[:, None], x.shape)], -1)
    early = t_test(three[..., :2]) <= found[2]
    assert early.mean() == pytest.approx(spent(0.2, 2, 3), rel=0.002)
    either = early | (t_test(three) <= found[3])
    assert either.mean() == pytest.approx(0.2, rel=0.005)


def t_test(differences: Floats) -> Floats:
    return paired_test(differences).p


@pytest.mark.parametrize(("level", "first", "last"), [(0.05, 2, 8), (0.05, 3, 20)])
def test_the_error_is_spent_as_planned(level: float, first: int, last: int) -> None:
    """By 60,000 studies without effect; the total and each look within four standard errors."""
    studies = 60_000
    differences = np.random.default_rng(last).standard_normal((studies, last))
    running, total = np.ones(studies, bool), 0
    for pairs, at in levels(level, first, last).items():
        stopped = running & (t_test(differences[:, :pairs]) <= at)
        running &= ~stopped
        total += int(stopped.sum())
        expected = studies * spent(level, pairs, last)
        assert abs(total - expected) < 4 * np.sqrt(expected)


def test_a_level_of_a_look_is_no_chance() -> None:
    """All of them are between 0 and the level, also for the smallest parts of the error."""
    for arms in (2, 40):
        found = np.array(list(levels(0.05 / (arms * (arms - 1) / 2), 2, 12).values()))
        assert np.all((found > 0) & (found < 0.05))


@pytest.mark.parametrize(
    ("level", "first", "last"), [(0.0, 3, 20), (1.0, 3, 20), (0.05, 1, 20), (0.05, 5, 4)]
)
def test_bad_arguments(level: float, first: int, last: int) -> None:
    with pytest.raises(ValueError, match=r"a level|two pairs"):
        levels(level, first, last)


def test_student_is_the_reference_of_the_first_look() -> None:
    """What p is compared with is scipy's own p."""
    drawn = np.random.default_rng(1).standard_normal((5, 3))
    np.testing.assert_allclose(t_test(drawn), stats.ttest_1samp(drawn, 0.0, axis=1).pvalue)
