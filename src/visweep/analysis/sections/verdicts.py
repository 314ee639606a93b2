"""What changes of a configuration do: a forest plot of the verdicts, and the table behind it.

They are those of the study itself, where it compares configurations, or of the studies beside it
that were made of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from visweep import text
from visweep.analysis.ablation import AblationTable, ablation_table
from visweep.analysis.changes import (
    arms_sheet,
    cells,
    headings,
    left_out,
    lines,
    percent,
    remarks,
    runs,
    tally,
)
from visweep.analysis.document import Block, Paragraph, Plot, Section, Table, Tile, note
from visweep.analysis.figures.chart import NothingToDraw
from visweep.analysis.figures.forest import forest
from visweep.analysis.overview import Overview
from visweep.storage.specification import RACE, Specification

_MOST_TILES = 2
_TITLES = {
    "ablation": "the best configuration with one parameter set back to where the search began",
    "neighbours": "the best configuration with one parameter set to the values next to it",
}
_OF_ARMS = ("model", "accuracy", "loss")
_NUMERIC = frozenset({"pairs", "p", "needed"})


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
        blocks.append(Paragraph(" ".join(remarks(table))))
    return Section("verdicts", "Verdicts", blocks) if blocks else None


def ablation_section(overview: Overview) -> Section | None:
    """The changes one by one, with the runs that are missing; None where nothing is compared."""
    blocks: list[Block] = []
    for words, table in _tables(overview):
        blocks.append(_table(table, words))
        if lost := left_out(table):
            blocks.append(note(f"Runs that are left out. {'. '.join(lost)}."))
    if overview.others:
        more = text.listing(overview.others)
        blocks.append(note(f"Made of this study, too, each with a report of its own: {more}."))
    return Section("ablation", "Ablation", blocks) if blocks else None


def arm_tiles(table: AblationTable) -> list[Tile]:
    """What the baselines came to, and how many changes differ."""
    found = [
        Tile(each.name, percent(each.mean), runs(each)) for each in table.baselines[:_MOST_TILES]
    ]
    if table.rows:
        shown = sum(line.is_shown for line in lines(table))
        of = f"{shown} of {len(table.rows)}"
        found.append(Tile("Differences shown", of, "changes of a baseline"))
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
            yield f"Study {other.name}{_made_of(other, overview)}, {title}. ", table


def _made_of(other: Overview, overview: Overview) -> str:
    if other.source == overview.name:
        return ""
    return f" (made when this one was called {other.source})"


def _table(table: AblationTable, words: str) -> Table:
    shown = lines(table)
    called = headings(table)
    names = tuple(called) if table.rows else _OF_ARMS
    caption = "Before and after each change, over the seeds that both sides have"
    return Table(
        f"{words}{caption if table.rows else 'What was compared'}",
        [called[name] for name in names],
        [cells(line, names) for line in shown],
        numeric=frozenset(i for i, name in enumerate(names) if name in _NUMERIC),
        marked=frozenset(i for i, line in enumerate(shown) if line.is_shown),
        sheet=arms_sheet(table),
        stacked=bool(table.rows),
    )
