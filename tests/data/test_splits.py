from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from visweep.data.splits import (
    VAL_AIM,
    VAL_FRACTION,
    VAL_MOST,
    evenly,
    hold_out,
    ranks,
    shuffled,
    val_count,
)

some_labels = st.lists(st.integers(0, 6), min_size=1, max_size=200).map(
    lambda labels: np.array(labels, np.int64)
)
seeds = st.integers(-(2**70), 2**70)


@given(some_labels, st.data(), seeds)
def test_parts_are_disjoint_and_complete(labels, data, seed):
    count = data.draw(st.integers(0, len(labels)))
    kept, held = hold_out(labels, count, seed)
    assert sorted([*kept, *held]) == list(range(len(labels)))
    assert list(kept) == sorted(kept)
    assert list(held) == sorted(held)


@given(some_labels, st.data(), seeds)
def test_every_class_gives_its_share(labels, data, seed):
    count = data.draw(st.integers(0, len(labels)))
    _, held = hold_out(labels, count, seed)
    for label in np.unique(labels):
        size = int((labels == label).sum())
        given_up = int((labels[held] == label).sum())
        fair = size * count / len(labels)
        if size == 1:
            assert given_up == 0
        else:
            assert 1 <= given_up <= size - 1
            assert abs(given_up - min(max(fair, 1), size - 1)) <= 0.5


@given(some_labels, st.data(), seeds)
def test_an_equal_key_divides_equally(labels, data, seed):
    count = data.draw(st.integers(0, len(labels)))
    for first, second in zip(
        hold_out(labels, count, seed), hold_out(labels, count, seed), strict=True
    ):
        np.testing.assert_array_equal(first, second)


def test_another_seed_divides_otherwise():
    labels = np.arange(200) % 10
    _, one = hold_out(labels, 40, "validation", 0)
    _, other = hold_out(labels, 40, "validation", 1)
    assert set(one) != set(other)


def test_every_image_is_held_out_by_some_seed():
    labels = np.arange(20) % 2
    held = {int(i) for seed in range(60) for i in hold_out(labels, 4, seed)[1]}
    assert held == set(range(20))


@given(some_labels, st.data(), seeds)
def test_a_choice_is_as_even_as_the_classes_allow(labels, data, seed):
    count = data.draw(st.integers(0, len(labels)))
    chosen = evenly(labels, count, seed)
    assert len(set(chosen)) == len(chosen) == count
    assert list(chosen) == sorted(chosen)
    there = np.bincount(labels)
    taken = np.bincount(labels[chosen], minlength=len(there))
    # Whatever class was not emptied lies at most one image below the fullest one.
    assert all(t >= taken.max(initial=0) - 1 for t, n in zip(taken, there, strict=True) if t < n)


@given(some_labels, st.data(), seeds)
def test_a_smaller_choice_is_part_of_a_larger_one(labels, data, seed):
    larger = data.draw(st.integers(0, len(labels)))
    smaller = data.draw(st.integers(0, larger))
    assert set(evenly(labels, smaller, seed)) <= set(evenly(labels, larger, seed))


@given(some_labels, seeds)
def test_ranks_order_each_class(labels, seed):
    places = ranks(labels, seed)
    for label in np.unique(labels):
        members = places[labels == label]
        assert sorted(members) == list(range(len(members)))


def test_the_order_is_the_same_on_every_machine():
    # Golden: were it to change, every study on a split data set would be refused on resume.
    assert shuffled(10, "validation", 0).tolist() == [4, 0, 8, 3, 6, 1, 2, 9, 7, 5]


@pytest.mark.parametrize(
    ("total", "expected"),
    [
        (0, 0),
        (10, 2),
        (2_000, 400),
        (5_000, 1_000),
        (9_469, 1_000),
        (60_000, 6_000),
        (10**6, VAL_MOST),
    ],
)
def test_size_of_the_validation_set(total, expected):
    assert val_count(total) == expected


@given(st.integers(0, 10**7))
def test_the_validation_set_stays_within_its_bounds(total):
    count = val_count(total)
    assert count <= VAL_MOST
    assert count >= min(VAL_AIM, total // 5, VAL_MOST)
    assert count <= max(VAL_FRACTION * total + 1, VAL_AIM)
    assert count <= total
