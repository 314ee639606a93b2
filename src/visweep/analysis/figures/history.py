"""The objective by trial number."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from itertools import accumulate

import plotly.graph_objects as go
from optuna.trial import FrozenTrial, TrialState

from visweep import text
from visweep.analysis.figures.chart import ORANGE, Chart, lay_out, require, whole_numbers
from visweep.analysis.figures.marks import COMPLETED, PRUNED, Mark, singled_out
from visweep.analysis.measure import Measure, plural
from visweep.analysis.overview import STATE_WORDS, in_state, ranked, shown_value, value_of

MAX_DETAILED_HOVER = 1500
"""With more trials than this, hovering names the trial without listing its parameters."""


def history(
    trials: Sequence[FrozenTrial], measure: Measure, baseline: FrozenTrial | None = None
) -> Chart:
    """The objective by trial number, the best so far, and the pruned trials.

    Raises:
        NothingToDraw: no trial has a value.
    """
    complete, pruned = in_state(trials, TrialState.COMPLETE), in_state(trials, TrialState.PRUNED)
    require(bool(complete or pruned), "No trial has reported a value yet.")
    hover = _hover(trials, measure)
    last = max(trial.number for trial in trials)
    figure = go.Figure()
    figure.add_trace(_points(pruned, measure, hover, PRUNED))
    figure.add_trace(_points(complete, measure, hover, COMPLETED))
    if complete:
        figure.add_trace(_best_so_far(complete, last, measure))
    for trial, mark in singled_out(trials, measure, baseline):
        figure.add_trace(_points([trial], measure, hover, mark))
    lay_out(figure, "trial", measure, height=380)
    margin = 0.5 + 0.01 * last
    figure.update_xaxes(range=[-margin, last + margin], **whole_numbers(last))
    return Chart(
        figure,
        "History",
        f"Each trial's {measure.name} in the order in which the trials were begun; a pruned trial "
        "stands at the last value that it reported. The line is the best of the completed "
        "trials so far." + _undrawn(trials),
        _summary(complete, pruned, measure),
    )


def _summary(
    complete: Sequence[FrozenTrial], pruned: Sequence[FrozenTrial], measure: Measure
) -> str:
    counts = f"{plural(len(complete), 'completed trial')}, {plural(len(pruned), 'pruned trial')}."
    if not complete:
        return counts
    first, best = complete[0], ranked(complete, measure)[0]
    return (
        f"{counts} The best of them so far goes from {measure.text(value_of(first))} "
        f"(trial {first.number}) to {measure.text(value_of(best))} "
        f"(trial {best.number})."
    )


def _undrawn(trials: Sequence[FrozenTrial]) -> str:
    finished = [t for t in trials if t.state in (TrialState.COMPLETE, TrialState.PRUNED)]
    missing = sum(shown_value(trial) is None for trial in finished)
    return f" Not drawn: {plural(missing, 'finished trial')} without a value." if missing else ""


def _points(
    trials: Sequence[FrozenTrial],
    measure: Measure,
    hover: Callable[[FrozenTrial], str],
    mark: Mark,
) -> go.Scatter:
    return go.Scatter(
        x=[trial.number for trial in trials],
        y=[measure.plotted(value_of(trial)) for trial in trials],
        mode="markers",
        name=mark.name,
        visible=bool(trials),
        marker=dict(mark.point),
        hovertext=[hover(trial) for trial in trials],
        hoverinfo="text",
    )


def _hover(trials: Sequence[FrozenTrial], measure: Measure) -> Callable[[FrozenTrial], str]:
    detailed = len(trials) <= MAX_DETAILED_HOVER

    def shown(trial: FrozenTrial) -> str:
        lines = [
            f"<b>trial {trial.number}</b> ({STATE_WORDS[trial.state]})",
            measure.text(value_of(trial)),
        ]
        if detailed:
            lines += [f"{escape(n)} {escape(text.value(v))}" for n, v in trial.params.items()]
        return "<br>".join(lines)

    return shown


def _best_so_far(complete: Sequence[FrozenTrial], last: int, measure: Measure) -> go.Scatter:
    choose = max if measure.maximize else min
    best = list(accumulate((value_of(t) for t in complete), choose))
    return go.Scatter(
        x=[trial.number for trial in complete] + [last],
        y=[measure.plotted(value) for value in [*best, best[-1]]],
        mode="lines",
        name="best so far",
        line={"color": ORANGE, "width": 2, "shape": "hv"},
        hoverinfo="skip",
    )
