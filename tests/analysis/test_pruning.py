"""Whether pruning dropped a winner: the sample, the interval, and what the page says of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import combinations
from math import comb
from typing import Any

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial
from scipy.stats import beta

from arms_studies import run_of
from visweep.analysis.measure import Measure
from visweep.analysis.overview import read
from visweep.analysis.pruning import (
    SAMPLE,
    Pool,
    Sample,
    arm_of,
    eligible,
    judge_reruns,
    number_of,
    number_within,
    pool,
)
from visweep.analysis.report import build_report
from visweep.analysis.sections.budget import budget_section
from visweep.analysis.sections.trials import trials_section
from visweep.storage.specification import OF

NewStudy = Callable[..., optuna.Study]

ACCURACY = Measure("validation accuracy", percent=True, maximize=True)
LOSS = Measure("loss", percent=False, maximize=False)
SPACE: dict[str, BaseDistribution] = {"x": FloatDistribution(0, 1)}


def ended(number: int, values: list[float], **attributes: Any) -> FrozenTrial:
    """A trial of 4 epochs at most: pruned where it has fewer."""
    trial = create_trial(
        state=TrialState.COMPLETE if len(values) == 4 else TrialState.PRUNED,
        value=values[-1] if values else None,
        params={"x": number / 100},
        distributions=SPACE,
        intermediate_values=dict(enumerate(values, start=1)),
        user_attrs={"epochs": len(values), "seconds": 2.0 * len(values), **attributes},
    )
    trial.number = number
    return trial


def search() -> list[FrozenTrial]:
    """Trial 1 is the best of two completed; 2 to 9 were pruned, the later the nearer to it."""
    completed = [ended(0, [0.2, 0.3, 0.4, 0.5]), ended(1, [0.4, 0.5, 0.6, 0.7])]
    pruned = [ended(n, [0.2 + n / 100, 0.3 + n / 100]) for n in range(2, 6)]
    return [*completed, *pruned, *(ended(n, [0.3 + n / 100]) for n in range(6, 10))]


# The interval -----------------------------------------------------------------------------------


@given(total=st.integers(1, 40), data=st.data())
def test_the_interval_covers_whatever_the_truth(total: int, data: st.DataObject) -> None:
    """Over all samples that could be drawn, in 95 % at least."""
    truth = data.draw(st.integers(0, total))
    drawn = data.draw(st.integers(1, total))
    covered = 0
    for found in range(max(0, drawn - (total - truth)), min(drawn, truth) + 1):
        low, high = number_within(found, drawn, total)
        assert found <= low <= high <= total - drawn + found
        if low <= truth <= high:
            covered += comb(truth, found) * comb(total - truth, drawn - found)
    assert covered >= 0.95 * comb(total, drawn)


def test_of_a_large_number_it_is_clopper_and_pearsons() -> None:
    low, high = number_within(2, 20, 20_000)
    assert low / 20_000 == pytest.approx(beta.ppf(0.025, 2, 19), abs=1e-3)
    assert high / 20_000 == pytest.approx(beta.ppf(0.975, 3, 18), abs=1e-3)


def test_where_all_were_drawn_it_is_what_was_found() -> None:
    assert number_within(3, 7, 7) == (3, 3)
    assert number_within(0, 0, 0) == (0, 0)


# The sample -------------------------------------------------------------------------------------


def test_half_are_the_nearest_and_the_others_are_drawn() -> None:
    trials = search()
    sample = pool(trials, ACCURACY, seed=3).sample(5)
    # Below trial 1 after the same epoch by 0.01, 0.02, …
    assert sample.nearest == (9, 8)
    assert len(sample.random) == 3
    assert not {*sample.random} & {*sample.nearest}
    assert sample.others == 6
    assert sample == pool(trials, ACCURACY, seed=3).sample(5)
    assert Sample.from_json(sample.to_json()) == sample


def test_each_of_the_others_is_as_likely() -> None:
    trials = search()
    drawn = [pool(trials, ACCURACY, seed).sample(4).random for seed in range(300)]
    pairs = {frozenset(pair): 0 for pair in combinations(range(2, 8), 2)}
    for pair in drawn:
        pairs[frozenset(pair)] += 1
    # 20 of each are expected.
    assert all(6 <= count <= 38 for count in pairs.values())


def test_all_are_taken_where_there_are_fewer() -> None:
    sample = pool(search(), ACCURACY, seed=0).sample(50)
    assert sorted(sample.numbers) == list(range(2, 10))


@given(count=st.integers(0, 12), less=st.integers(1, 30), more=st.integers(1, 30), data=st.data())
def test_a_larger_sample_holds_a_smaller_one(
    count: int, less: int, more: int, data: st.DataObject
) -> None:
    numbers = range(count)
    orders = (data.draw(st.permutations(numbers)), data.draw(st.permutations(numbers)))
    found = Pool(*map(tuple, orders))
    one, other = found.sample(min(less, more)), found.sample(max(less, more))
    assert {*one.numbers} <= {*other.numbers}
    assert {*one.nearest} <= {*other.nearest}
    for size, sample in ((min(less, more), one), (max(less, more), other)):
        assert len(sample.numbers) == len({*sample.numbers}) == min(size, count)
        assert sample.others == count - len(sample.nearest)


def test_of_a_sample_that_grew_each_of_the_others_is_as_likely() -> None:
    """Whatever the smaller one had drawn."""
    trials = search()
    pairs = {frozenset(pair): 0 for pair in combinations(range(2, 8), 2)}
    for seed in range(300):
        grown = pool(trials, ACCURACY, seed)
        assert {*grown.sample(2).numbers} <= {*grown.sample(4).numbers}
        pairs[frozenset(grown.sample(4).random)] += 1
    assert all(6 <= count <= 38 for count in pairs.values())


def test_a_pool_is_kept_as_json() -> None:
    found = pool(search(), ACCURACY, seed=3)
    assert Pool.from_json(found.to_json()) == found
    assert {number_of(arm_of(number)) for number in found.drawn} == {*found.nearest}
    for damaged in (None, [], {}, {"nearest": [1], "drawn": [2]}, {"nearest": 1, "drawn": "a"}):
        assert Pool.from_json(damaged) is None


def test_less_is_better() -> None:
    trials = [ended(0, [0.5, 0.4, 0.3, 0.2]), ended(1, [0.9]), ended(2, [0.6]), ended(3, [0.7])]
    assert pool(trials, LOSS, seed=0).sample(2).nearest == (2,)


def test_what_could_not_run_on_is_left_out() -> None:
    trials = [
        *search()[:3],
        ended(3, [0.1], ended="diverged at epoch 1"),
        ended(4, [0.1], ended="out of memory"),
        ended(5, []),
        ended(6, [0.3], replicate=1, replicate_seeds=[8]),
    ]
    assert [trial.number for trial in eligible(trials)] == [2]


@pytest.mark.parametrize(
    "other", [None, 3, {}, {"nearest": [1], "random": ["2"], "others": 1}, {"nearest": 1}]
)
def test_what_is_no_sample_is_none(other: object) -> None:
    assert Sample.from_json(other) is None


# What they come to ------------------------------------------------------------------------------


def reruns(values: Mapping[int, list[float | None]]) -> list[FrozenTrial]:
    """Runs of the arms, by seed: a number, or None where it diverged."""
    arms = [arm_of(number) for number in values]
    return [
        run_of(arms, arm_of(number), seed, value, **({} if value else {"ended": "diverged"}))
        for number, of_seeds in values.items()
        for seed, value in enumerate(of_seeds)
    ]


SAMPLE_OF_SEARCH = Sample(nearest=(9, 8), random=(3, 6, 2), others=6)


def test_values_are_means_over_the_seeds_and_ranked_among_the_completed() -> None:
    runs = reruns({9: [0.69, 0.73], 8: [0.6, 0.6], 3: [0.4, 0.4], 6: [0.7, 0.7], 2: [0.5]})
    verdict = judge_reruns(search(), ACCURACY, SAMPLE_OF_SEARCH, [0, 1], runs)
    found = {r.trial.number: (r.won, r.rank) for r in verdict.reruns}
    # One that is only as good as the best does not beat it.
    assert found == {
        9: (True, 1),
        8: (False, 2),
        3: (False, 3),
        6: (False, 2),
        2: (False, None),
    }
    assert verdict.reruns[0].value == pytest.approx(0.71)
    assert (verdict.won, len(verdict.known)) == (1, 4)
    low, high = number_within(0, 2, 6)
    assert verdict.interval == (1 + low, 1 + high)


def test_a_rerun_that_diverges_would_not_have_won() -> None:
    runs = reruns({9: [None], 8: [0.6], 3: [None], 6: [0.8], 2: [0.4]})
    verdict = judge_reruns(search(), ACCURACY, SAMPLE_OF_SEARCH, [0], runs)
    assert len(verdict.known) == 5
    assert verdict.interval == number_within(1, 3, 6)


def test_a_nearest_one_that_is_still_to_come_may_win() -> None:
    runs = reruns({9: [0.5], 3: [0.4], 6: [0.4], 2: [0.4]})
    verdict = judge_reruns(search(), ACCURACY, SAMPLE_OF_SEARCH, [0], runs)
    assert verdict.interval == (0, 1 + number_within(0, 3, 6)[1])


def test_without_a_random_one_nothing_is_inferred() -> None:
    verdict = judge_reruns(search(), ACCURACY, SAMPLE_OF_SEARCH, [0], reruns({9: [0.8]}))
    assert verdict.interval is None
    assert verdict.won == 1


# The page ---------------------------------------------------------------------------------------

IDENTITY = {"train": {"kind": "train", "epochs": 4, "seeds": [0]}, "seed": 3}


def said(section: object) -> str:
    return repr(section).replace("\\xa0", " ").replace("\N{NO-BREAK SPACE}", " ")


def test_the_section_says_what_was_spent_and_saved(new_study: NewStudy) -> None:
    failed = create_trial(
        state=TrialState.FAIL, params={"x": 0.5}, distributions=SPACE,
        intermediate_values={1: 0.1},
    )  # fmt: skip
    diverged = ended(11, [0.1, 0.1], ended="diverged at epoch 2")
    study = new_study("spent", [*search(), diverged, failed], specification={"identity": IDENTITY})
    section = budget_section(read(study))
    assert section is not None
    chart = section.blocks[0].chart  # type: ignore[union-attr]
    heights = {trace.name: list(trace.y) for trace in chart.figure.data if trace.visible}
    assert heights == {
        "completed": [2, 2, 2, 2],
        "pruned": [8, 4, 0, 0],
        "failed or diverged": [2, 1, 0, 0],
        "not run, since pruned": [0, 4, 8, 8],
    }
    rows = [list(row) for row in section.blocks[1].rows]  # type: ignore[union-attr]
    assert [[cell.replace("\N{NO-BREAK SPACE}", " ") for cell in row] for row in rows] == [
        ["completed", "2", "8", "35 %", "16 s", "36 %"],
        ["pruned", "8", "12", "52 %", "24 s", "55 %"],
        ["diverged", "1", "2", "9 %", "4.0 s", "9 %"],
        ["failed", "1", "1", "4 %", "–", "–"],
        ["all", "12", "23", "", "44 s", ""],
    ]
    # What divergence ended is not what pruning saved: 8 trials of 4 epochs ran 12.
    assert "Pruning saved 20 of 42 epochs (48 %), and about 40 s" in said(section)
    assert "not run 20" in said(section)
    assert "Whether pruning dropped a run that would have won is not known" in said(section)
    assert "visweep pruned spent --sample 5" in said(section)


def test_the_section_of_a_study_with_reruns(new_study: NewStudy) -> None:
    study = new_study("rerun", search(), specification={"identity": IDENTITY})
    values: dict[int, list[float | None]] = {9: [0.71], 8: [0.6], 3: [0.4], 6: [0.7], 2: [None]}
    runs = reruns(values)
    attributes = {
        OF: {"study": "rerun", "kind": "pruned"},
        SAMPLE: SAMPLE_OF_SEARCH.to_json(),
    }
    new_study("rerun-pruned", runs, beside=study, attributes=attributes)
    words = said(budget_section(read(study)))
    assert "5 of 5 pruned trials that were chosen have been trained to the end" in words
    assert "1 would have beaten trial 1, the best (70.0 %); the best of them, trial 9" in words
    low, high = number_within(0, 3, 6)
    assert f"of all 8 pruned trials between {1 + low} and {1 + high} would have won" in words
    assert "'trial 9', 'nearest to the best', 'epoch 1', '39.0 %', '71.0 %', 'the best'" in words
    assert "'trial 2', 'at random', 'epoch 2', '32.0 %', 'diverged', '–'" in words
    assert "would have beaten" in build_report(study)


def test_a_study_of_that_name_that_is_not_ours_is_not_read(new_study: NewStudy) -> None:
    study = new_study("alone", search(), specification={"identity": IDENTITY})
    new_study("alone-pruned", [], beside=study, attributes={SAMPLE: SAMPLE_OF_SEARCH.to_json()})
    assert "is not known" in said(budget_section(read(study)))


def test_nothing_is_said_of_a_study_without_trials(new_study: NewStudy) -> None:
    assert budget_section(read(new_study("none", []))) is None


def test_without_curves_there_is_nothing_to_say(new_study: NewStudy) -> None:
    trial = create_trial(value=0.5, params={"x": 0.5}, distributions=SPACE)
    study = new_study("bare", [trial], is_sweep=False)
    assert budget_section(read(study)) is None
    assert "How the trials ended" in said(trials_section(read(study)))


def test_how_trials_ended_is_told_once(new_study: NewStudy) -> None:
    study = new_study("once", search(), specification={"identity": IDENTITY})
    assert budget_section(read(study)) is not None
    assert "How the trials ended" not in said(trials_section(read(study)))


@pytest.mark.parametrize(("counted", "bars"), [(1_000_000, 200), (250, 125), (10**300, 4)])
def test_an_attribute_of_another_tool_makes_no_million_bars(
    new_study: NewStudy, counted: int, bars: int
) -> None:
    trials = [ended(0, [0.1, 0.2, 0.3, 0.4], epochs=counted), ended(1, [0.1], epochs=counted // 2)]
    section = budget_section(read(new_study(f"other-{counted:.0e}", trials, is_sweep=False)))
    assert section is not None
    chart = section.blocks[0].chart  # type: ignore[union-attr]
    completed, pruned, *_, rest = chart.figure.data
    assert len(completed.x) == bars
    assert set(completed.y) == {1}
    width = completed.x[1] - completed.x[0]
    known = counted <= 1_000_000
    assert sum(pruned.y) * width == (counted // 2 if known else 1)
    assert sum(rest.y) * width == (counted // 2 if known else 3)
    assert ("Each bar is the mean of" in chart.caption) == (width > 1)
