"""How much each parameter mattered, by two methods side by side."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import plotly.graph_objects as go

from visweep.analysis.figures.chart import BLUE, ORANGE, Chart, theme
from visweep.analysis.importance import Importances, Shares
from visweep.analysis.measure import GAP

PED_ANOVA, FANOVA = "PED-ANOVA", "fANOVA"
_PALE_BLUE, _PALE_ORANGE = "rgba(59, 130, 246, 0.4)", "rgba(232, 113, 10, 0.4)"


def importance(found: Importances, caption: str, completed: Importances | None = None) -> Chart:
    """Bars of both methods' shares by parameter, the most important on top.

    Args:
        found: of all trials.
        caption: what was compared, and how.
        completed: of the completed trials only, as paler bars.
    """
    names = found.names
    series = [(PED_ANOVA, found.ped_anova, BLUE), (FANOVA, found.fanova, ORANGE)]
    if completed is not None:
        alone = "completed trials only"
        series += [
            (f"{PED_ANOVA}, {alone}", completed.ped_anova, _PALE_BLUE),
            (f"{FANOVA}, {alone}", completed.fanova, _PALE_ORANGE),
        ]
    drawn = [each for each in series if each[1]]
    figure = go.Figure()
    # Plotly draws the last bar of a group on top, and the last group.
    for name, shares, color in reversed(drawn):
        figure.add_trace(_bars(names, shares, name, color))
    figure.update_layout(
        template=theme(dark=False),
        height=110 + len(names) * (16 + 15 * len(drawn)),
        legend={"traceorder": "reversed"},
        margin={"t": 36, "r": 56},
        barmode="group",
        bargap=0.3,
    )
    figure.update_xaxes(title_text="share of the importance", ticksuffix=" %", rangemode="tozero")
    figure.update_yaxes(type="category", ticksuffix="  ")
    return Chart(figure, "Parameter importance", caption, _summary(found), zoomable=False)


def share_text(share: float) -> str:
    """A share in whole per cent."""
    return f"{100 * share:.0f}{GAP}%" if share >= 0.01 else f"< 1{GAP}%"


def _bars(names: Sequence[str], shares: Shares, series: str, color: str) -> go.Bar:
    lowest_first = [name for name in reversed(names) if name in shares]
    return go.Bar(
        x=[round(100 * shares[name], 2) for name in lowest_first],
        y=[escape(name) for name in lowest_first],
        text=[share_text(shares[name]) for name in lowest_first],
        name=series,
        orientation="h",
        textposition="outside",
        textangle=0,
        cliponaxis=False,
        marker={"color": color},
        hoverinfo="skip",
    )


def _summary(found: Importances) -> str:
    said = [
        f"{method}: " + ", ".join(f"{name} {share_text(share)}" for name, share in shares.items())
        for method, shares in ((PED_ANOVA, found.ped_anova), (FANOVA, found.fanova))
        if shares
    ]
    return "Shares of importance. " + "; ".join(said) + "."
