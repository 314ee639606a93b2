"""How far the validation images can be trusted: by hand, against textbook errors, simulated."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from visweep.analysis.statistics.sampling import binomial_error, difference_error, mean_error


def test_the_binomial_error_by_hand() -> None:
    assert binomial_error(0.9, 900) == pytest.approx(1.0)
    assert binomial_error(0.5, 2500) == pytest.approx(1.0)
    assert binomial_error(1.0, 50) == 0.0


@pytest.mark.parametrize(
    ("accuracy", "images"), [(90, 100), (-0.1, 100), (0.5, 0), (float("nan"), 9)]
)
def test_what_is_no_accuracy(accuracy: float, images: int) -> None:
    with pytest.raises(ValueError, match="accuracy"):
        binomial_error(accuracy, images)


def test_clusters_by_hand() -> None:
    """Deviations from 0.5 sum to 1, -1 and 0 in three groups: √(3/2 × 2) / 6 of an image."""
    correct = [1, 1, 0, 0, 1, 0]
    groups = ["seven", "seven", "one", "one", "four", "four"]
    assert mean_error(correct, groups) == pytest.approx(100 * 3**0.5 / 6)


def test_every_image_its_own_group_is_the_usual_error_of_a_mean() -> None:
    values = np.random.default_rng(0).random(200)
    usual = 100 * stats.sem(values)
    assert mean_error(values) == pytest.approx(usual)
    assert mean_error(values, np.arange(200) * 7) == pytest.approx(usual)


def test_without_groups_it_is_the_binomial_error() -> None:
    correct = np.arange(1000) < 850
    few = (1000 / 999) ** 0.5
    assert mean_error(correct) == pytest.approx(few * binomial_error(0.85, 1000))


def test_copies_of_images_are_no_further_evidence() -> None:
    """Each image five times tells what it tells once; without groups it would seem far more."""
    correct = np.random.default_rng(1).random(300) < 0.8
    copied, groups = np.repeat(correct, 5), np.repeat(np.arange(300), 5)
    assert mean_error(copied, groups) == pytest.approx(mean_error(correct))
    assert mean_error(copied) < mean_error(correct) / 2


@given(st.lists(st.booleans(), min_size=2, max_size=40), st.randoms(use_true_random=False))
def test_neither_order_nor_names_of_groups_matter(correct: list[bool], random) -> None:
    groups = [i % 2 if i < 2 else random.randrange(5) for i in range(len(correct))]
    order = random.sample(range(len(correct)), len(correct))
    renamed = [f"digit {9 - groups[i]}" for i in order]
    assert mean_error([correct[i] for i in order], renamed) == pytest.approx(
        mean_error(correct, groups), abs=1e-9
    )


def test_the_clustered_error_is_the_scatter_of_accuracies_over_sets_of_images() -> None:
    """400 validation sets of 300 digits, about 4 images of each, some digits hard to read."""
    rng = np.random.default_rng(2)
    accuracies, clustered, plain = [], [], []
    for _ in range(400):
        groups = rng.integers(0, 300, 1200)
        ease = rng.beta(4.0, 1.0, 300)
        correct = rng.random(1200) < ease[groups]
        accuracies.append(100 * correct.mean())
        clustered.append(mean_error(correct, groups))
        plain.append(binomial_error(float(correct.mean()), 1200))
    true = np.std(accuracies, ddof=1)
    # The scatter of 400 accuracies is itself known to 3.5 %: four times that.
    assert np.mean(clustered) == pytest.approx(true, rel=0.14)
    assert np.mean(plain) < 0.86 * np.mean(clustered)


def test_what_both_get_right_cancels() -> None:
    """Of 100 images 4 change, 3 to the better: squares (4 - 0.02² × 100) / 99."""
    baseline = np.zeros(100)
    baseline[:60] = 1
    changed = baseline.copy()
    changed[59] = 0
    changed[60:63] = 1
    assert difference_error(baseline, changed) == pytest.approx((100 / 99 * (4 - 0.04)) ** 0.5)
    apart = np.hypot(mean_error(baseline), mean_error(changed))
    assert difference_error(baseline, changed) < apart / 3


def test_differences_are_clustered_too() -> None:
    rng = np.random.default_rng(3)
    baseline, changed = rng.random((2, 50)) < 0.7
    once = difference_error(baseline, changed)
    groups = np.repeat(np.arange(50), 4)
    assert difference_error(baseline.repeat(4), changed.repeat(4), groups) == pytest.approx(once)
    assert difference_error(changed, baseline) == pytest.approx(once)


def test_shares_of_several_runs_are_values_too() -> None:
    assert mean_error([0.2, 0.6, 1.0]) == pytest.approx(100 * 0.4 / 3**0.5)


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match="one group per image"):
        mean_error([1, 0, 1], [1, 2])
    with pytest.raises(ValueError, match="one group per image"):
        mean_error([[1, 0], [0, 1]])
    with pytest.raises(ValueError, match="two independent groups"):
        mean_error([1, 0, 1], [5, 5, 5])
    with pytest.raises(ValueError, match="two independent groups"):
        mean_error([])
    with pytest.raises(ValueError, match="needs a value"):
        mean_error([1, float("nan")])
    with pytest.raises(ValueError, match="same images"):
        difference_error([1, 0], [1, 0, 1])
