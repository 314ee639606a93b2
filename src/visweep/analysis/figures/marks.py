"""How trials are marked, alike in every figure: completed, pruned, the best and the baseline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from optuna.trial import FrozenTrial

from visweep.analysis.figures.chart import BLUE, GREY, ORANGE, VIOLET
from visweep.analysis.measure import Measure
from visweep.analysis.overview import ranked, shown_value


@dataclass(frozen=True)
class Mark:
    """How some trials are drawn: their name in the legend, and their look as points and lines."""

    name: str
    point: Mapping[str, Any]
    line: Mapping[str, Any] = field(default_factory=dict)


COMPLETED = Mark("completed", {"color": BLUE, "size": 8, "opacity": 0.85})
PRUNED = Mark(
    "pruned", {"color": GREY, "size": 8, "symbol": "x-thin-open", "line": {"width": 1.5}}
)


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
