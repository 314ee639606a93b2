"""The figures of a study: pure functions from its trials to plotly figures with their words.

Optuna's own plots leave pruned trials out or draw them like completed ones; here each figure shows
them, marked, at the last value that they reported. Every name and text that comes from a study is
escaped, since plotly reads a subset of HTML in them.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from itertools import accumulate
from typing import Any

import optuna
import plotly.graph_objects as go
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.trial import FrozenTrial, TrialState, create_trial

from visweep import text
from visweep.analysis.axes import Axis, parameter_axes, value_axis
from visweep.analysis.measure import Measure, plural
from visweep.analysis.overview import (
    curve,
    in_state,
    parameter_names,
    ranked,
    shown_value,
    value_of,
)
from visweep.errors import VisweepError

# Middle tones: each keeps a contrast of at least 3:1 on white and on the dark page.
BLUE, ORANGE, VIOLET, TEAL, GREY = "#3b82f6", "#e8710a", "#a855f7", "#0d9f8f", "#8a94a6"

MAX_DETAILED_HOVER = 1500
"""With more trials than this, hovering names the trial without listing its parameters."""

MIN_TOP_TRIALS = 5
"""PED-ANOVA's authors advise at least this many trials among the best."""


class NothingToDraw(VisweepError):
    """There is no such figure of these trials. The message is a sentence that says why."""


@dataclass(frozen=True)
class Chart:
    """A figure and the words that belong to it.

    Attributes:
        figure: the plotly figure.
        title: a few words.
        caption: what is drawn and how to read it.
        summary: what the figure shows, for a reader who cannot see it.
        min_width: pixels below which it should be scrolled rather than squeezed.
        zoomable: a closer look at a part of it can show more.
    """

    figure: go.Figure
    title: str
    caption: str
    summary: str
    min_width: int = 0
    zoomable: bool = True


def theme(*, dark: bool) -> go.layout.Template:
    """The common look of all figures, on a light or a dark page."""
    ink, lines, surface = (
        ("#d5dae3", "#343b48", "#232934") if dark else ("#333b48", "#e3e7ed", "#ffffff")
    )
    axis = {
        "gridcolor": lines,
        "linecolor": lines,
        "zeroline": False,
        "automargin": True,
        "title": {"standoff": 8, "font": {"size": 13}},
    }
    return go.layout.Template(
        layout={
            "font": {"family": "system-ui, -apple-system, sans-serif", "size": 13, "color": ink},
            "paper_bgcolor": "rgba(0,0,0,0)",
            "plot_bgcolor": "rgba(0,0,0,0)",
            "margin": {"l": 12, "r": 16, "t": 36, "b": 12},
            "xaxis": axis,
            "yaxis": axis,
            "hovermode": "closest",
            "hoverlabel": {
                "bgcolor": surface,
                "bordercolor": lines,
                "font": {"color": ink},
                "align": "left",
            },
            "legend": {
                "orientation": "h",
                "x": 0,
                "xanchor": "left",
                "y": 1.02,
                "yanchor": "bottom",
            },
            # Labels on top of lines stay readable.
            "annotationdefaults": {"bgcolor": surface, "opacity": 0.85, "borderpad": 1},
            "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": ink, "activecolor": BLUE},
        }
    )


def history(
    trials: Sequence[FrozenTrial], measure: Measure, baseline: FrozenTrial | None = None
) -> Chart:
    """The objective by trial number, the best so far, and the pruned trials.

    Raises:
        NothingToDraw: no trial has a value.
    """
    complete, pruned = _complete(trials), _pruned(trials)
    _require(bool(complete or pruned), "No trial has reported a value yet.")
    hover = _hover(trials, measure)
    last = max(trial.number for trial in trials)
    figure = go.Figure()
    figure.add_trace(_points(pruned, measure, hover, _PRUNED))
    figure.add_trace(_points(complete, measure, hover, _COMPLETED))
    if complete:
        figure.add_trace(_best_so_far(complete, last, measure))
    for trial, mark in _singled_out(trials, measure, baseline):
        figure.add_trace(_points([trial], measure, hover, mark))
    _label(figure, "trial", measure, height=380)
    margin = 0.5 + 0.01 * last
    figure.update_xaxes(range=[-margin, last + margin], **_whole_numbers(last))
    return Chart(
        figure,
        "History",
        f"Each trial's {measure.name} in the order in which the trials were begun; a pruned trial "
        "stands at the last value that it reported. The line is the best of the completed "
        "trials so far." + _undrawn(trials),
        _history_summary(complete, pruned, measure),
    )


