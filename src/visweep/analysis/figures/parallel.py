"""Parallel coordinates: one line per trial through its parameters to its value."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import plotly.graph_objects as go
from optuna.trial import FrozenTrial, TrialState

from visweep import text
from visweep.analysis.axes import Axis, parameter_axes, value_axis
from visweep.analysis.figures.chart import BLUE, GREY, Chart, require, theme
from visweep.analysis.figures.marks import singled_out
from visweep.analysis.figures.words import described
from visweep.analysis.measure import Measure, plural
from visweep.analysis.overview import in_state, parameter_names, ranked


def parallel_coordinates(
    trials: Sequence[FrozenTrial], measure: Measure, baseline: FrozenTrial | None = None
) -> Chart:
    """One line per trial through its parameters to its value; the better, the stronger.

    Raises:
        NothingToDraw: fewer than two trials have a value, or no parameter varies.
    """
    complete, pruned = ranked(trials, measure), in_state(trials, TrialState.PRUNED)
    drawn = [*complete, *pruned]
    axes = parameter_axes(trials)
    require(len(drawn) >= 2, "Parallel coordinates compare trials; fewer than two have a value.")
    require(bool(axes), "No parameter has more than one value, so there is nothing to compare.")
    stations = [*axes, value_axis(drawn, measure)]
    figure = go.Figure()
    figure.add_trace(_lines(pruned, stations, "pruned", color=GREY, opacity=0.35))
    for name, group, width, opacity in reversed(_thirds(complete)):
        figure.add_trace(_lines(group, stations, name, color=BLUE, width=width, opacity=opacity))
    for trial, mark in singled_out(trials, measure, baseline):
        figure.add_trace(_lines([trial], stations, mark.name, **mark.line))
    for position, axis in enumerate(stations):
        _draw_axis(figure, position, axis)
    figure.update_layout(template=theme(dark=False), height=440, margin={"t": 90, "b": 24})
    figure.update_layout(legend={"y": 1.14})
    figure.update_xaxes(visible=False, range=[-0.35, len(axes) + 0.55])
    figure.update_yaxes(visible=False, range=[-0.06, 1.04])
    return Chart(
        figure,
        "Parallel coordinates",
        f"Each line is a trial: it crosses each parameter's axis at the trial's value and ends at "
        f"its {measure.name}. Stronger blue is better; the grey lines were pruned. Lines through "
        "the same value are spread a little so that they can be told apart; choose groups in the "
        "legend." + _left_out(trials),
        f"Lines of {plural(len(complete), 'completed trial')} and "
        f"{plural(len(pruned), 'pruned trial')} through {text.listing([a.name for a in axes])}."
        + (f" The best: {described(complete[0], [a.name for a in axes])}." if complete else ""),
        min_width=90 * (len(axes) + 1),
    )


def _left_out(trials: Sequence[FrozenTrial]) -> str:
    drawn = {axis.name for axis in parameter_axes(trials)}
    single = [name for name in parameter_names(trials) if name not in drawn]
    return f" Left out, having one value only: {text.listing(single)}." if single else ""


def _thirds(
    complete: Sequence[FrozenTrial],
) -> list[tuple[str, Sequence[FrozenTrial], float, float]]:
    """Groups of the ranked trials: a name, the trials, a line width and an opacity."""
    if len(complete) < 6:
        return [("completed", complete, 1.5, 0.8)]
    first, second = round(len(complete) / 3), round(2 * len(complete) / 3)
    return [
        ("best third", complete[:first], 1.8, 0.95),
        ("middle third", complete[first:second], 1.3, 0.5),
        ("lowest third", complete[second:], 1.0, 0.28),
    ]


def _lines(
    trials: Sequence[FrozenTrial],
    axes: Sequence[Axis],
    name: str,
    *,
    color: str,
    width: float = 1.0,
    dash: str = "solid",
    opacity: float = 1.0,
) -> go.Scatter:
    x: list[int | None] = []
    y: list[float | None] = []
    texts: list[str | None] = []
    for trial in trials:
        for position, axis in enumerate(axes):
            place = axis.place(trial)
            if place is not None:
                x.append(position)
                y.append(round(place + (_spread(trial.number) if axis.stepped else 0.0), 4))
                value = f"{escape(axis.name)} {escape(axis.label(trial))}"
                texts.append(f"<b>trial {trial.number}</b><br>{value}")
        x.append(None)
        y.append(None)
        texts.append(None)
    return go.Scatter(
        x=x,
        y=y,
        mode="lines",
        name=name,
        visible=bool(x),
        opacity=opacity,
        line={"color": color, "width": width, "dash": dash},
        hovertext=texts,
        hoverinfo="text",
    )


def _spread(trial_number: int) -> float:
    """A small shift of its own for each trial; multiples of the golden ratio never cluster."""
    return 0.05 * ((trial_number * 0.6180339887) % 1.0 - 0.5)


def _draw_axis(figure: go.Figure, position: int, axis: Axis) -> None:
    figure.add_shape(
        type="line", x0=position, x1=position, y0=-0.03, y1=1.03, line={"color": GREY, "width": 1}
    )
    figure.add_annotation(
        x=position,
        y=1.04,
        yanchor="bottom",
        text=f"<b>{escape(axis.name).replace(' ', '<br>')}</b>",
        showarrow=False,
    )
    for place, label in axis.ticks:
        figure.add_annotation(
            x=position,
            y=place,
            xanchor="left",
            xshift=4,
            text=escape(label),
            showarrow=False,
            font={"size": 11},
        )
