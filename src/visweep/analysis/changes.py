"""The table of a study of arms as cells and sentences: for the page, Markdown, CSV and the
terminal alike.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean

from visweep import text
from visweep.analysis.ablation import AblationRow, AblationTable, ArmResults
from visweep.analysis.measure import GAP, plural, points
from visweep.analysis.sections.cells import MISSING
from visweep.analysis.sheet import Sheet, Value, sheet_of
from visweep.analysis.statistics.verdicts import Verdict
from visweep.analysis.statistics.words import (
    aim,
    could_have_shown,
    decides,
    judged,
    needed,
    of_other_images,
)

SHOWN = (Verdict.BETTER, Verdict.WORSE)
"""The verdicts that say that a difference was shown."""


@dataclass(frozen=True)
class Line:
    """One configuration as a table shows it; a cell is empty where it has nothing to say.

    Attributes:
        model: the baseline that it is, or is a change of.
        change: what is changed of it, or `baseline`.
        accuracy: on the validation images: a baseline's mean over its runs, before and after a
            change over the seeds that both sides have.
        loss: the same of the loss.
        pairs: how many such seeds a change has.
        effect: of the change, with its interval.
        p: adjusted.
        verdict: on the change; None for a baseline.
        needed: how many seeds the effect that the table aims at would need.
    """

    model: str
    change: str
    accuracy: str
    loss: str
    pairs: str = ""
    effect: str = ""
    p: str = ""
    verdict: Verdict | None = None
    needed: str = ""

    @property
    def is_shown(self) -> bool:
        """Whether a difference was shown."""
        return self.verdict in SHOWN


HEADINGS = {
    "model": "model",
    "change": "change",
    "accuracy": "validation accuracy",
    "loss": "loss",
    "pairs": "pairs",
    "effect": "points (95 %)",
    "p": "p (Holm)",
    "verdict": "verdict",
}
"""Of the cells of a line what their columns are called."""


def headings(table: AblationTable) -> dict[str, str]:
    """Of each cell of a line what its column is called."""
    return {**HEADINGS, "needed": f"seeds to show {aim(table.verdicts)}"}


def cells(line: Line, names: Sequence[str]) -> list[str]:
    """Some of a line's cells, by name."""
    return [str(getattr(line, name) or "") for name in names]


def lines(table: AblationTable) -> list[Line]:
    """Each baseline, followed by its changes."""
    return [line for baseline in table.baselines for line in _lines(table, baseline)]


def _lines(table: AblationTable, baseline: ArmResults) -> Iterator[Line]:
    yield _baseline_line(baseline)
    for each in table.rows:
        if each.baseline.name == baseline.name:
            yield _line(each)


def _baseline_line(baseline: ArmResults) -> Line:
    if baseline.mean is None:
        return Line(baseline.name, "baseline", MISSING, MISSING)
    scatter = baseline.scatter
    spread = "" if scatter is None else f" ± {100 * scatter:.1f}"
    return Line(
        model=baseline.name,
        change="baseline",
        accuracy=f"{percent(baseline.mean)}{spread} ({runs(baseline)})",
        loss=f"{fmean(baseline.loss.values()):.3f}" if baseline.loss else MISSING,
    )


def _line(each: AblationRow) -> Line:
    row = each.row
    interval = (
        ""
        if row.interval is None
        else f" ({{}}{GAP}to{GAP}{{}})".format(*map(points, row.interval))
    )
    losses = (each.loss_before, each.loss_after)
    return Line(
        model=each.baseline.name,
        change=changed_fields(each),
        accuracy=f"{percent(each.before)} → {percent(each.after)}",
        loss=MISSING if None in losses else f"{{:.3f}}{GAP}→{GAP}{{:.3f}}".format(*losses),
        pairs=str(len(row.seeds)),
        effect=MISSING if row.effect is None else points(row.effect) + interval,
        p=_p(row.adjusted),
        verdict=row.verdict,
        needed=MISSING if row.needed is None else f"{row.needed:,}",
    )


