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
_COLORS = {COMPLETED: BLUE, PRUNED: GREY, LOST: ORANGE, RUNNING: TEAL}


def spent_epochs(
    groups: Mapping[str, Sequence[FrozenTrial]], spared: int, full: int | None, step: str
) -> Chart:
    """Bars of the number of trials that trained each epoch.

    Args:
        groups: the trials by `COMPLETED`, `PRUNED`, `LOST` and `RUNNING`.
        spared: how many of the pruned ones could have run on.
        full: epochs of a trial that is not stopped early.
        step: what epochs are called.

    Raises:
        NothingToDraw: nothing is known of their epochs.
    """
    ran = {name: [epochs(trial) for trial in trials] for name, trials in groups.items()}
    longest = max([full or 0, *(count for counts in ran.values() for count in counts)])
    require(longest > 0, f"No trial ran {_article(step)} {step} yet.")
    numbers = list(range(1, longest + 1))
    figure = go.Figure()
    for name, counts in ran.items():
        reached = [sum(count >= number for count in counts) for number in numbers]
        figure.add_trace(_bars(numbers, reached, name, marker={"color": _COLORS[name]}))
    stopped = sorted(ran.get(PRUNED, []), reverse=True)[:spared]
    rest = [sum(count < number for count in stopped) for number in numbers]
    figure.add_trace(
        _bars(
            numbers,
            rest,
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
        f"{step}s that the study took, the hollow one those that pruning saved.",
        _summary(ran, sum(rest), step),
        zoomable=False,
    )


def _article(noun: str) -> str:
    return "an" if noun[:1] in "aeiou" else "a"


def _bars(
    numbers: Sequence[int], heights: Sequence[int], name: str, *, marker: Mapping[str, object]
) -> go.Bar:
    return go.Bar(
        x=list(numbers),
        y=list(heights),
        name=name,
        visible=any(heights),
        marker=dict(marker),
        hovertemplate="%{y} " + name + "<extra></extra>",
    )


def _summary(ran: Mapping[str, Sequence[int]], saved: int, step: str) -> str:
    said = [f"{name} {plural(sum(counts), step)}" for name, counts in ran.items() if sum(counts)]
    return f"{capital(step)}s by how trials ended: {', '.join([*said, f'not run {saved:,}'])}."
