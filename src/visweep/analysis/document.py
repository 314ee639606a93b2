"""What a report is made of: sections of blocks, as data.

A block says what is to be read, not how it looks, so that the same report becomes a web page,
Markdown and CSV. A block's `kind` is the name of the macro that renders it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from visweep.analysis.figures.chart import Chart
from visweep.analysis.sheet import Sheet


@dataclass(frozen=True)
class Paragraph:
    """Plain text; a note is a remark in smaller type, a lead opens the report."""

    kind: ClassVar[str] = "paragraph"
    text: str
    role: str = ""
    """"" | "note" | "lead" """


def note(words: str) -> Paragraph:
    """A remark."""
    return Paragraph(words, role="note")


@dataclass(frozen=True)
class Tile:
    """One number that matters, with a few words around it."""

    label: str
    value: str
    detail: str


@dataclass(frozen=True)
class Tiles:
    """A row of numbers that matter."""

    kind: ClassVar[str] = "tiles"
    tiles: Sequence[Tile]


@dataclass(frozen=True)
class Command:
    """A command for the shell, as it is to be typed."""

    kind: ClassVar[str] = "command"
    label: str
    text: str


@dataclass(frozen=True)
class Table:
    """A table with a caption.

    Attributes:
        caption: what the table holds.
        columns: the header of each column.
        rows: the cells, as text, as many as there are columns; the first one names its row.
        numeric: the columns to align on the right.
        marked: the rows to emphasise.
        sheet: the same for machines; None where one of the document's own sheets holds it.
        stacked: whether on a narrow page each row becomes a block of its own, its cells under
            one another; else such a page scrolls the table.
    """

    kind: ClassVar[str] = "table"
    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    numeric: frozenset[int] = frozenset()
    marked: frozenset[int] = frozenset()
    sheet: Sheet | None = None
    stacked: bool = False


@dataclass(frozen=True)
class Columns:
    """Narrow tables, side by side where there is room."""

    kind: ClassVar[str] = "columns"
    tables: Sequence[Table]


@dataclass(frozen=True)
class Plot:
    """One figure with its caption."""

    kind: ClassVar[str] = "plot"
    chart: Chart


@dataclass(frozen=True)
class PlotGrid:
    """Small figures side by side under one caption."""

    kind: ClassVar[str] = "plot_grid"
    charts: Sequence[Chart]
    caption: str


@dataclass(frozen=True)
class Folded:
    """Blocks that are closed until the reader opens them."""

    kind: ClassVar[str] = "folded"
    summary: str
    blocks: Sequence[Block]


Block = Paragraph | Tiles | Command | Table | Columns | Plot | PlotGrid | Folded


@dataclass(frozen=True)
class Section:
    """A part of the report.

    Attributes:
        anchor: its name within the page: lower case, unique.
        title: its heading.
        blocks: its contents, in order.
    """

    anchor: str
    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Document:
    """A whole report.

    Attributes:
        title: its heading.
        subtitle: a line below it.
        opening: what stands before the first section.
        sections: its parts, in order.
        footer: a last line.
        sheets: what it holds for machines that no table shows whole, by a file's name without its
            suffix.
    """

    title: str
    subtitle: str
    opening: Sequence[Block]
    sections: Sequence[Section]
    footer: str
    sheets: Mapping[str, Sheet] = field(default_factory=dict)
