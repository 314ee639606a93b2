"""Better, worse or no difference shown: who is judged, who is missing, and what decides."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from visweep.analysis.statistics.comparison import NOT_RUN, Comparison, Missing, NoResult
from visweep.analysis.statistics.holm import adjust
from visweep.analysis.statistics.power import detectable, seeds_needed
from visweep.analysis.statistics.verdicts import Row, Verdict, judge

BASELINE = [0.800, 0.806, 0.795, 0.803, 0.799]


def compared(*points: float, change: str = "a change") -> Comparison:
    """A comparison whose differences are these, by seeds 0, 1, …"""
    baseline = dict(enumerate(BASELINE[: len(points)]))
    return Comparison(
        change, baseline, {seed: baseline[seed] + d / 100 for seed, d in enumerate(points)}
    )


def only(comparison: Comparison) -> Row:
    (row,) = judge([comparison]).rows
    return row


class TestARow:
    def test_by_hand(self) -> None:
        row = only(compared(1.0, 2.0, 3.0))
        assert row.effect == pytest.approx(2.0)
        assert row.scatter == pytest.approx(1.0)
        assert row.interval == pytest.approx((2 - 4.302653 / 3**0.5, 2 + 4.302653 / 3**0.5))
        assert row.p == pytest.approx(1 - (12 / 14) ** 0.5)
        assert row.adjusted == row.p
        assert row.verdict is Verdict.NO_DIFFERENCE
        assert row.detectable == pytest.approx(detectable(1.0, 3, 1))
        assert (row.change, row.seeds, row.missing) == ("a change", (0, 1, 2), ())

    def test_better_and_worse(self) -> None:
        assert only(compared(2.0, 2.1, 1.9)).verdict is Verdict.BETTER
        assert only(compared(-2.0, -2.1, -1.9)).verdict is Verdict.WORSE

    def test_is_paired_by_seed_and_not_by_place(self) -> None:
        one = Comparison("", {1: 0.5, 2: 0.7}, {2: 0.71, 1: 0.52})
        assert only(one).effect == pytest.approx(1.5)
        assert only(one).scatter == pytest.approx(0.5**0.5)


class TestWhatIsMissing:
    def test_is_left_out_and_named(self) -> None:
        row = only(
            Comparison(
                "",
                {0: 0.80, 1: 0.81, 2: NoResult("failed"), 3: 0.79, 4: NoResult("failed")},
                {0: 0.82, 1: 0.82, 2: 0.85, 3: NoResult("diverged"), 4: NoResult("diverged")},
            )
        )
        assert row.seeds == (0, 1)
        assert row.effect == pytest.approx(1.5)
        assert row.missing == (
            Missing(2, baseline="failed"),
            Missing(3, changed="diverged"),
            Missing(4, "failed", "diverged"),
        )

    def test_includes_seeds_that_one_side_never_ran(self) -> None:
        row = only(Comparison("", {7: 0.8, 0: 0.8, 1: 0.8}, {0: 0.9, 1: 0.8, 5: 0.8}))
        assert row.seeds == (0, 1)
        assert row.missing == (Missing(5, baseline=NOT_RUN), Missing(7, changed=NOT_RUN))

    @pytest.mark.parametrize("accuracy", [float("nan"), 85.1, -0.01, float("inf")])
    def test_is_never_a_number(self, accuracy: float) -> None:
        with pytest.raises(ValueError, match="fraction between 0 and 1"):
            Comparison("", {0: 0.5}, {0: accuracy})

    def test_has_a_reason(self) -> None:
        with pytest.raises(ValueError, match="reason"):
            NoResult(" ")


class TestTooLittle:
    def test_one_pair(self) -> None:
        row = only(compared(1.0))
        assert row.verdict is Verdict.NOT_ENOUGH_RUNS
        assert row.effect == pytest.approx(1.0)
        assert nothing_known(row)

    def test_no_pair(self) -> None:
        row = only(Comparison("", {0: 0.5}, {0: NoResult("diverged")}))
        assert row.verdict is Verdict.NOT_ENOUGH_RUNS
        assert row.effect is None
        assert nothing_known(row)
        assert only(Comparison("", {}, {})).verdict is Verdict.NOT_ENOUGH_RUNS

    def test_no_change_at_all_shows_no_difference(self) -> None:
        row = only(compared(0.0, 0.0, 0.0))
        assert row.verdict is Verdict.NO_DIFFERENCE
        assert (row.effect, row.scatter, row.p, row.adjusted) == (0.0, 0.0, 1.0, 1.0)
        assert row.interval is row.detectable is None

    def test_the_same_change_in_every_pair_gives_no_verdict(self) -> None:
        """Rounding makes these differences unequal, which a plain t-test is certain about."""
        baseline, changed = [0.3, 0.8, 0.9], [0.2, 0.7, 0.8]
        with pytest.warns(RuntimeWarning, match="nearly identical"):
            assert stats.ttest_rel(baseline, changed).pvalue < 1e-20
        row = only(Comparison("", dict(enumerate(baseline)), dict(enumerate(changed))))
        assert row.verdict is Verdict.NO_SCATTER
        assert row.effect == pytest.approx(-10.0)
        assert row.scatter == 0.0
        assert row.interval is row.p is row.adjusted is row.detectable is None

    def test_no_rows(self) -> None:
        table = judge([])
        assert table.rows == ()
        assert table.median is None


def nothing_known(row: Row) -> bool:
    known = (row.scatter, row.interval, row.p, row.adjusted, row.detectable, row.needed)
    return all(each is None for each in known)


class TestATable:
    def test_the_adjusted_p_value_decides_and_not_the_interval(self) -> None:
        clear = compared(0.9, 1.4, 0.6, 1.3, 1.0)
        assert only(clear).verdict is Verdict.BETTER
        nulls = [compared(0.5, -0.4, 0.1, -0.3, 0.2)] * 99
        row = judge([clear, *nulls]).rows[0]
        assert row.p is not None
        assert row.p < 0.05
        assert row.interval is not None
        assert row.interval[0] > 0
        assert row.adjusted == pytest.approx(100 * row.p)
        assert row.verdict is Verdict.NO_DIFFERENCE

    def test_rows_without_a_verdict_count(self) -> None:
        rows = judge([compared(2.0, 2.1, 1.9), compared(1.0), compared(1.0, 1.0)]).rows
        assert rows[0].p is not None
        assert rows[0].adjusted == pytest.approx(3 * rows[0].p)
        assert rows[0].detectable == pytest.approx(detectable(0.1, 3, 3))

    def test_each_row_has_its_own_number_of_seeds(self) -> None:
        """Scatters 1 and √0.5, at the level of the first step of Holm's procedure."""
        table = judge([compared(1.0, 2.0, 3.0), compared(1.0, 2.0)])
        assert [row.needed for row in table.rows] == [
            seeds_needed(1.0, 1.0, 2),
            seeds_needed(1.0, 0.5**0.5, 2),
        ]
        assert table.median is table.rows[0], "of two, the one that scatters more"

    def test_a_collapsed_row_does_not_move_the_median(self) -> None:
        """Planted: with some seeds one change learns nothing; eight others scatter by 0.3."""
        plain = [compared(0.3, -0.3, 0.0, 0.3, -0.3, change=str(i)) for i in range(8)]
        collapsed = compared(-9.0, 0.5, -0.2, -8.0, 0.1, change="collapsed")
        table, without = judge([*plain, collapsed]), judge([*plain, compared(0.1, 0.4, 0.2)])
        assert table.median is not None
        assert without.median is not None
        assert table.median.needed == without.median.needed == seeds_needed(1.0, 0.3, 9)
        assert table.rows[-1].needed == seeds_needed(1.0, table.rows[-1].scatter or 0, 9)
        assert (table.rows[-1].needed or 0) > 50 * (table.median.needed or 0)

    def test_rows_without_scatter_are_not_in_the_middle(self) -> None:
        table = judge([compared(0.0, 0.0), compared(1.0, 2.0, 3.0), compared(1.0, 1.0)])
        assert [row.needed is None for row in table.rows] == [True, False, True]
        assert table.median is table.rows[1]
        assert judge([compared(1.0, 1.0)]).median is None

    def test_the_aim_is_the_callers(self) -> None:
        table = judge([compared(1.0, 2.0, 3.0)], aim=0.5)
        assert (table.aim, table.rows[0].needed) == (0.5, 34)
        with pytest.raises(ValueError, match="larger than 0"):
            judge([], aim=0.0)


