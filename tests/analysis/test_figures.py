"""What the figures draw, read from the figures themselves."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import optuna
import plotly.graph_objects as go
import pytest
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import FrozenTrial, TrialState, create_trial

from visweep.analysis.figures.chart import Chart, NothingToDraw
from visweep.analysis.figures.curves import learning_curves
from visweep.analysis.figures.history import history
from visweep.analysis.figures.parallel import parallel_coordinates
from visweep.analysis.figures.slices import slices
from visweep.analysis.figures.train_curves import measured, train_curves
from visweep.analysis.measure import Measure

ACCURACY = Measure("validation accuracy", percent=True, maximize=True)
LOSS = Measure("loss", percent=False, maximize=False, step="step")

ONE_CHART = [history, learning_curves, parallel_coordinates]


@pytest.fixture(scope="module")
def trials(sweep: optuna.Study) -> list[FrozenTrial]:
    return sweep.get_trials(deepcopy=False)


def trace(chart: Chart, name: str) -> go.Scatter:
    return next(trace for trace in chart.figure.data if trace.name == name)


def drawn_points(figure: go.Figure) -> int:
    return sum(
        value is not None
        for trace in figure.data
        if trace.visible is not False
        for value in (trace.x or ())
    )


def of(trials: Sequence[FrozenTrial], state: TrialState) -> list[FrozenTrial]:
    return [trial for trial in trials if trial.state == state]


def finished(
    number: int,
    state: TrialState,
    value: float | None,
    params: dict[str, Any],
    space: dict[str, BaseDistribution],
) -> FrozenTrial:
    trial = create_trial(state=state, value=value, params=params, distributions=space)
    trial.number = number
    return trial


@pytest.mark.parametrize("draw", ONE_CHART)
def test_every_figure_of_a_sweep_has_contents_and_words(
    draw: Callable[..., Chart], trials: list[FrozenTrial]
) -> None:
    chart = draw(trials, ACCURACY)
    assert drawn_points(chart.figure) > 5
    assert chart.caption.endswith(".")
    assert chart.summary.endswith(".")
    assert chart.figure.layout.height > 200


def test_history_shows_pruned_trials_apart(trials: list[FrozenTrial]) -> None:
    chart = history(trials, ACCURACY, baseline=trials[0])
    completed, pruned = trace(chart, "completed"), trace(chart, "pruned")
    assert list(completed.x) == [t.number for t in of(trials, TrialState.COMPLETE)]
    assert list(pruned.x) == [t.number for t in of(trials, TrialState.PRUNED)]
    last_reported = [max(t.intermediate_values) for t in of(trials, TrialState.PRUNED)]
    assert list(pruned.y) == [
        round(100 * t.intermediate_values[epoch], 2)
        for t, epoch in zip(of(trials, TrialState.PRUNED), last_reported, strict=True)
    ]
    assert pruned.marker.symbol != completed.marker.symbol
    assert list(trace(chart, "baseline").x) == [0]


def test_best_so_far_counts_completed_trials_only_and_never_falls(
    trials: list[FrozenTrial],
) -> None:
    line = trace(history(trials, ACCURACY), "best so far")
    assert list(line.y) == sorted(line.y)
    best = max(t.value or 0.0 for t in of(trials, TrialState.COMPLETE))
    assert line.y[-1] == round(100 * best, 2)


def test_best_so_far_falls_where_less_is_better() -> None:
    space: dict[str, BaseDistribution] = {"x": FloatDistribution(0, 1)}
    trials = [
        finished(i, TrialState.COMPLETE, v, {"x": v}, space) for i, v in enumerate([0.5, 0.7, 0.2])
    ]
    chart = history(trials, LOSS)
    assert list(trace(chart, "best so far").y) == [0.5, 0.5, 0.2, 0.2]
    assert list(trace(chart, "best").x) == [2]


def test_curves_end_in_a_cross_where_trials_were_pruned(trials: list[FrozenTrial]) -> None:
    chart = learning_curves(trials, ACCURACY, baseline=trials[0])
    ends = trace(chart, "pruned here")
    pruned = of(trials, TrialState.PRUNED)
    assert list(ends.x) == [max(t.intermediate_values) for t in pruned]
    assert list(ends.customdata) == [t.number for t in pruned]
    best = trace(chart, "best")
    assert best.line.width > trace(chart, "completed").line.width
    assert [x for x in best.x if x is not None] == list(range(1, 9))
    assert set(trace(chart, "baseline").customdata) == {0, None}


def test_curves_include_running_trials() -> None:
    running = create_trial(state=TrialState.RUNNING, intermediate_values={1: 0.2, 2: 0.3})
    running.number = 0
    chart = learning_curves([running], ACCURACY)
    assert list(trace(chart, "running").y) == [20, 30, None]


def test_parallel_coordinates_draw_each_finished_trial_once(trials: list[FrozenTrial]) -> None:
    chart = parallel_coordinates(trials, ACCURACY)
    groups = ["pruned", "lowest third", "middle third", "best third"]
    lines = sum(trace(chart, name).x.count(None) for name in groups)
    assert lines == len(of(trials, TrialState.COMPLETE)) + len(of(trials, TrialState.PRUNED))
    assert "class_token" in chart.caption
    titles = [note.text for note in chart.figure.layout.annotations if "<b>" in note.text]
    assert len(titles) == 8


def test_slices_cover_every_parameter_that_varies(trials: list[FrozenTrial]) -> None:
    charts = slices(trials, ACCURACY, baseline=trials[0])
    assert [c.title for c in charts] == [
        "patch_size",
        "embed_dim",
        "depth",
        "num_heads",
        "drop",
        "attn_drop",
        "lr",
    ]
    for chart in charts:
        assert len(trace(chart, "completed").x) == len(of(trials, TrialState.COMPLETE))
        assert len(trace(chart, "pruned").x) == len(of(trials, TrialState.PRUNED))
    kinds = {chart.title: chart.figure.layout.xaxis.type for chart in charts}
    assert kinds["lr"] == "log"
    assert kinds["patch_size"] == "category"
    assert list(charts[0].figure.layout.xaxis.categoryarray) == ["4", "8", "16"]


NO_TRIALS: list[FrozenTrial] = []


@pytest.mark.parametrize("draw", [*ONE_CHART, slices])
def test_without_trials_a_reason_is_given(draw: Callable[..., object]) -> None:
    with pytest.raises(NothingToDraw, match=r"\.$"):
        draw(NO_TRIALS, ACCURACY)


def test_a_single_possible_value_is_nothing_to_compare() -> None:
    space: dict[str, BaseDistribution] = {"only": CategoricalDistribution(["one"])}
    trials = [finished(i, TrialState.COMPLETE, 0.5, {"only": "one"}, space) for i in range(3)]
    for draw in (parallel_coordinates, slices):
        with pytest.raises(NothingToDraw, match="No parameter has more than one value"):
            draw(trials, ACCURACY)
    assert drawn_points(history(trials, ACCURACY).figure) > 3


def test_values_that_are_not_finite_are_left_out() -> None:
    space: dict[str, BaseDistribution] = {"x": FloatDistribution(0, 1)}
    infinite = finished(0, TrialState.COMPLETE, math.inf, {"x": 0.5}, space)
    diverged = create_trial(
        state=TrialState.PRUNED,
        params={"x": 0.9},
        distributions=space,
        intermediate_values={1: 0.3, 2: math.nan},
    )
    diverged.number = 1
    usual = finished(2, TrialState.COMPLETE, 0.5, {"x": 0.1}, space)
    chart = history([infinite, diverged, usual], ACCURACY)
    assert list(trace(chart, "completed").x) == [2]
    assert list(trace(chart, "pruned").y) == [30]
    assert "Not drawn: 1" in chart.caption


def test_all_pruned_still_draws_all(trials: list[FrozenTrial]) -> None:
    pruned = of(trials, TrialState.PRUNED)
    for draw in (history, learning_curves, parallel_coordinates):
        assert drawn_points(draw(pruned, ACCURACY).figure) >= len(pruned)
    assert len(slices(pruned, ACCURACY)) == 7


def test_conditional_parameters_leave_gaps() -> None:
    first: dict[str, BaseDistribution] = {"x": FloatDistribution(0, 1)}
    second: dict[str, BaseDistribution] = {**first, "y": IntDistribution(1, 1000, log=True)}
    trials = [
        finished(0, TrialState.COMPLETE, 0.5, {"x": 0.1}, first),
        finished(1, TrialState.COMPLETE, 0.6, {"x": 0.2, "y": 10}, second),
    ]
    by_title = {chart.title: chart for chart in slices(trials, ACCURACY)}
    assert list(trace(by_title["y"], "completed").x) == [10]
    assert drawn_points(parallel_coordinates(trials, ACCURACY).figure) == 5 + 3


def test_names_are_escaped_for_plotly() -> None:
    space: dict[str, BaseDistribution] = {"<b>x</b>": CategoricalDistribution(["<i>", "%{x}"])}
    trials = [
        finished(i, TrialState.COMPLETE, 0.5 + i / 10, {"<b>x</b>": choice}, space)
        for i, choice in enumerate(["<i>", "%{x}"])
    ]
    for chart in (
        history(trials, ACCURACY),
        parallel_coordinates(trials, ACCURACY),
        *slices(trials, ACCURACY),
    ):
        text = str(chart.figure.to_plotly_json())
        assert "<i>" not in text
        assert "<b>x" not in text


def with_train_curves(trial: FrozenTrial, **changes: Any) -> FrozenTrial:
    reached = list(trial.intermediate_values.values())
    curves = {"plain": [v + 0.02 for v in reached], "augmented": [v - 0.03 for v in reached]}
    made = copy.deepcopy(trial)
    made.set_user_attr("train_curves", {**curves, **changes})
    return made


def test_training_accuracy_stands_beside_validation_accuracy(trials: list[FrozenTrial]) -> None:
    with pytest.raises(NothingToDraw):
        train_curves(trials, ACCURACY, trials[0])
    best = max(of(trials, TrialState.COMPLETE), key=lambda t: t.value or 0.0)
    wanted = (0, best.number)
    found = [with_train_curves(t) if t.number in wanted else t for t in trials]
    chart = train_curves(found, ACCURACY, found[0])
    assert [t.name.partition(":")[0] for t in chart.figure.data] == ["baseline"] * 3 + ["best"] * 3
    lines = {trace.name: trace for trace in chart.figure.data}
    for name, more in (
        ("validation", 0.0),
        ("training", 2.0),
        ("training, moved", -3.0),
    ):
        line = lines[f"best: {name}"]
        expected = [100 * v + more for v in best.intermediate_values.values()]
        assert list(line.y) == pytest.approx(expected, abs=0.006)
        assert list(line.x) == list(best.intermediate_values)
    assert f"trial {trials[0].number}" in chart.summary
    assert chart.caption.endswith(".")
    # Where the baseline has none, the best stands alone.
    found[0] = trials[0]
    alone = train_curves(found, ACCURACY, found[0])
    assert {t.name.partition(":")[0] for t in alone.figure.data} == {"best"}


@pytest.mark.parametrize(
    "changes",
    [{"plain": None}, {"plain": "0.5"}, {"augmented": [0.5]}, {"plain": [math.nan] * 8}],
)
def test_training_accuracies_that_cannot_be_read_are_left_out(
    trials: list[FrozenTrial], changes: dict[str, Any]
) -> None:
    assert measured(with_train_curves(trials[0]))
    assert not measured(with_train_curves(trials[0], **changes))
    odd = copy.deepcopy(trials[0])
    odd.set_user_attr("train_curves", [0.5])
    assert not measured(odd)