def learning_curves(
    trials: Sequence[FrozenTrial], measure: Measure, baseline: FrozenTrial | None = None
) -> Chart:
    """The intermediate values of every trial by epoch; pruned ones end in a cross.

    Raises:
        NothingToDraw: no trial reported an intermediate value.
    """
    complete, pruned = _complete(trials), _pruned(trials)
    running = in_state(trials, TrialState.RUNNING)
    drawn = [t for t in (*complete, *pruned, *running) if curve(t)]
    _require(bool(drawn), "No trial reported values on its way, so there are no curves.")
    special = _singled_out(trials, measure, baseline)
    others = [trial for trial in complete if all(trial is not s for s, _ in special)]
    figure = go.Figure()
    figure.add_trace(_curves(pruned, measure, "pruned", color=GREY, width=1, opacity=0.6))
    figure.add_trace(_pruned_ends(pruned, measure))
    figure.add_trace(_curves(others, measure, "completed", color=BLUE, width=1.2, opacity=0.65))
    figure.add_trace(_curves(running, measure, "running", color=TEAL, width=1.5, dash="dot"))
    for trial, mark in special:
        figure.add_trace(_curves([trial], measure, mark.name, **mark.line))
    _label(figure, measure.step, measure, height=420)
    figure.update_xaxes(**_whole_numbers(max(epoch for t in drawn for epoch, _ in curve(t))))
    return Chart(
        figure,
        "Learning curves",
        f"{_capital(measure.name)} after each {measure.step}, one line per trial. A grey line "
        "that ends in a cross is a pruned trial: it was stopped there, and what it would have "
        "reached is not known.",
        _curves_summary(next(iter(ranked(trials, measure)), None), pruned, measure, len(drawn)),
    )


def parallel_coordinates(
    trials: Sequence[FrozenTrial], measure: Measure, baseline: FrozenTrial | None = None
) -> Chart:
    """One line per trial through its parameters to its value; the better, the stronger.

    Raises:
        NothingToDraw: fewer than two trials have a value, or no parameter varies.
    """
    complete, pruned = ranked(trials, measure), _pruned(trials)
    drawn = [*complete, *pruned]
    axes = parameter_axes(trials)
    _require(len(drawn) >= 2, "Parallel coordinates compare trials; fewer than two have a value.")
    _require(bool(axes), "No parameter has more than one value, so there is nothing to compare.")
    stations = [*axes, value_axis(drawn, measure)]
    figure = go.Figure()
    figure.add_trace(_lines(pruned, stations, "pruned", color=GREY, opacity=0.35))
    for name, group, width, opacity in reversed(_thirds(complete)):
        figure.add_trace(_lines(group, stations, name, color=BLUE, width=width, opacity=opacity))
    for trial, mark in _singled_out(trials, measure, baseline):
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
        + (f" The best: {_described(complete[0], [a.name for a in axes])}." if complete else ""),
        min_width=90 * (len(axes) + 1),
    )


def slices(
    trials: Sequence[FrozenTrial], measure: Measure, baseline: FrozenTrial | None = None
) -> list[Chart]:
    """The objective against each parameter that varies, one small figure per parameter.

    Raises:
        NothingToDraw: no trial has a value, or no parameter varies.
    """
    complete, pruned = _complete(trials), _pruned(trials)
    axes = parameter_axes(trials)
    _require(bool(complete or pruned), "No trial has reported a value yet.")
    _require(bool(axes), "No parameter has more than one value, so there is nothing to compare.")
    special = _singled_out(trials, measure, baseline)
    return [_slice(axis, complete, pruned, special, measure) for axis in axes]


def importance(trials: Sequence[FrozenTrial], measure: Measure) -> Chart:
    """Which parameters tell the best trials from the rest, by PED-ANOVA.

    A pruned trial counts as one of the rest, whatever it last reported: the method asks only which
    trials are among the best, and leaving the pruned ones out would hide a parameter whose bad
    values are always pruned.

    Raises:
        NothingToDraw: too few trials, too many equal ones, or no parameter varies.
    """
    complete = ranked(trials, measure)
    rest = [trial for trial in trials if trial.state == TrialState.PRUNED]
    total = len(complete) + len(rest)
    wanted = max(MIN_TOP_TRIALS, math.ceil(0.1 * total))
    _require(
        bool(parameter_axes(trials)),
        "No parameter has more than one value: none can be important.",
    )
    _require(
        len(complete) >= wanted and total >= 2 * wanted,
        f"Importance compares the best {wanted} trials with the rest: it needs at least {wanted} "
        f"completed trials and {2 * wanted} finished ones; there are {len(complete)} and {total}.",
    )
    threshold = shown_value(complete[wanted - 1])
    top = sum(shown_value(t) == threshold for t in complete[wanted:]) + wanted
    _require(2 * top <= total, f"{top} of {total} finished trials are equally good at the top.")
    shares = _importances(complete, rest, wanted, measure)
    return Chart(
        _bars(shares),
        "Parameter importance",
        f"Method: PED-ANOVA, Optuna's default. It asks which parameters' values tell the best "
        f"{plural(top, 'trial')} from all {total} finished ones ({len(complete)} completed, "
        f"{len(rest)} pruned). Pruned trials count as not among the best; the value that they "
        "last reported is not used, since it is no final one. Shares add up to 100 %. They say "
        "neither which value is good nor how much it is worth; in a study of this size small "
        "shares arise by chance, and the order is a hint, no proof.",
        "Shares of importance: "
        + ", ".join(f"{name} {_share(share)}" for name, share in shares.items())
        + ".",
        zoomable=False,
    )


