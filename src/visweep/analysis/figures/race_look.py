"""A race that has had one look: its arms beside each other, since there is no course to draw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

import plotly.graph_objects as go

from visweep.analysis.figures.chart import BLUE, GREY, ORANGE, Chart, lay_out
from visweep.analysis.figures.words import hovered_value
from visweep.analysis.measure import GAP, Measure, plural
from visweep.analysis.race import Mean, Raced
from visweep.analysis.statistics.comparison import NoResult

_ASIDE = 0.12
"""So far, in arms, its runs stand from the interval of their mean."""
_BEYOND = 1.0
"""An interval is shown so far beyond the runs, in parts of what they span: that of two or three
runs may be many times as wide, and would hide how they differ."""


def look_chart(raced: Raced, measure: Measure, summary: str) -> Chart:
    """Mean accuracy, 95 % interval and the runs of each arm at the only look that there was.

    Args:
        raced: a race of one look.
        measure: of its study.
        summary: what the figure shows, for a reader who cannot see it.
    """
    (look,) = raced.race.looks
    arms = [arm for arm in raced.arms if arm in look.took_part]
    values = {arm: _values(raced, arm, look.seeds) for arm in arms}
    means = {arm: mean for arm in arms if (mean := raced.mean(arm, look.seeds)) is not None}
    figure = go.Figure()
    for place, arm in enumerate(arms):
        color = ORANGE if arm == raced.chosen else BLUE if arm in look.survivors else GREY
        if arm in means:
            figure.add_trace(_runs(place, arm, values[arm], measure, color))
            figure.add_trace(_mean(place, arm, means[arm], measure, color))
    figure.add_trace(_gone(raced, arms, means, measure))
    lay_out(figure, f"configuration, after {plural(look.seeds, 'seed')}", measure, height=380)
    figure.update_layout(showlegend=False)
    figure.update_xaxes(
        tickvals=list(range(len(arms))),
        ticktext=[escape(arm) for arm in arms],
        range=[-0.5, len(arms) - 0.5],
    )
    figure.update_yaxes(range=_range(values, means, measure))
    return Chart(
        figure,
        "Race",
        f"Mean {measure.name} of each configuration at the only look so far, with the 95{GAP}% "
        "interval over seeds, which may reach beyond the figure; beside it its runs, as small "
        "dots. They share seeds, so that differences are known better than these intervals tell; "
        "a cross marks a configuration that was dropped.",
        summary,
    )


def reach(mean: Mean) -> tuple[float, float]:
    """How far the interval reaches below and above the mean; not at all without one."""
    if mean.low is None or mean.high is None:
        return 0.0, 0.0
    return mean.accuracy - mean.low, mean.high - mean.accuracy


def _values(raced: Raced, arm: str, seeds: int) -> dict[int, float]:
    results = {seed: raced.results[arm].get(seed) for seed in raced.seeds[:seeds]}
    return {s: v for s, v in results.items() if v is not None and not isinstance(v, NoResult)}


def _mean(place: int, arm: str, mean: Mean, measure: Measure, color: str) -> go.Scatter:
    below, above = reach(mean)
    return go.Scatter(
        x=[place],
        y=[measure.plotted(mean.accuracy)],
        error_y={
            "array": [measure.plotted(above)],
            "arrayminus": [measure.plotted(below)],
            "thickness": 1.5,
            "width": 5,
            "color": color,
        },
        mode="markers",
        name=escape(arm),
        marker={"color": color, "size": 11},
        hovertemplate=f"<b>{escape(arm)}</b>, the mean<br>{hovered_value(measure)}",
    )


def _runs(
    place: int, arm: str, values: Mapping[int, float], measure: Measure, color: str
) -> go.Scatter:
    return go.Scatter(
        x=[place + _ASIDE] * len(values),
        y=[measure.plotted(value) for value in values.values()],
        mode="markers",
        name=f"runs of {escape(arm)}",
        marker={"color": color, "size": 6, "opacity": 0.6},
        customdata=list(values),
        hovertemplate=f"seed %{{customdata}}<br>{hovered_value(measure)}",
    )


def _gone(
    raced: Raced, arms: Sequence[str], means: Mapping[str, Mean], measure: Measure
) -> go.Scatter:
    gone = [a for a in arms if a in means and a not in raced.race.survivors]
    return go.Scatter(
        x=[arms.index(arm) for arm in gone],
        y=[measure.plotted(means[arm].accuracy) for arm in gone],
        mode="markers",
        name="dropped",
        visible=bool(gone),
        marker={"color": GREY, "size": 16, "symbol": "x-thin-open", "line": {"width": 2.5}},
        hoverinfo="skip",
    )


def _range(
    values: Mapping[str, Mapping[int, float]], means: Mapping[str, Mean], measure: Measure
) -> list[float] | None:
    runs = [value for of_arm in values.values() for value in of_arm.values()]
    if not runs:
        return None
    ends = [end for mean in means.values() for end in (mean.low, mean.high) if end is not None]
    span = (max(runs) - min(runs)) or 0.01
    low = max(min([*runs, *ends]), min(runs) - _BEYOND * span, 0.0)
    high = min(max([*runs, *ends]), max(runs) + _BEYOND * span, 1.0)
    margin = 0.05 * (high - low) or 0.01
    return [measure.plotted(low - margin), measure.plotted(high + margin)]
