"""The learning curves: intermediate values by epoch."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go
from optuna.trial import FrozenTrial, TrialState

from visweep.analysis.figures.chart import (
    BLUE,
    GREY,
    TEAL,
    Chart,
    lay_out,
    require,
    whole_numbers,
)
from visweep.analysis.figures.marks import Singled, singled_out
from visweep.analysis.figures.words import capital, hovered_value
from visweep.analysis.measure import Measure, plural
from visweep.analysis.overview import curve, in_state, ranked


def learning_curves(
    trials: Sequence[FrozenTrial],
    measure: Measure,
    baseline: FrozenTrial | None = None,
    singled: Singled | None = None,
) -> Chart:
    """The intermediate values of every trial by epoch; pruned ones end in a cross.

    Args:
        trials: of one study.
        measure: what it optimises.
        baseline: drawn beside the best.
        singled: what is drawn otherwise than all others, in place of both.

    Raises:
        NothingToDraw: no trial reported an intermediate value.
    """
    complete, pruned = in_state(trials, TrialState.COMPLETE), in_state(trials, TrialState.PRUNED)
    running = in_state(trials, TrialState.RUNNING)
    drawn = [t for t in (*complete, *pruned, *running) if curve(t)]
    require(bool(drawn), "No trial reported values on its way, so there are no curves.")
    special = singled_out(trials, measure, baseline) if singled is None else singled
    others = [trial for trial in complete if all(trial is not s for s, _ in special)]
    figure = go.Figure()
    figure.add_trace(_curves(pruned, measure, "pruned", color=GREY, width=1, opacity=0.6))
    figure.add_trace(_pruned_ends(pruned, measure))
    figure.add_trace(_curves(others, measure, "completed", color=BLUE, width=1.2, opacity=0.65))
    figure.add_trace(_curves(running, measure, "running", color=TEAL, width=1.5, dash="dot"))
    for trial, mark in special:
        figure.add_trace(_curves([trial], measure, mark.name, **mark.line))
    lay_out(figure, measure.step, measure, height=420)
    figure.update_xaxes(**whole_numbers(max(epoch for t in drawn for epoch, _ in curve(t))))
    return Chart(
        figure,
        "Learning curves",
        f"{capital(measure.name)} after each {measure.step}, one line per trial. A grey line "
        "that ends in a cross is a pruned trial: it was stopped there, and what it would have "
        "reached is not known.",
        _summary(next(iter(ranked(trials, measure)), None), pruned, measure, len(drawn)),
    )


def _summary(
    best: FrozenTrial | None, pruned: Sequence[FrozenTrial], measure: Measure, drawn: int
) -> str:
    words = f"Curves of {plural(drawn, 'trial')}, {len(pruned)} of them pruned."
    if best is not None and curve(best):
        (first, low), (last, high) = curve(best)[0], curve(best)[-1]
        words += (
            f" The best, trial {best.number}, goes from {measure.text(low)} at {measure.step} "
            f"{first} to {measure.text(high)} at {measure.step} {last}."
        )
    return words


def _curves(
    trials: Sequence[FrozenTrial],
    measure: Measure,
    name: str,
    *,
    color: str,
    width: float,
    dash: str = "solid",
    opacity: float = 1.0,
) -> go.Scatter:
    """All curves as one trace, with a gap after each: a trace per trial would be slow."""
    x: list[int | None] = []
    y: list[float | None] = []
    numbers: list[int | None] = []
    for trial in trials:
        points = curve(trial)
        x += [epoch for epoch, _ in points] + [None]
        y += [measure.plotted(value) for _, value in points] + [None]
        numbers += [trial.number] * len(points) + [None]
    return go.Scatter(
        x=x,
        y=y,
        customdata=numbers,
        mode="lines+markers",
        name=name,
        visible=bool(x),
        opacity=opacity,
        line={"color": color, "width": width, "dash": dash},
        marker={"color": color, "size": width + 2},
        hovertemplate=_hover(measure),
    )


def _pruned_ends(pruned: Sequence[FrozenTrial], measure: Measure) -> go.Scatter:
    ends = [(trial.number, *curve(trial)[-1]) for trial in pruned if curve(trial)]
    return go.Scatter(
        x=[epoch for _, epoch, _ in ends],
        y=[measure.plotted(value) for _, _, value in ends],
        customdata=[number for number, _, _ in ends],
        mode="markers",
        name="pruned here",
        visible=bool(ends),
        marker={"color": GREY, "size": 8, "symbol": "x-thin-open", "line": {"width": 2}},
        hovertemplate=_hover(measure),
    )


def _hover(measure: Measure) -> str:
    return f"<b>trial %{{customdata}}</b>, {measure.step} %{{x}}<br>{hovered_value(measure)}"
