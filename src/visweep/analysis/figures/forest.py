"""A forest plot: the effect of each change with its interval, marked by its verdict."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from itertools import groupby
from statistics import median

import plotly.graph_objects as go

from visweep.analysis.ablation import AblationRow, AblationTable
from visweep.analysis.changes import changed_fields
from visweep.analysis.figures.chart import BLUE, GREY, ORANGE, TEAL, Chart, require, theme
from visweep.analysis.measure import GAP, points
from visweep.analysis.statistics.verdicts import Row, Verdict
from visweep.analysis.statistics.words import judged

_ROW, _HEADING = 44, 34
"""Pixels of a row, and of a line above those of one baseline."""

_FAR = 8
"""A row that reaches so many times farther than the middle one is cut at the edge of the figure,
and its effect is written there: else nobody could tell the others apart."""

_MARKS = {
    Verdict.BETTER: {"color": TEAL, "size": 12, "symbol": "triangle-up"},
    Verdict.WORSE: {"color": ORANGE, "size": 12, "symbol": "triangle-down"},
    Verdict.NO_DIFFERENCE: {"color": BLUE, "size": 9, "symbol": "circle"},
    Verdict.NO_SCATTER: {"color": GREY, "size": 9, "symbol": "diamond-open"},
    Verdict.NOT_ENOUGH_RUNS: {"color": GREY, "size": 9, "symbol": "circle-open"},
}


def forest(table: AblationTable) -> Chart:
    """The changes of a table, those of one baseline together.

    Raises:
        NothingToDraw: no change has a pair of runs yet.
    """
    rows = [each for each in table.rows if each.row.effect is not None]
    require(bool(rows), "No change has a run that is paired with one of its baseline yet.")
    low, high = _range([each.row for each in rows])
    figure = go.Figure()
    places: list[tuple[AblationRow, float]] = []
    y = 0.0
    for _, group in groupby(table.rows, key=lambda each: each.baseline.name):
        members = list(group)
        y -= _HEADING
        _write(figure, y + 0.35 * _HEADING, _heading(members[0]), bold=True)
        for each in members:
            y -= _ROW
            _write(figure, y + 0.68 * _ROW, _label(each), bold=False)
            places.append((each, y + 0.3 * _ROW))
    for each, place in places:
        _draw_band(figure, each.row, place, low, high)
    for verdict, mark in _MARKS.items():
        own = [(e, p) for e, p in places if e.row.verdict is verdict and e.row.effect is not None]
        figure.add_trace(_points(own, verdict, mark, low, high))
    for each, place in places:
        _write_if_beyond(figure, each.row, place, low, high)
    figure.add_vline(x=0, line={"color": GREY, "width": 1.5})
    figure.update_layout(template=theme(dark=False), height=100 + round(-y), margin={"t": 40})
    # With one verdict, too.
    figure.update_layout(showlegend=True)
    figure.update_layout(annotationdefaults={"bgcolor": "rgba(0,0,0,0)"})
    figure.update_xaxes(title_text="effect on validation accuracy, in points", range=[low, high])
    figure.update_xaxes(nticks=6)
    figure.update_yaxes(visible=False, range=[y, 0])
    return Chart(
        figure,
        "Effects of the changes",
        f"Mean difference from the baseline over paired seeds, with its plain 95{GAP}% interval. "
        "The mark is the verdict, by the adjusted p-value alone. The shaded band is how small an "
        "effect these seeds can show: one at its end in 4 of 5 studies, one inside it less often."
        + _said_of_the_edge(rows, low, high),
        " ".join(f"{_plain(each)}: {judged(each.row)}." for each in table.rows),
        zoomable=False,
    )


def _range(rows: Sequence[Row]) -> tuple[float, float]:
    spans = [row.interval or (row.effect or 0.0, row.effect or 0.0) for row in rows]
    reach = [max(abs(low), abs(high)) for low, high in spans]
    most = _FAR * median(reach)
    near = [span for span, far in zip(spans, reach, strict=True) if far <= most] or spans
    ends = [0.0, *(end for span in near for end in span)]
    margin = 0.06 * ((max(ends) - min(ends)) or 1.0)
    return min(ends) - margin, max(ends) + margin


def _said_of_the_edge(rows: Sequence[AblationRow], low: float, high: float) -> str:
    beyond = any(not low <= (each.row.effect or 0.0) <= high for each in rows)
    return " An effect that lies far beyond the others is written at the edge." if beyond else ""


def _heading(first: AblationRow) -> str:
    mean = first.baseline.mean
    reached = "" if mean is None else f": {100 * mean:.1f}{GAP}%"
    return f"{first.baseline.name}{reached}"


def _label(each: AblationRow) -> str:
    row = each.row
    return changed_fields(each) + ("" if row.effect is not None else f" ({row.verdict})")


def _plain(each: AblationRow) -> str:
    return f"{each.baseline.name}, {changed_fields(each)}"


def _write(figure: go.Figure, y: float, words: str, *, bold: bool) -> None:
    written = escape(words)
    figure.add_annotation(
        xref="paper",
        x=0,
        y=y,
        xanchor="left",
        yanchor="middle",
        text=f"<b>{written}</b>" if bold else written,
        showarrow=False,
        align="left",
        font={"size": 13 if bold else 12},
    )


def _draw_band(figure: go.Figure, row: Row, y: float, low: float, high: float) -> None:
    if row.detectable is None:
        return
    figure.add_shape(
        type="rect",
        x0=max(low, -row.detectable),
        x1=min(high, row.detectable),
        y0=y - 9,
        y1=y + 9,
        fillcolor=GREY,
        opacity=0.18,
        line={"width": 0},
        layer="below",
    )


def _write_if_beyond(figure: go.Figure, row: Row, y: float, low: float, high: float) -> None:
    if row.effect is None or low <= row.effect <= high:
        return
    below = row.effect < low
    number = f"{points(row.effect)}{GAP}points"
    figure.add_annotation(
        x=low if below else high,
        y=y,
        xanchor="left" if below else "right",
        xshift=10 if below else -10,
        text=f"← {number}" if below else f"{number} →",
        showarrow=False,
        font={"size": 12},
    )


def _points(
    placed: Sequence[tuple[AblationRow, float]],
    verdict: Verdict,
    mark: dict[str, object],
    lowest: float,
    highest: float,
) -> go.Scatter:
    def shown(number: float) -> float:
        return min(max(number, lowest), highest)

    given = [each.row.effect or 0.0 for each, _ in placed]
    spans = [e.row.interval or (x, x) for (e, _), x in zip(placed, given, strict=True)]
    effects = [shown(effect) for effect in given]
    intervals = [(shown(low), shown(high)) for low, high in spans]
    return go.Scatter(
        x=effects,
        y=[y for _, y in placed],
        mode="markers",
        name=str(verdict),
        visible=bool(placed),
        marker=mark,
        cliponaxis=False,
        error_x={
            "type": "data",
            "symmetric": False,
            "array": [high - x for (_, high), x in zip(intervals, effects, strict=True)],
            "arrayminus": [x - low for (low, _), x in zip(intervals, effects, strict=True)],
            "color": mark["color"],
            "thickness": 2,
            "width": 4,
        },
        hovertext=[f"<b>{escape(_plain(e))}</b><br>{escape(judged(e.row))}" for e, _ in placed],
        hoverinfo="text",
    )
