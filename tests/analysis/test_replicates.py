"""What a report says of configurations that were run several times."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import optuna
import pytest
from optuna.distributions import CategoricalDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from visweep.analysis.document import Table
from visweep.analysis.overview import read
from visweep.analysis.report import build_report
from visweep.analysis.sections.replicates import (
    MOST_ROWS,
    repeated,
    replicates_table,
    said_of,
)
from visweep.storage.replicates import REPLICATE, SEEDS

NewStudy = Callable[..., optuna.Study]
SPACE = {"depth": CategoricalDistribution(list(range(1, 16)))}


def trial(
    depth: int, value: float, replicate: int = 0, state: TrialState = TrialState.COMPLETE
) -> FrozenTrial:
    own: dict[str, Any] = {REPLICATE: replicate, SEEDS: [100 * depth + replicate]}
    return create_trial(
        state=state,
        value=None if state == TrialState.RUNNING else value,
        params={"depth": depth},
        distributions=dict(SPACE),
        intermediate_values={1: value},
        user_attrs=own if replicate else {},
    )


@pytest.fixture
def study(new_study: NewStudy) -> optuna.Study:
    return new_study(
        "again",
        [
            trial(1, 0.50),
            trial(2, 0.70),
            trial(1, 0.54, 1),
            trial(1, 0.58, 2),
            trial(2, 0.60, 1),
            trial(2, 0.99, 2, TrialState.PRUNED),
            trial(3, 0.40),
        ],
    )


def table(study: optuna.Study) -> Table:
    (block,) = replicates_table(read(study))
    assert isinstance(block, Table)
    return block


def test_mean_and_spread_of_what_was_run_again(study: optuna.Study) -> None:
    rows = [[cell.replace("\N{NO-BREAK SPACE}", " ") for cell in row] for row in table(study).rows]
    assert rows == [
        ["trial 1", "4 and 5", "2", "2", "65.0 %", "7.1 points", "60.0 % to 70.0 %"],
        ["trial 0", "2 and 3", "1", "3", "54.0 %", "4.0 points", "50.0 % to 58.0 %"],
    ]
    assert len(table(study).columns) == 7


def test_the_page_says_which_trials_are_replicates(study: optuna.Study) -> None:
    page = build_report(study).replace("\N{NO-BREAK SPACE}", " ")
    assert "3. trial 3 (replicate of 0)" in page
    assert "1. trial 1<" in page
    assert "were run again, with new seeds each time" in page
    assert "Its configuration completed 2 times, each with other seeds: 65.0 % on average" in page


def test_a_study_without_replicates_says_nothing_of_them(sweep: optuna.Study) -> None:
    assert replicates_table(read(sweep)) == []
    assert "replicate" not in build_report(sweep).split("</style>")[-1].split("<script")[0]


def test_the_same_seeds_are_no_further_evidence(new_study: NewStudy) -> None:
    """Copies of a study that went on apart may both have run a point before they knew."""
    study = new_study("merged", [trial(1, 0.5), trial(1, 0.5), trial(1, 0.6, 1)])
    (only,) = repeated(read(study))
    assert sorted(only.values) == [0.5, 0.6]


def test_one_result_has_no_spread(new_study: NewStudy) -> None:
    running = trial(1, 0.6, 1, TrialState.RUNNING)
    study = new_study("begun", [trial(1, 0.5), running])
    assert list(table(study).rows[0][-4:]) == ["1", "50.0\N{NO-BREAK SPACE}%", "–", "–"]
    assert said_of(read(study), study.trials[0]) == ""


def test_none_completed(new_study: NewStudy) -> None:
    study = new_study("pruned", [trial(1, 0.5, state=TrialState.PRUNED), trial(1, 0.6, 1)])
    pruned = new_study(
        "both",
        [trial(n, 0.5, n % 2, TrialState.PRUNED) for n in (2, 1)]
        + [trial(2, 0.5, 1, TrialState.PRUNED)],
    )
    assert table(study).rows[0][3] == "1"
    assert list(table(pruned).rows[0][-4:]) == ["0", "–", "–", "–"]


def test_many_are_cut_short(new_study: NewStudy) -> None:
    trials = [trial(depth, depth / 20) for depth in SPACE["depth"].choices]
    trials += [trial(depth, depth / 20, 1) for depth in SPACE["depth"].choices]
    trials += [trial(15, 0.7, number) for number in range(2, 12)]
    shown = table(new_study("many", trials))
    assert shown.caption.startswith("The best 10 of 15 configurations")
    assert len(shown.rows) == MOST_ROWS
    assert shown.rows[0][1].endswith("and 3 more")


@pytest.mark.parametrize("value", ["two", None, [1], 1.5])
def test_attributes_of_another_tool_are_left_alone(new_study: NewStudy, value: Any) -> None:
    foreign = create_trial(
        value=0.5,
        params={"depth": 1},
        distributions=dict(SPACE),
        user_attrs={REPLICATE: value, SEEDS: value},
    )
    assert replicates_table(read(new_study("theirs", [foreign, foreign], is_sweep=False))) == []
