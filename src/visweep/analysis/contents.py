"""The figures and the sheets of a report, each with the name of the file that it becomes."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import TypeVar

from visweep.analysis.document import (
    Block,
    Columns,
    Document,
    Folded,
    Plot,
    PlotGrid,
    Table,
)
from visweep.analysis.figures.chart import Chart
from visweep.analysis.sheet import Sheet

OPENING = "opening"
"""What the part before the first section is called among files."""
_LONGEST = 40
"""Of the words of a title that name a file, unless a single one is longer."""


@dataclass(frozen=True)
class Figure:
    """A figure of a report.

    Attributes:
        chart: the figure.
        is_small: whether it stands beside others.
    """

    chart: Chart
    is_small: bool


Part = TypeVar("Part", Figure, Table)


def figures(document: Document) -> dict[str, Figure]:
    """Every figure, by a file name without its suffix, in the order of the report.

    A section's only figure is called after the section.
    """
    found: dict[str, Figure] = {}
    for anchor, blocks in _parts(document):
        there = list(_figures(blocks))
        _add(found, anchor, there, [_as_name(figure.chart.title) for figure in there])
    return found


def sheets(document: Document) -> dict[str, Sheet]:
    """Every sheet, by a file name without its suffix: those of the tables, then the document's."""
    found = {
        name: table.sheet for name, table in tables(document).items() if table.sheet is not None
    }
    return {**found, **document.sheets}


def tables(document: Document) -> dict[str, Table]:
    """Every table, by the name of its sheet's file, in the order of the report.

    A section's only table is called after the section, if none of the document's own sheets is.
    """
    found: dict[str, Table] = {}
    for anchor, blocks in _parts(document):
        there = list(_tables(blocks))
        # Numbers in a caption change from one day to the next.
        names = [_as_name(re.sub(r"\d", "", t.caption)) for t in there]
        _add(found, anchor, there, names, taken=document.sheets.keys())
    return found


def _add(
    found: dict[str, Part],
    anchor: str,
    parts: Sequence[Part],
    names: list[str],
    taken: Collection[str] = (),
) -> None:
    for part, own in zip(parts, names, strict=True):
        is_alone = len(parts) == 1 and anchor not in taken
        wanted = anchor if is_alone else f"{anchor}-{own}"
        endings = (f"-{n}" for n in count(2))
        name = wanted
        while name in found:
            name = wanted + next(endings)
        found[name] = part


def _as_name(title: str) -> str:
    """A title as part of a file name: its first words, in lower case."""
    name = ""
    for word in re.findall(r"\w+", title.lower()):
        if name and len(name) + len(word) >= _LONGEST:
            break
        name = f"{name}-{word}" if name else word
    return name[:100] or "unnamed"


def _parts(document: Document) -> Iterator[tuple[str, Sequence[Block]]]:
    yield OPENING, document.opening
    for section in document.sections:
        yield section.anchor, section.blocks


def _figures(blocks: Iterable[Block]) -> Iterator[Figure]:
    for block in _unfolded(blocks):
        if isinstance(block, Plot):
            yield Figure(block.chart, is_small=False)
        elif isinstance(block, PlotGrid):
            yield from (Figure(chart, is_small=True) for chart in block.charts)


def _tables(blocks: Iterable[Block]) -> Iterator[Table]:
    for block in _unfolded(blocks):
        if isinstance(block, Table):
            yield block
        elif isinstance(block, Columns):
            yield from block.tables


def _unfolded(blocks: Iterable[Block]) -> Iterator[Block]:
    for block in blocks:
        if isinstance(block, Folded):
            yield from _unfolded(block.blocks)
        else:
            yield block
