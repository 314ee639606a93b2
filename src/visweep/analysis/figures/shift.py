"""Accuracy against how far images are shifted."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

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
from visweep.analysis.figures.words import hovered_value
from visweep.analysis.measure import Measure
from visweep.analysis.shifted import HOW_FAR, Shifted

_COLORS = (ORANGE, VIOLET, BLUE, TEAL, GREY)
_DASHES = ("solid", "dash", "dot", "dashdot")


def shift_chart(models: Sequence[Shifted], measure: Measure) -> Chart:
    """One line a model.

    Raises:
        NothingToDraw: no model was measured.
    """
    require(bool(models), "No model was shown shifted images.")
    figure = go.Figure()
    for index, model in enumerate(models):
        color, dash = _COLORS[index % len(_COLORS)], _DASHES[index % len(_DASHES)]
        figure.add_trace(
            go.Scatter(
                x=list(model.pixels),
                y=[measure.plotted(value) for value in model.accuracy],
                mode="lines+markers",
                name=escape(model.name),
                line={"color": color, "width": 2.5, "dash": dash},
                marker={"color": color, "size": 6},
                hovertemplate=f"<b>{escape(model.name)}</b>, %{{x}} pixels<br>"
                f"{hovered_value(measure)}",
            )
        )
    lay_out(figure, "shift in pixels", measure, height=400)
    figure.update_xaxes(**whole_numbers(max(pixels for m in models for pixels in m.pixels)))
    return Chart(
        figure,
        "Accuracy of shifted images",
        f"Accuracy on the validation images, each shifted so far: {HOW_FAR}. Some of a fall is "
        "what moved out, which nobody could still see.",
        " ".join(_summary(model, measure) for model in models),
    )


def _summary(model: Shifted, measure: Measure) -> str:
    first, last = measure.text(model.accuracy[0]), measure.text(model.accuracy[-1])
    return f"{model.name} goes from {first} to {last} at {model.pixels[-1]} pixels."
