"""The objective against one parameter at a time."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

import plotly.graph_objects as go
from optuna.trial import FrozenTrial, TrialState

from visweep import text
from visweep.analysis.axes import Axis, parameter_axes
from visweep.analysis.figures.chart import Chart, lay_out, require
from visweep.analysis.figures.marks import COMPLETED, PRUNED, Mark, singled_out
from visweep.analysis.figures.words import capital, described, hovered_value
from visweep.analysis.measure import Measure, plural
from visweep.analysis.overview import in_state, value_of


def slices(
    trials: Sequence[FrozenTrial], measure: Measure, baseline: FrozenTrial | None = None
) -> list[Chart]:
    """The objective against each parameter that varies, one small figure per parameter.

    Raises:
        NothingToDraw: no trial has a value, or no parameter varies.
    """
    complete, pruned = in_state(trials, TrialState.COMPLETE), in_state(trials, TrialState.PRUNED)
    axes = parameter_axes(trials)
    require(bool(complete or pruned), "No trial has reported a value yet.")
    require(bool(axes), "No parameter has more than one value, so there is nothing to compare.")
    special = singled_out(trials, measure, baseline)
    return [_slice(axis, complete, pruned, special, measure) for axis in axes]


def _slice(
    axis: Axis,
    complete: Sequence[FrozenTrial],
    pruned: Sequence[FrozenTrial],
    special: Sequence[tuple[FrozenTrial, Mark]],
    measure: Measure,
) -> Chart:
    figure = go.Figure()
    figure.add_trace(_points(axis, pruned, measure, PRUNED))
    figure.add_trace(_points(axis, complete, measure, COMPLETED))
    for trial, mark in special:
        figure.add_trace(_points(axis, [trial], measure, mark))
    lay_out(figure, escape(axis.name), measure, height=270)
    figure.update_layout(showlegend=False, margin={"t": 12})
    figure.update_yaxes(title_text=None)
    figure.update_xaxes(**_ticks(axis))
    values = "; ".join(f"{mark.name}: {described(t, [axis.name])}" for t, mark in special)
    return Chart(
        figure,
        axis.name,
        "",
        f"{capital(measure.name)} against {axis.name}, "
        f"{plural(len(complete), 'completed trial')} and {plural(len(pruned), 'pruned trial')}."
        + (f" {capital(values)}." if values else ""),
        zoomable=False,
    )


def _ticks(axis: Axis) -> dict[str, Any]:
    if not axis.values:
        choices = [escape(label) for _, label in axis.ticks]
        return {
            "type": "category",
            "categoryorder": "array",
            "categoryarray": choices,
            "range": [-0.5, len(choices) - 0.5],
        }
    labelled = {
        "tickmode": "array",
        "tickvals": axis.values,
        "ticktext": [label for _, label in axis.ticks],
    }
    if axis.log:
        return {"type": "log", **labelled}
    return labelled if axis.stepped else {}


def _points(axis: Axis, trials: Sequence[FrozenTrial], measure: Measure, mark: Mark) -> go.Scatter:
    placed = [trial for trial in trials if axis.name in trial.params]
    values = [trial.params[axis.name] for trial in placed]
    return go.Scatter(
        x=values if axis.values else [escape(text.value(value)) for value in values],
        y=[measure.plotted(value_of(trial)) for trial in placed],
        customdata=[trial.number for trial in placed],
        mode="markers",
        name=mark.name,
        marker=dict(mark.point),
        hovertemplate=f"<b>trial %{{customdata}}</b><br>%{{x}}<br>{hovered_value(measure)}",
    )