def changed_fields(each: AblationRow) -> str:
    """What was changed: `patch_size 32 → 16`."""
    return ", ".join(
        f"{name} {text.value(old)} → {text.value(new)}" for name, (old, new) in each.fields.items()
    )


def percent(fraction: float | None) -> str:
    """An accuracy, unbroken."""
    return MISSING if fraction is None else f"{100 * fraction:.1f}{GAP}%"


def runs(arm: ArmResults) -> str:
    """`5 runs`, `4 runs, 1 without a result`."""
    lost = len(arm.accuracy) - len(arm.values)
    return plural(len(arm.values), "run") + (f", {lost} without a result" if lost else "")


def _p(value: float | None) -> str:
    if value is None:
        return MISSING
    return f"{value:.3f}" if value >= 0.001 else f"<{GAP}0.001"


def tally(table: AblationTable) -> str:
    """How many changes came to which verdict, over how many seeds, as a sentence."""
    count = Counter(each.row.verdict for each in table.rows)
    words = [f"{count[v]} {v}" for v in SHOWN if count[v]]
    if count[Verdict.NO_DIFFERENCE]:
        words.append(f"{count[Verdict.NO_DIFFERENCE]} with no difference shown")
    if rest := count[Verdict.NO_SCATTER] + count[Verdict.NOT_ENOUGH_RUNS]:
        words.append(f"{rest} without enough runs to tell")
    over = over_seeds([len(each.row.seeds) for each in table.rows])
    return f"{plural(len(table.rows), 'change')}{over}: {text.listing(words)}."


def over_seeds(counts: Sequence[int]) -> str:
    """` over 5 seeds`, or where they differ ` over 3 to 5 seeds each`; empty without any."""
    least, most = min(counts, default=0), max(counts, default=0)
    if not most:
        return ""
    if least == most:
        return f" over {plural(most, 'seed')}"
    return f" over {least} to {plural(most, 'seed')} each"


def remarks(table: AblationTable) -> list[str]:
    """What is to be known of the verdicts, as sentences."""
    errors = [error for each in table.arms for error in each.error.values()]
    said = [
        decides(table.verdicts) if table.rows else "",
        could_have_shown(table.verdicts.rows),
        needed(table.verdicts),
        of_other_images(errors, len(table.rows)),
    ]
    return [each for each in said if each]


def left_out(table: AblationTable) -> list[str]:
    """The changes with runs that have no result, each with the reasons."""
    return [f"{each.changed.name}: {judged(each.row)}" for each in table.rows if each.row.missing]


def arms_sheet(table: AblationTable) -> Sheet:
    """Every arm, and of a change what it does, in full."""
    rows = {each.changed.name: each for each in table.rows}
    return sheet_of([_record(each, rows.get(each.name)) for each in table.arms])


def _record(arm: ArmResults, change: AblationRow | None) -> dict[str, Value]:
    own: dict[str, Value] = {
        "arm": arm.name,
        "baseline": arm.arm.against,
        "change": None if change is None else changed_fields(change),
        "runs": len(arm.values),
        "runs_without_result": len(arm.accuracy) - len(arm.values),
        "val_accuracy": arm.mean,
        "val_accuracy_sd": arm.scatter,
        "val_loss_nats": fmean(arm.loss.values()) if arm.loss else None,
    }
    if change is None:
        return own
    row = change.row
    low, high = row.interval or (None, None)
    return {
        **own,
        "pairs": len(row.seeds),
        "val_accuracy_before": change.before,
        "val_accuracy_after": change.after,
        "val_loss_before_nats": change.loss_before,
        "val_loss_after_nats": change.loss_after,
        "effect_points": row.effect,
        "effect_low_points": low,
        "effect_high_points": high,
        "p": row.p,
        "p_adjusted": row.adjusted,
        "detectable_points": row.detectable,
        "seeds_needed": row.needed,
        "verdict": str(row.verdict),
    }
