"""How trials are marked, alike in every figure: completed, pruned, the best and the baseline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from visweep.analysis.figures.chart import BLUE, GREY, ORANGE, VIOLET
from visweep.analysis.measure import Measure
from visweep.analysis.overview import in_state, ranked, shown_value
from visweep.storage.specification import ARM


@dataclass(frozen=True)
class Mark:
    """How some trials are drawn: their name in the legend, and their look as points and lines."""

    name: str
    point: Mapping[str, Any]
    line: Mapping[str, Any] = field(default_factory=dict)


COMPLETED = Mark("completed", {"color": BLUE, "size": 8, "opacity": 0.85})
_OF_ARMS = ({"color": VIOLET, "width": 2.5, "dash": "dash"}, {"color": ORANGE, "width": 2.5})
PRUNED = Mark(
    "pruned", {"color": GREY, "size": 8, "symbol": "x-thin-open", "line": {"width": 1.5}}
)


Singled = Sequence[tuple[FrozenTrial, Mark]]


def first_runs(trials: Sequence[FrozenTrial], arms: Sequence[str]) -> Singled:
    """Of some arms the first run each that completed, with marks of their own.

    In a study of arms the best run is the luckiest one, and trial 0 like any other.
    """
    found: dict[str, FrozenTrial] = {}
    for trial in in_state(trials, TrialState.COMPLETE):
        found.setdefault(str(trial.params.get(ARM)), trial)
    shown = [arm for arm in arms if arm in found][: len(_OF_ARMS)]
    return [
        (found[arm], Mark(f"{arm}, one run", {}, line))
        for arm, line in zip(shown, _OF_ARMS, strict=False)
    ]


def singled_out(
    trials: Sequence[FrozenTrial], measure: Measure, baseline: FrozenTrial | None
) -> list[tuple[FrozenTrial, Mark]]:
    """The baseline and the best trial, as far as there are such, with their marks."""
    found = []
    best = next(iter(ranked(trials, measure)), None)
    if baseline is not None and baseline is not best and shown_value(baseline) is not None:
        point = {"color": VIOLET, "size": 12, "symbol": "diamond"}
        line = {"color": VIOLET, "width": 2.5, "dash": "dash"}
        found.append((baseline, Mark("baseline", point, line)))
    if best is not None:
        point = {"color": ORANGE, "size": 15, "symbol": "star"}
        line = {"color": ORANGE, "width": 3.5}
        found.append((best, Mark("best", point, line)))
    return found
