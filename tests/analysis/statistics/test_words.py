"""Verdicts as a person reads them."""

from __future__ import annotations

import numpy as np
import pytest

from visweep.analysis.statistics.comparison import Comparison, Missing
from visweep.analysis.statistics.verdicts import Row, Verdict, Verdicts, judge
from visweep.analysis.statistics.words import could_have_shown, decides, judged, needed

SEEDS = (0, 1, 2, 3, 4)


def plain(text: str) -> str:
    return text.replace("\N{NO-BREAK SPACE}", " ")


def row(
    verdict: Verdict,
    effect: float | None = None,
    interval: tuple[float, float] | None = None,
    detectable: float | None = None,
    seeds: tuple[int, ...] = SEEDS,
    missing: tuple[Missing, ...] = (),
) -> Row:
    return Row("", seeds, missing, effect, None, interval, None, None, verdict, detectable)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (
            row(Verdict.NO_DIFFERENCE, -0.8, (-2.1, 0.5), 1.92),
            "−0.8 points (−2.1 to +0.5): no difference shown; 5 seeds could have shown 1.9",
        ),
        (row(Verdict.BETTER, 5.0, (3.7, 6.3), 1.9), "+5.0 points (+3.7 to +6.3): better"),
        (row(Verdict.WORSE, -5.0, (-6.3, -3.7), 1.9), "−5.0 points (−6.3 to −3.7): worse"),
        (
            row(Verdict.NO_DIFFERENCE, 0.004, (-0.02, 0.028), 0.051),
            "0.00 points (−0.02 to +0.03): no difference shown; 5 seeds could have shown 0.05",
        ),
        (
            row(Verdict.NO_DIFFERENCE, 1.0, (-10.0, 12.0), 122.3, (0, 1)),
            "+1.0 points (−10.0 to +12.0): no difference shown; 2 seeds cannot show any",
        ),
        (row(Verdict.NO_DIFFERENCE, 0.0), "0.0 points in each of 5 pairs: no difference shown"),
        (row(Verdict.NO_SCATTER, 1.0), "+1.0 points in each of 5 pairs: no scatter measured"),
        (
            row(
                Verdict.NOT_ENOUGH_RUNS, 0.4, seeds=(0,), missing=(Missing(1, changed="diverged"),)
            ),
            "+0.4 points from 1 pair: not enough runs; seed 1 (changed diverged) is left out",
        ),
        (
            row(
                Verdict.NOT_ENOUGH_RUNS,
                seeds=(),
                missing=(Missing(1, "failed", "pruned at epoch 3"), Missing(2, "not run")),
            ),
            "not enough runs: no pair; seed 1 (baseline failed, changed pruned at epoch 3) and "
            "seed 2 (baseline not run) are left out",
        ),
        (
            row(Verdict.BETTER, 5.0, (3.7, 6.3), 1.9, missing=(Missing(5, changed="diverged"),)),
            "+5.0 points (+3.7 to +6.3): better; seed 5 (changed diverged) is left out",
        ),
    ],
)
def test_a_row(given: Row, words: str) -> None:
    assert plain(judged(given)) == words


@pytest.mark.parametrize(
    ("detectable", "words"),
    [
        ((1.92, 1.92), "an effect of 1.9 points would have been shown in 4 of 5 studies."),
        (
            (1.92, 3.0),
            "an effect of 1.9 to 3.0 points, by the row, would have been shown in 4 of 5 studies.",
        ),
        (
            (1.92, 122.3, 240.0),
            "an effect of 1.9 points would have been shown in 4 of 5 studies; "
            "in 2 rows none would.",
        ),
        (
            (0.0, 3.0),
            "an effect of 0.0 to 3.0 points, by the row, would have been shown in 4 of 5 studies.",
        ),
        ((122.3,), "no effect would have been shown in 4 of 5 studies."),
    ],
)
def test_an_effect_that_no_accuracy_can_have_is_not_said_to_be_shown(
    detectable: tuple[float, ...], words: str
) -> None:
    rows = [row(Verdict.NO_DIFFERENCE, 0.5, (-1.0, 2.0), each) for each in detectable]
    assert plain(could_have_shown(rows)) == f"With 5 seeds, {words}"


def test_no_line_ends_within_a_quantity() -> None:
    assert "−0.8\N{NO-BREAK SPACE}points" in judged(row(Verdict.WORSE, -0.8, (-0.9, -0.7)))


def test_what_decides() -> None:
    one = row(Verdict.BETTER, 5.0, (3.7, 6.3))
    sentence = plain(decides(Verdicts((one,) * 10, 1.0)))
    assert sentence == (
        "The p-value alone decides a verdict: below 0.05 after Holm's adjustment for all 10 rows; "
        "an interval is a plain 95 % one for its row alone, so that it may leave out 0 where no "
        "difference is shown."
    )
    assert "for the one row;" in decides(Verdicts((one,), 1.0))


def varied(change: str, scatter: float, seeds: int | None) -> Row:
    verdict = Verdict.NO_DIFFERENCE
    return Row(change, SEEDS, (), 0.1, scatter, None, None, None, verdict, None, seeds)


class TestTheSeedsNeeded:
    def test_of_one_row(self) -> None:
        assert plain(needed(Verdicts((varied("a", 1.06, 19),), 1.0))) == (
            "To show an effect of 1 point in 4 of 5 studies would take about 19 seeds: the paired "
            "differences scatter by 1.1 points."
        )
        assert "0.5 points in 4" in plain(needed(Verdicts((varied("a", 1.06, 68),), 0.5)))

    def test_the_median_row_speaks_for_the_others(self) -> None:
        rows = (varied("a", 0.9, 15), varied("b", 0.2, 4), varied("c", 0.5, 8))
        assert plain(needed(Verdicts(rows, 1.0))) == (
            "To show an effect of 1 point in 4 of 5 studies would take about 8 seeds in the "
            "median row, whose paired differences scatter by 0.5 points; by the row, 4 to 15."
        )
        assert "; by the row" not in needed(Verdicts((varied("a", 0.5, 8),) * 2, 1.0))

    def test_rows_that_need_far_more_are_named(self) -> None:
        rows = (varied("b", 0.5, 8), varied("norm", 3.6, 174), varied("c", 0.5, 8))
        assert plain(needed(Verdicts(rows, 1.0))).endswith(
            "scatter by 0.5 points; but 174 for norm (scatter 3.6 points)."
        )
        both = (*rows, varied("d", 0.4, 6), varied("e", 6.0, 1483), varied("f", 0.0, None))
        assert plain(needed(Verdicts(both, 1.0))).endswith(
            "; by the row, 6 to 8; but 174 for norm (scatter 3.6 points) and 1,483 for e (scatter "
            "6 points)."
        )

    def test_rows_that_are_alike_are_seldom_named(self) -> None:
        """Of 200 tables of ten rows over five seeds; about one in 40 has such a row by chance."""
        rng = np.random.default_rng(1)
        named = 0
        for _ in range(200):
            runs = 0.8 + 0.0075 * rng.standard_normal((11, 5))
            sides = [dict(enumerate(row.tolist())) for row in runs]
            table = judge(
                [Comparison(f"row {i}", sides[0], side) for i, side in enumerate(sides[1:])]
            )
            named += "; but" in needed(table)
        assert named <= 15


def test_where_no_scatter_was_measured_nothing_is_said_of_seeds() -> None:
    assert needed(judge([Comparison("", {0: 0.5, 1: 0.6}, {0: 0.6, 1: 0.7})])) == ""
