"""A report as Markdown in GitHub's flavour, for a pull request or the note of a study.

Text is escaped, so that nothing that a study contains becomes markup.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any
from urllib.parse import quote

from visweep.analysis.contents import figures
from visweep.analysis.document import (
    Block,
    Columns,
    Command,
    Document,
    Folded,
    Paragraph,
    Plot,
    PlotGrid,
    Section,
    Table,
    Tiles,
)
from visweep.analysis.figures.chart import Chart

# What means something anywhere in a line; an underscore within a word does not.
_SIGNS = re.compile(r"[\\`*\[\]<>|~&$!]|(?<![^\W_])_|_(?![^\W_])")
# What would make a paragraph a heading or a list, up to the sign to escape.
_AT_THE_BEGINNING = re.compile(r"^(\d{1,9}(?=[.)](?:\s|$))|(?=[-=#])|(?=\+(?:\s|$)))")
_CLOSING = re.compile(r"(?<!\S)#+$")
"""What would only end a heading."""
_LINK_OF_ITSELF = re.compile(r"(?<=http)(?=s?:)|(?<=ftp)(?=:)|(?<=www)(?=\.)|(?<=@)(?=\w)", re.I)
"""Where an address, or the name of a user, would become a link without any markup."""
_NOTHING = "\N{WORD JOINER}"


def to_markdown(document: Document, folder: str | None = None, *, folded: bool = True) -> str:
    """The report as Markdown.

    Args:
        document: the report.
        folder: where its figures lie as PNG under the names of `contents.figures`, as a path
            relative to the Markdown file; None for none, and then each is told in words.
        folded: whether the page that shows it understands `<details>`.
    """
    addresses = {}
    if folder is not None:
        names = figures(document).items()
        addresses = {id(figure.chart): _address(folder, name) for name, figure in names}
    return _Writer(addresses, folded).document(document)


def _address(folder: str, name: str) -> str:
    within = "" if folder in ("", ".") else f"{folder.rstrip('/')}/"
    return quote(f"{within}{name}.png")


def escaped(text: str) -> str:
    """Text within a line, so that it is read as it is."""
    signs = _SIGNS.sub(r"\\\g<0>", " ".join(text.split()))
    return _LINK_OF_ITSELF.sub(_NOTHING, signs)


def _begun(text: str) -> str:
    """The text of a paragraph, which what it begins with makes no heading and no list."""
    return _AT_THE_BEGINNING.sub(r"\1\\", escaped(text))


def _headed(text: str) -> str:
    """The text of a heading."""
    return _CLOSING.sub(r"\\\g<0>", escaped(text))


@dataclass(frozen=True)
class _Writer:
    """Writes blocks, each as a paragraph or several.

    Attributes:
        addresses: of the figures, by their `id`.
        folded: whether `<details>` is understood.
    """

    addresses: Mapping[int, str]
    folded: bool
    _by_kind: Mapping[type, Callable[[Any], Iterator[str]]] = field(init=False)

    def __post_init__(self) -> None:
        written = {
            Paragraph: self._paragraph,
            Tiles: self._tiles,
            Command: self._command,
            Table: self._table,
            Columns: self._columns,
            Plot: self._plot,
            PlotGrid: self._plot_grid,
            Folded: self._folded,
        }
        object.__setattr__(self, "_by_kind", written)

    def document(self, document: Document) -> str:
        parts = [f"# {_headed(document.title)}"]
        if document.subtitle:
            parts.append(_begun(document.subtitle))
        parts += self._blocks(document.opening)
        for section in document.sections:
            parts += self._section(section)
        return "\n\n".join(part for part in parts if part) + "\n"

    def _section(self, section: Section) -> Iterator[str]:
        yield f"## {_headed(section.title)}"
        yield from self._blocks(section.blocks)

    def _blocks(self, blocks: Sequence[Block]) -> Iterator[str]:
        for block in blocks:
            yield from self._by_kind[type(block)](block)

    def _paragraph(self, block: Paragraph) -> Iterator[str]:
        text = _begun(block.text)
        yield {"lead": f"**{text}**", "note": f"> {text}"}.get(block.role, text) if text else ""

    def _tiles(self, block: Tiles) -> Iterator[str]:
        yield "\n".join(
            f"- {escaped(tile.label)}: **{escaped(tile.value)}** ({escaped(tile.detail)})"
            for tile in block.tiles
        )

    def _command(self, block: Command) -> Iterator[str]:
        yield _begun(block.label)
        longest = max((len(run) for run in re.findall("`+", block.text)), default=0)
        fence = "`" * max(3, longest + 1)
        yield f"{fence}sh\n{block.text}\n{fence}"

    def _table(self, block: Table) -> Iterator[str]:
        ruler = ["---:" if i in block.numeric else "---" for i in range(len(block.columns))]
        lines = [_row([escaped(column) for column in block.columns]), _row(ruler)]
        for index, row in enumerate(block.rows):
            first, *others = (escaped(cell) for cell in row)
            marked = index in block.marked and first
            lines.append(_row([f"**{first}**" if marked else first, *others]))
        if block.caption:
            yield f"**{escaped(block.caption)}**"
        yield "\n".join(lines)

    def _columns(self, block: Columns) -> Iterator[str]:
        yield from self._blocks(block.tables)

    def _plot(self, block: Plot) -> Iterator[str]:
        yield self._figure(block.chart)
        yield _begun(block.chart.caption)

    def _plot_grid(self, block: PlotGrid) -> Iterator[str]:
        shown = [self._figure(chart) for chart in block.charts]
        # Images flow side by side where there is room; words need a line each.
        yield ("\n" if self.addresses else "\n\n").join(shown)
        yield _begun(block.caption)

    def _figure(self, chart: Chart) -> str:
        words = f"{chart.title}. {chart.summary}"
        address = self.addresses.get(id(chart))
        return _begun(words) if address is None else f"![{escaped(words)}]({address})"

    def _folded(self, block: Folded) -> Iterator[str]:
        summary = escaped(block.summary)
        if not self.folded:
            yield f"### {summary}"
            yield from self._blocks(block.blocks)
            return
        yield f"<details>\n<summary>{_as_html(block.summary)}</summary>"
        yield from self._blocks(block.blocks)
        yield "</details>"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _as_html(text: str) -> str:
    return escape(" ".join(text.split()))
