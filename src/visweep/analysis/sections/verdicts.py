"""What changes of a configuration do: a forest plot of the verdicts, and the table behind it.

They are those of the study itself, where it compares configurations, or of the studies beside it
that were made of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from statistics import fmean

from visweep import text
from visweep.analysis.ablation import AblationRow, AblationTable, ArmResults, ablation_table
from visweep.analysis.document import Block, Paragraph, Plot, Section, Table, Tile, note
from visweep.analysis.figures.chart import NothingToDraw
from visweep.analysis.figures.forest import changed_fields, forest
from visweep.analysis.measure import GAP, plural, points
from visweep.analysis.overview import Overview
from visweep.analysis.sections.cells import MISSING
from visweep.analysis.statistics.verdicts import Verdict
from visweep.analysis.statistics.words import (
    aim,
    could_have_shown,
    decides,
    judged,
    needed,
    of_other_images,
)
from visweep.storage.specification import RACE, Specification

_MOST_TILES = 2
_TITLES = {
    "ablation": "the best configuration with one parameter set back to where the search began",
    "neighbours": "the best configuration with one parameter set to the values next to it",
}


def table_of(overview: Overview) -> AblationTable | None:
    """A study of arms, judged; None where it compares none."""
    if not overview.compares_arms:
        return None
    specification = Specification.from_stored(overview.specification)
    trained = replace(specification, arms=specification.taking_part(overview.attributes))
    return ablation_table(trained, overview.trials)


def verdicts_section(overview: Overview) -> Section | None:
    """The effects of changes with their verdicts; None where nothing was changed."""
    blocks: list[Block] = []
    for words, table in _tables(overview):
        if not table.rows:
            continue
        blocks.append(Paragraph(f"{words}{tally(table)}"))
        try:
            blocks.append(Plot(forest(table)))
        except NothingToDraw as e:
            blocks.append(note(str(e)))
        blocks.append(Paragraph(" ".join(_said(table))))
    return Section("verdicts", "Verdicts", blocks) if blocks else None


def ablation_section(overview: Overview) -> Section | None:
    """The changes one by one, with the runs that are missing; None where nothing is compared."""
    blocks: list[Block] = []
    for words, table in _tables(overview):
        blocks.append(_table(table, words))
        lost = [
            f"{each.changed.name}: {judged(each.row)}." for each in table.rows if each.row.missing
        ]
        if lost:
            blocks.append(note(f"Runs that are left out. {' '.join(lost)}"))
    return Section("ablation", "Ablation", blocks) if blocks else None


def tally(table: AblationTable) -> str:
    """How many changes came to which verdict, as a sentence."""
    count = Counter(each.row.verdict for each in table.rows)
    words = [f"{count[v]} {v}" for v in (Verdict.BETTER, Verdict.WORSE) if count[v]]
    if count[Verdict.NO_DIFFERENCE]:
        words.append(f"{count[Verdict.NO_DIFFERENCE]} with no difference shown")
    if rest := count[Verdict.NO_SCATTER] + count[Verdict.NOT_ENOUGH_RUNS]:
        words.append(f"{rest} without enough runs to tell")
    seeds = f" over {plural(len(table.seeds), 'seed')}" if table.seeds else ""
    return f"{plural(len(table.rows), 'change')}{seeds}: {text.listing(words)}."


def arm_tiles(table: AblationTable) -> list[Tile]:
    """What the baselines came to, and how many changes differ."""
    found = [
        Tile(each.name, _percent(each.mean), _runs(each)) for each in table.baselines[:_MOST_TILES]
    ]
    shown = sum(each.row.verdict in (Verdict.BETTER, Verdict.WORSE) for each in table.rows)
    if table.rows:
        total = len(table.rows)
        found.append(Tile("Differences shown", f"{shown} of {total}", "changes of a baseline"))
    return found


def _tables(overview: Overview) -> Iterator[tuple[str, AblationTable]]:
    # A race changes nothing, and has a section of its own.
    own = None if RACE in overview.attributes else table_of(overview)
    if own is not None:
        yield "", own
    for kind, title in _TITLES.items():
        other = overview.companions.get(kind)
        table = None if other is None else table_of(other)
        if other is not None and table is not None:
            yield f"Study {other.name}, {title}. ", table


def _said(table: AblationTable) -> list[str]:
    errors = [error for each in table.arms for error in each.error.values()]
    said = [
        decides(table.verdicts),
        could_have_shown(table.verdicts.rows),
        needed(table.verdicts),
        of_other_images(errors),
    ]
    return [each for each in said if each]


def _table(table: AblationTable, words: str) -> Table:
    rows: list[list[str]] = []
    marked = []
    for baseline in table.baselines:
        rows.append([baseline.name, "baseline", _baseline_cell(baseline), "", "", "", ""])
        for each in table.rows:
            if each.baseline.name == baseline.name:
                if each.row.verdict in (Verdict.BETTER, Verdict.WORSE):
                    marked.append(len(rows))
                rows.append([baseline.name, changed_fields(each), *_cells(each)])
    columns = ["model", "change", "validation accuracy (loss)", "effect in points (95 %)"]
    columns += ["p, adjusted", "verdict", f"seeds to show {aim(table.verdicts)}"]
    if not table.rows:
        rows, columns = [[row[0], row[2]] for row in rows], [columns[0], columns[2]]
    return Table(
        f"{words}Before and after each change, over the seeds that both sides have"
        if table.rows
        else f"{words}What was compared",
        columns,
        rows,
        numeric=frozenset({4, 6}) if table.rows else frozenset(),
        marked=frozenset(marked),
    )


def _baseline_cell(baseline: ArmResults) -> str:
    if baseline.mean is None:
        return MISSING
    scatter = baseline.scatter
    spread = "" if scatter is None else f" ± {100 * scatter:.1f}"
    loss = f", loss {fmean(baseline.loss.values()):.3f}" if baseline.loss else ""
    return f"{_percent(baseline.mean)}{spread} ({_runs(baseline)}{loss})"


def _runs(arm: ArmResults) -> str:
    lost = len(arm.accuracy) - len(arm.values)
    return plural(len(arm.values), "run") + (f", {lost} without a result" if lost else "")


def _cells(each: AblationRow) -> list[str]:
    row = each.row
    accuracy = f"{_percent(each.before)} → {_percent(each.after)}"
    losses = (each.loss_before, each.loss_after)
    loss = ""
    if losses[0] is not None and losses[1] is not None:
        loss = f" ({losses[0]:.3f}{GAP}→{GAP}{losses[1]:.3f})"
    effect = MISSING if row.effect is None else points(row.effect)
    interval = "" if row.interval is None else " ({} to {})".format(*map(points, row.interval))
    seeds = MISSING if row.needed is None else f"{row.needed:,}"
    return [accuracy + loss, effect + interval, _p(row.adjusted), str(row.verdict), seeds]


def _p(value: float | None) -> str:
    if value is None:
        return MISSING
    return f"{value:.3f}" if value >= 0.001 else f"<{GAP}0.001"


def _percent(value: float | None) -> str:
    return MISSING if value is None else f"{100 * value:.1f}{GAP}%"