ACCURACIES = st.one_of(
    st.integers(0, 1500).map(lambda right: right / 1500), st.just(NoResult("diverged"))
)
SIDES = st.dictionaries(st.integers(0, 6), ACCURACIES, max_size=7)


@given(st.lists(st.builds(Comparison, st.just(""), SIDES, SIDES), max_size=6))
def test_whatever_the_runs_gave(comparisons: list[Comparison]) -> None:
    """No seed is lost, and no number contradicts another."""
    for row, given_ in zip(judge(comparisons).rows, comparisons, strict=True):
        named = sorted([*row.seeds, *(each.seed for each in row.missing)])
        assert named == sorted({*given_.baseline, *given_.changed})
        assert (len(row.seeds) < 2) == (row.verdict is Verdict.NOT_ENOUGH_RUNS)
        if row.interval is None:
            assert row.verdict not in (Verdict.BETTER, Verdict.WORSE)
            continue
        low, high = row.interval
        assert row.effect is not None
        assert low < row.effect < high
        shown = row.verdict in (Verdict.BETTER, Verdict.WORSE)
        assert shown == (row.adjusted is not None and row.adjusted < 0.05)
        if shown:
            assert low > 0 if row.verdict is Verdict.BETTER else high < 0


def test_is_what_scipy_finds_in_each_row() -> None:
    rng = np.random.default_rng(11)
    baseline = 0.9 + 0.0075 * rng.standard_normal(5)
    changed = 0.9 + 0.0075 * rng.standard_normal((30, 5))
    changed[0] += 0.05
    rows = judge([whole(str(i), baseline, each) for i, each in enumerate(changed)]).rows
    theirs = stats.ttest_rel(changed, baseline, axis=1)
    np.testing.assert_allclose([row.p for row in rows], theirs.pvalue, rtol=1e-6)
    np.testing.assert_allclose([row.adjusted for row in rows], adjust(theirs.pvalue), rtol=1e-6)
    between = theirs.confidence_interval(0.95)
    ends = 100 * np.stack([between.low, between.high], axis=1)
    np.testing.assert_allclose([row.interval for row in rows], ends, atol=1e-9)


def whole(change: str, baseline: Any, changed: Any) -> Comparison:
    return Comparison(
        change, dict(enumerate(baseline.tolist())), dict(enumerate(changed.tolist()))
    )
