"""Which parameters tell the best trials from the rest."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from html import escape

import optuna
import plotly.graph_objects as go
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.trial import FrozenTrial, TrialState, create_trial

from visweep.analysis.axes import parameter_axes
from visweep.analysis.figures.chart import BLUE, Chart, require, theme
from visweep.analysis.measure import Measure, plural
from visweep.analysis.overview import ranked, shown_value, value_of

MIN_TOP_TRIALS = 5
"""PED-ANOVA's authors advise at least this many trials among the best."""


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
    require(
        bool(parameter_axes(trials)),
        "No parameter has more than one value: none can be important.",
    )
    wanted = max(MIN_TOP_TRIALS, math.ceil(0.1 * (len(complete) + len(rest))))
    top = _equally_good(complete, wanted, len(complete) + len(rest))
    shares = _importances(complete, rest, wanted, measure)
    return Chart(
        _bars(shares),
        "Parameter importance",
        _caption(top, len(complete), len(rest)),
        "Shares of importance: "
        + ", ".join(f"{name} {_share(share)}" for name, share in shares.items())
        + ".",
        zoomable=False,
    )


def _equally_good(complete: Sequence[FrozenTrial], wanted: int, total: int) -> int:
    """How many trials are among the best: the wanted number, and those as good as its last one.

    Raises:
        NothingToDraw: too few trials, or too many equal ones.
    """
    require(
        len(complete) >= wanted and total >= 2 * wanted,
        f"Importance compares the best {wanted} trials with the rest: it needs at least {wanted} "
        f"completed trials and {2 * wanted} finished ones; there are {len(complete)} and {total}.",
    )
    threshold = shown_value(complete[wanted - 1])
    top = sum(shown_value(t) == threshold for t in complete[wanted:]) + wanted
    require(2 * top <= total, f"{top} of {total} finished trials are equally good at the top.")
    return top


def _caption(top: int, complete: int, pruned: int) -> str:
    return (
        "Method: PED-ANOVA, Optuna's default. It asks which parameters' values tell the best "
        f"{plural(top, 'trial')} from all {complete + pruned} finished ones ({complete} "
        f"completed, {pruned} pruned). Pruned trials count as not among the best; the value that "
        "they last reported is not used, since it is no final one. Shares add up to 100 %. They "
        "say neither which value is good nor how much it is worth; in a study of this size small "
        "shares arise by chance, and the order is a hint, no proof."
    )


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
    varied = {axis.name for axis in parameter_axes(study.trials)}
    return {name: share for name, share in shares.items() if name in varied}


def _silent_study() -> optuna.Study:
    """A study in memory that is to be maximised, made without Optuna's line about it."""
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        return optuna.create_study(direction="maximize")
    finally:
        optuna.logging.set_verbosity(verbosity)


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


def _share(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.01 else "< 1 %"
