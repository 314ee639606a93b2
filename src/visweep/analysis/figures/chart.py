"""What every figure is: a plotly figure with its words, in the common look."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import Any

import plotly.graph_objects as go

from visweep.analysis.measure import Measure
from visweep.errors import VisweepError

# Middle tones: each keeps a contrast of at least 3:1 on white and on the dark page.
BLUE, ORANGE, VIOLET, TEAL, GREY = "#3b82f6", "#e8710a", "#a855f7", "#0d9f8f", "#8a94a6"


class NothingToDraw(VisweepError):
    """There is no such figure of these trials. The message is a sentence that says why."""


def require(holds: bool, reason: str) -> None:
    """Raise `NothingToDraw` with its reason, unless the condition holds."""
    if not holds:
        raise NothingToDraw(reason)


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


def lay_out(figure: go.Figure, x_title: str, measure: Measure, height: int) -> None:
    """Give a figure of the measure its look, its height in pixels and the titles of its axes."""
    figure.update_layout(template=theme(dark=False), height=height)
    figure.update_xaxes(title_text=x_title)
    figure.update_yaxes(title_text=escape(measure.name), ticksuffix=measure.unit)


def whole_numbers(largest: int) -> dict[str, Any]:
    """Keep an axis that counts from offering halves."""
    return {"tickmode": "linear", "tick0": 0, "dtick": 1} if largest <= 12 else {"tickformat": "d"}
