"""Training accuracy by epoch, without and with the training transform, beside validation's."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import plotly.graph_objects as go
from optuna.trial import FrozenTrial

from visweep.analysis.figures.chart import Chart, lay_out, require, whole_numbers
from visweep.analysis.figures.marks import Singled, singled_out
from visweep.analysis.figures.words import hovered_value
from visweep.analysis.measure import Measure
from visweep.analysis.overview import curve, mapping

_LINES = (
    ("validation", "validation accuracy", "validation", "solid"),
    ("plain", "training accuracy", "training", "dash"),
    ("augmented", "training accuracy, images moved", "training, moved", "dot"),
)
"""Of each curve its key, what it is, the same in the legend, and its dashes."""


def train_curves(
    trials: Sequence[FrozenTrial],
    measure: Measure,
    baseline: FrozenTrial | None = None,
    singled: Singled | None = None,
) -> Chart:
    """Three curves each of the best trial and of the baseline, as far as they were measured.

    Args:
        trials: of one study.
        measure: what it optimises.
        baseline: drawn beside the best.
        singled: what is drawn in place of both.

    Raises:
        NothingToDraw: neither has training accuracies by epoch.
    """
    special = [
        (trial, mark, found)
        for trial, mark in (singled_out(trials, measure, baseline) if singled is None else singled)
        if (found := measured(trial))
    ]
    require(bool(special), "Training accuracy was not measured after each epoch.")
    figure = go.Figure()
    for trial, mark, found in special:
        for name, words, short, dash in _LINES:
            figure.add_trace(
                go.Scatter(
                    x=list(range(1, 1 + len(found[name]))),
                    y=[measure.plotted(value) for value in found[name]],
                    mode="lines+markers",
                    name=f"{mark.name}: {short}",
                    line={"color": mark.line["color"], "width": 2.5, "dash": dash},
                    marker={"color": mark.line["color"], "size": 5},
                    hovertemplate=f"<b>trial {trial.number}, {words}</b>, {measure.step} %{{x}}"
                    f"<br>{hovered_value(measure)}",
                )
            )
    lay_out(figure, measure.step, measure, height=440)
    figure.update_layout(margin={"t": 90})
    figure.update_yaxes(title_text="accuracy")
    figure.update_xaxes(**whole_numbers(max(len(found["plain"]) for *_, found in special)))
    return Chart(
        figure,
        "Training accuracy under both transforms",
        "Validation accuracy (solid), and accuracy on training images with dropout off: as they "
        "are (dashed), and each moved at random as in training, anew after each "
        f"{measure.step} (dotted).",
        _summary(special[0][0], special[0][2], measure),
    )


def measured(trial: FrozenTrial) -> dict[str, list[float]]:
    """Accuracies by epoch: `validation`, `plain` and `augmented`; empty where one is missing."""
    kept = mapping(trial.user_attrs, "train_curves")
    found = {name: _numbers(kept, name) for name in ("plain", "augmented")}
    found["validation"] = [value for _, value in curve(trial)]
    lengths = {len(values) for values in found.values()}
    return found if len(lengths) == 1 and 0 not in lengths else {}


def _numbers(kept: Mapping[str, object], name: str) -> list[float]:
    values = kept.get(name)
    if not isinstance(values, list):
        return []
    return [v for v in values if isinstance(v, int | float) and math.isfinite(v)]


def _summary(trial: FrozenTrial, found: Mapping[str, Sequence[float]], measure: Measure) -> str:
    said = (f"{words} {measure.text(found[name][-1])}" for name, words, *_ in _LINES)
    return f"After the last {measure.step} trial {trial.number} has {', '.join(said)}."
