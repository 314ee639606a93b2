"""A race: the mean accuracy of each arm as its seeds grow in number."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from itertools import cycle

import plotly.graph_objects as go

from visweep.analysis.figures.chart import (
    BLUE,
    GREY,
    ORANGE,
    TEAL,
    VIOLET,
    Chart,
    lay_out,
    require,
    whole_numbers,
)
from visweep.analysis.figures.race_look import look_chart, reach
from visweep.analysis.figures.words import hovered_value
from visweep.analysis.measure import Measure, plural
from visweep.analysis.race import Mean, Raced

_COLORS = (BLUE, TEAL, VIOLET, GREY)
_DASHES = ("solid", "dash", "dot")
_APART = 0.06
"""Seeds between the intervals of two arms, so that they do not hide each other."""

Course = Sequence[tuple[int, Mean]]


def race_chart(raced: Raced, measure: Measure) -> Chart:
    """Mean accuracy and 95 % interval of each arm by the number of its seeds; after a single look,
    of the arms beside each other.

    Raises:
        NothingToDraw: there was no look yet.
    """
    require(bool(raced.race.looks), "There are too few runs for a first look yet.")
    if len(raced.race.looks) == 1:
        return look_chart(raced, measure, _summary(raced, measure))
    courses = {arm: _course(raced, arm) for arm in raced.arms}
    figure = go.Figure()
    looks = iter(zip(cycle(_COLORS), (dash for dash in _DASHES for _ in _COLORS), strict=False))
    middle = (len(courses) - 1) / 2
    for place, (arm, course) in enumerate(courses.items()):
        color, dash = (ORANGE, "solid") if arm == raced.chosen else next(looks, (GREY, "dot"))
        figure.add_trace(
            _line(raced, arm, course, measure, color, dash, _APART * (place - middle))
        )
    figure.add_trace(_dropped(raced, courses, measure))
    lay_out(figure, "seeds", measure, height=380)
    figure.update_xaxes(**whole_numbers(raced.race.looks[-1].seeds))
    figure.update_yaxes(range=_range(courses, measure))
    return Chart(
        figure,
        "Race",
        f"Mean {measure.name} of each configuration over its first seeds, with the 95 % interval "
        "over seeds. They share seeds, so that differences are known better than these intervals "
        "tell; a cross marks where a configuration was dropped.",
        _summary(raced, measure),
    )


def _course(raced: Raced, arm: str) -> Course:
    """The mean at each look that the arm took part in."""
    means = (
        (look.seeds, raced.mean(arm, look.seeds))
        for look in raced.race.looks
        if arm in look.took_part
    )
    return [(seeds, mean) for seeds, mean in means if mean is not None]


def _line(
    raced: Raced,
    arm: str,
    course: Course,
    measure: Measure,
    color: str,
    dash: str,
    aside: float,
) -> go.Scatter:
    ends = [reach(mean) for _, mean in course]
    chosen = arm == raced.chosen
    return go.Scatter(
        x=[seeds + aside for seeds, _ in course],
        y=[measure.plotted(mean.accuracy) for _, mean in course],
        error_y={
            "array": [measure.plotted(above) for _, above in ends],
            "arrayminus": [measure.plotted(below) for below, _ in ends],
            "thickness": 1,
            "width": 3,
            "color": color,
        },
        mode="lines+markers",
        name=escape(arm),
        line={"color": color, "width": 3.5 if chosen else 1.5, "dash": dash},
        marker={"color": color, "size": 9 if chosen else 6},
        customdata=[seeds for seeds, _ in course],
        hovertemplate=f"<b>{escape(arm)}</b>, %{{customdata}} seeds<br>{hovered_value(measure)}",
    )


def _dropped(raced: Raced, courses: dict[str, Course], measure: Measure) -> go.Scatter:
    middle = (len(courses) - 1) / 2
    ends = [
        (courses[arm][-1], _APART * (place - middle))
        for place, arm in enumerate(courses)
        if arm not in raced.race.survivors and courses[arm]
    ]
    return go.Scatter(
        x=[seeds + aside for (seeds, _), aside in ends],
        y=[measure.plotted(mean.accuracy) for (_, mean), _ in ends],
        mode="markers",
        name="dropped",
        visible=bool(ends),
        marker={"color": GREY, "size": 13, "symbol": "x-thin-open", "line": {"width": 2.5}},
        hoverinfo="skip",
    )


def _range(courses: dict[str, Course], measure: Measure) -> list[float] | None:
    """What every mean and the last interval of each arm needs: early ones are huge."""
    seen = [mean.accuracy for course in courses.values() for _, mean in course]
    last = [course[-1][1] for course in courses.values() if course]
    seen += [end for mean in last for end in (mean.low, mean.high) if end is not None]
    low, high = max(min(seen), 0.0), min(max(seen), 1.0)
    margin = 0.05 * (high - low) or 0.01
    return [measure.plotted(low - margin), measure.plotted(high + margin)]


def _summary(raced: Raced, measure: Measure) -> str:
    seeds = raced.race.looks[-1].seeds
    words = f"{plural(len(raced.arms), 'arm')}, {plural(seeds, 'seed')}."
    if raced.chosen is None:
        return words
    mean = raced.mean(raced.chosen)
    assert mean is not None
    return f"{words} {raced.chosen} ends with {measure.text(mean.accuracy)}."