def _require(holds: bool, reason: str) -> None:
    if not holds:
        raise NothingToDraw(reason)


def _complete(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    return in_state(trials, TrialState.COMPLETE)


def _pruned(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    return in_state(trials, TrialState.PRUNED)


# Words ------------------------------------------------------------------------------------------


def _capital(words: str) -> str:
    return words[:1].upper() + words[1:]


def _described(trial: FrozenTrial, names: Iterable[str]) -> str:
    return ", ".join(f"{n} {text.value(trial.params[n])}" for n in names if n in trial.params)


def _history_summary(
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


def _curves_summary(
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


def _undrawn(trials: Sequence[FrozenTrial]) -> str:
    finished = [t for t in trials if t.state in (TrialState.COMPLETE, TrialState.PRUNED)]
    missing = sum(shown_value(trial) is None for trial in finished)
    return f" Not drawn: {plural(missing, 'finished trial')} without a value." if missing else ""


def _left_out(trials: Sequence[FrozenTrial]) -> str:
    drawn = {axis.name for axis in parameter_axes(trials)}
    single = [name for name in parameter_names(trials) if name not in drawn]
    return f" Left out, having one value only: {text.listing(single)}." if single else ""


def _share(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.01 else "< 1 %"


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


STATE_WORDS = {
    TrialState.COMPLETE: "completed",
    TrialState.PRUNED: "pruned",
    TrialState.RUNNING: "running",
    TrialState.FAIL: "failed",
    TrialState.WAITING: "waiting",
}


# History and curves -----------------------------------------------------------------------------


@dataclass(frozen=True)
class _Mark:
    """How some trials are drawn: their name in the legend, and their look as points and lines."""

    name: str
    point: Mapping[str, Any]
    line: Mapping[str, Any] = field(default_factory=dict)


_COMPLETED = _Mark("completed", {"color": BLUE, "size": 8, "opacity": 0.85})
_PRUNED = _Mark(
    "pruned", {"color": GREY, "size": 8, "symbol": "x-thin-open", "line": {"width": 1.5}}
)


def _singled_out(
    trials: Sequence[FrozenTrial], measure: Measure, baseline: FrozenTrial | None
) -> list[tuple[FrozenTrial, _Mark]]:
    """The baseline and the best trial, as far as there are such, with their marks."""
    found = []
    best = next(iter(ranked(trials, measure)), None)
    if baseline is not None and baseline is not best and shown_value(baseline) is not None:
        point = {"color": VIOLET, "size": 12, "symbol": "diamond"}
        line = {"color": VIOLET, "width": 2.5, "dash": "dash"}
        found.append((baseline, _Mark("baseline", point, line)))
    if best is not None:
        point = {"color": ORANGE, "size": 15, "symbol": "star"}
        line = {"color": ORANGE, "width": 3.5}
        found.append((best, _Mark("best", point, line)))
    return found


def _points(
    trials: Sequence[FrozenTrial],
    measure: Measure,
    hover: Callable[[FrozenTrial], str],
    mark: _Mark,
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
        hovertemplate=_curve_hover(measure),
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
        hovertemplate=_curve_hover(measure),
    )


def _curve_hover(measure: Measure) -> str:
    digits = ".1f" if measure.percent else ".4g"
    return (
        f"<b>trial %{{customdata}}</b>, {measure.step} %{{x}}<br>"
        f"%{{y:{digits}}}{measure.unit}<extra></extra>"
    )


def _label(figure: go.Figure, x_title: str, measure: Measure, height: int) -> None:
    figure.update_layout(template=theme(dark=False), height=height)
    figure.update_xaxes(title_text=x_title)
    figure.update_yaxes(title_text=escape(measure.name), ticksuffix=measure.unit)


def _whole_numbers(largest: int) -> dict[str, Any]:
    """Keep an axis that counts from offering halves."""
    return {"tickmode": "linear", "tick0": 0, "dtick": 1} if largest <= 12 else {"tickformat": "d"}


# Parallel coordinates ---------------------------------------------------------------------------


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


# Slices -----------------------------------------------------------------------------------------


def _slice(
    axis: Axis,
    complete: Sequence[FrozenTrial],
    pruned: Sequence[FrozenTrial],
    special: Sequence[tuple[FrozenTrial, _Mark]],
    measure: Measure,
) -> Chart:
    figure = go.Figure()
    figure.add_trace(_slice_points(axis, pruned, measure, _PRUNED))
    figure.add_trace(_slice_points(axis, complete, measure, _COMPLETED))
    for trial, mark in special:
        figure.add_trace(_slice_points(axis, [trial], measure, mark))
    _label(figure, escape(axis.name), measure, height=270)
    figure.update_layout(showlegend=False, margin={"t": 12})
    figure.update_yaxes(title_text=None)
    figure.update_xaxes(**_slice_ticks(axis))
    values = "; ".join(f"{mark.name}: {_described(t, [axis.name])}" for t, mark in special)
    return Chart(
        figure,
        axis.name,
        "",
        f"{_capital(measure.name)} against {axis.name}, "
        f"{plural(len(complete), 'completed trial')} and {plural(len(pruned), 'pruned trial')}."
        + (f" {_capital(values)}." if values else ""),
        zoomable=False,
    )


def _slice_ticks(axis: Axis) -> dict[str, Any]:
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


def _slice_points(
    axis: Axis, trials: Sequence[FrozenTrial], measure: Measure, mark: _Mark
) -> go.Scatter:
    placed = [trial for trial in trials if axis.name in trial.params]
    values = [trial.params[axis.name] for trial in placed]
    digits = ".1f" if measure.percent else ".4g"
    return go.Scatter(
        x=values if axis.values else [escape(text.value(value)) for value in values],
        y=[measure.plotted(value_of(trial)) for trial in placed],
        customdata=[trial.number for trial in placed],
        mode="markers",
        name=mark.name,
        marker=dict(mark.point),
        hovertemplate="<b>trial %{customdata}</b><br>%{x}<br>"
        f"%{{y:{digits}}}{measure.unit}<extra></extra>",
    )


# Importance -------------------------------------------------------------------------------------


def _importances(
    complete: Sequence[FrozenTrial], rest: Sequence[FrozenTrial], top: int, measure: Measure
) -> dict[str, float]:
    """Each varying parameter's share of the importance, largest first."""
    worst = min(measure.key(value_of(trial)) for trial in complete)
    study = _silent_study()
    for trial in complete:
        study.add_trial(_finished(trial, measure.key(value_of(trial))))
    for trial in rest:
        # Only the order counts: any value below the completed ones says "not among the best".
        study.add_trial(_finished(trial, worst - 1.0))
    # Half a trial less than the quotient: Optuna rounds up, and the quotient may be inexact.
    quantile = (top - 0.5) / (len(complete) + len(rest))
    evaluator = PedAnovaImportanceEvaluator(target_quantile=quantile)
    with warnings.catch_warnings():
        # It warns of values that occur once, which is normal in a small study.
        warnings.simplefilter("ignore")
        shares = get_param_importances(study, evaluator=evaluator)
    return {
        name: share
        for name, share in shares.items()
        if name in _names(parameter_axes(study.trials))
    }


def _silent_study() -> optuna.Study:
    """A study in memory that is to be maximised, made without Optuna's line about it."""
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        return optuna.create_study(direction="maximize")
    finally:
        optuna.logging.set_verbosity(verbosity)


def _names(axes: Sequence[Axis]) -> set[str]:
    return {axis.name for axis in axes}


def _finished(trial: FrozenTrial, value: float) -> FrozenTrial:
    return create_trial(value=value, params=trial.params, distributions=trial.distributions)


def _bars(shares: dict[str, float]) -> go.Figure:
    smallest_first = list(reversed(shares.items()))
    figure = go.Figure(
        go.Bar(
            x=[round(100 * share, 2) for _, share in smallest_first],
            y=[escape(name) for name, _ in smallest_first],
            text=[_share(share) for _, share in smallest_first],
            orientation="h",
            textposition="outside",
            cliponaxis=False,
            marker={"color": BLUE},
            hoverinfo="skip",
        )
    )
    figure.update_layout(template=theme(dark=False), height=70 + 34 * len(shares))
    figure.update_layout(margin={"t": 12, "r": 56}, bargap=0.35)
    figure.update_xaxes(title_text="share of the importance", ticksuffix=" %", rangemode="tozero")
    figure.update_yaxes(type="category", ticksuffix="  ")
    return figure
