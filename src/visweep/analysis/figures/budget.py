"""How many trials trained each epoch, by how they ended: the area is what the study cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import plotly.graph_objects as go
from optuna.trial import FrozenTrial

from visweep.analysis.figures.chart import (
    BLUE,
    GREY,
    ORANGE,
    TEAL,
    Chart,
    require,
    theme,
    whole_numbers,
)
from visweep.analysis.figures.words import capital
from visweep.analysis.measure import plural
from visweep.analysis.overview import epochs

COMPLETED, PRUNED, LOST, RUNNING = "completed", "pruned", "failed or diverged", "running"
_MOST_BARS = 200
"""More are narrower than a pixel or two; each then stands for several epochs."""
_COLORS = {COMPLETED: BLUE, PRUNED: GREY, LOST: ORANGE, RUNNING: TEAL}


def spent_epochs(
    groups: Mapping[str, Sequence[FrozenTrial]], full: int | None, step: str
) -> Chart:
    """Bars of the number of trials that trained each epoch.

    Args:
        groups: the trials by `COMPLETED`, `PRUNED`, `LOST` and `RUNNING`; the pruned ones could
            have run on.
        full: epochs of a trial that is not stopped early.
        step: what epochs are called.

    Raises:
        NothingToDraw: nothing is known of their epochs.
    """
    ran = {name: [epochs(trial) for trial in trials] for name, trials in groups.items()}
    longest = max([full or 0, *(count for counts in ran.values() for count in counts)])
    require(longest > 0, f"No trial ran {_article(step)} {step} yet.")
    width = -(-longest // _MOST_BARS)
    starts = range(0, longest, width)
    middles = [start + (width + 1) / 2 for start in starts]
    figure = go.Figure()
    for name, counts in ran.items():
        spans = [(0, count) for count in counts]
        heights = _heights(spans, starts, width)
        figure.add_trace(_bars(middles, heights, name, marker={"color": _COLORS[name]}))
    not_run = [(count, full or longest) for count in ran.get(PRUNED, [])]
    figure.add_trace(
        _bars(
            middles,
            _heights(not_run, starts, width),
            "not run, since pruned",
            marker={"color": "rgba(0,0,0,0)", "line": {"color": GREY, "width": 1}},
        )
    )
    figure.update_layout(template=theme(dark=False), height=300, barmode="stack", bargap=0.12)
    figure.update_layout(legend={"traceorder": "normal"})
    figure.update_xaxes(title_text=step, **whole_numbers(longest))
    figure.update_yaxes(title_text="trials", rangemode="tozero")
    return Chart(
        figure,
        "Where the budget went",
        f"How many trials trained each {step}, by how they ended: the filled area is the "
        f"{step}s that the study took, the hollow one those that pruning saved."
        + (f" Each bar is the mean of {width:,} {step}s." if width > 1 else ""),
        _summary(ran, sum(max(0, end - begin) for begin, end in not_run), step),
        zoomable=False,
    )


def _article(noun: str) -> str:
    return "an" if noun[:1] in "aeiou" else "a"


def _heights(spans: Sequence[tuple[int, int]], starts: range, width: int) -> list[float]:
    """How many of these spans of epochs each bar is in, as the mean over its epochs."""
    inside = [
        sum(max(0, min(end, start + width) - max(begin, start)) for begin, end in spans)
        for start in starts
    ]
    return [count / width for count in inside]


def _bars(
    places: Sequence[float], heights: Sequence[float], name: str, *, marker: Mapping[str, object]
) -> go.Bar:
    return go.Bar(
        x=list(places),
        y=list(heights),
        name=name,
        visible=any(heights),
        marker=dict(marker),
        hovertemplate="%{y:,.1~f} " + name + "<extra></extra>",
    )


def _summary(ran: Mapping[str, Sequence[int]], saved: int, step: str) -> str:
    said = [f"{name} {plural(sum(counts), step)}" for name, counts in ran.items() if sum(counts)]
    return f"{capital(step)}s by how trials ended: {', '.join([*said, f'not run {saved:,}'])}."
