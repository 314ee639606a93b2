"""The report as Markdown: read by a real parser, every text comes out as it went in."""

from __future__ import annotations

import re

import optuna
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from markdown_it.token import Token

from visweep.analysis.contents import figures, tables
from visweep.analysis.document import (
    Block,
    Columns,
    Command,
    Document,
    Folded,
    Paragraph,
    Section,
    Table,
    Tile,
    Tiles,
    note,
)
from visweep.analysis.markdown import to_markdown
from visweep.analysis.report import document

PARSER = MarkdownIt("gfm-like", {"linkify": False, "html": True}).enable("table")

WORDS = st.text(
    st.one_of(
        st.sampled_from("\\`*_[]<>|~&$!#+-=.:()1 \n\"'"),
        st.characters(codec="utf-8", exclude_categories=("C", "Z", "M")),
    ),
    min_size=1,
    max_size=30,
).filter(lambda text: text.strip() != "")


def of(*blocks: Block) -> Document:
    return Document("title", "", [], [Section("part", "Part", blocks)], "")


def texts(tokens: list[Token], kind: str) -> list[str]:
    """What a reader sees within each element of a kind."""
    found = []
    for i, token in enumerate(tokens):
        if token.type == f"{kind}_open":
            children = tokens[i + 1].children or []
            assert {c.type for c in children} <= {"text", "strong_open", "strong_close"}, children
            found.append("".join(c.content for c in children))
    return found


def plain(text: str) -> str:
    return " ".join(text.replace("\N{WORD JOINER}", "").split())


@given(WORDS)
@example("1. first")
@example("# heading")
@example("- item")
@example("+ item")
@example("===")
@example("> quoted")
@example("    indented")
@example("[//]: # (hidden)")
@example("&lt;script&gt; <b>bold</b> <!-- gone -->")
@example("a_b _c_ __d__ *e* ~~f~~ `g`")
@example("$x$ ![i](j) [k](l) a|b")
def test_a_paragraph_reads_as_it_was(text: str) -> None:
    parsed = PARSER.parse(to_markdown(of(Paragraph(text))))
    kinds = [t.type for t in parsed if t.level == 0 and not t.type.endswith("_close")]
    assert kinds == ["heading_open", "heading_open", "paragraph_open"] or kinds == [
        "heading_open", "inline", "heading_open", "inline", "paragraph_open", "inline",
    ]  # fmt: skip
    assert plain(texts(parsed, "paragraph")[0]) == plain(text)


@given(st.lists(WORDS, min_size=6, max_size=6))
def test_a_table_reads_as_it_was(cells: list[str]) -> None:
    block = Table("", cells[:2], [cells[2:4], cells[4:]], frozenset({1}), frozenset({0}))
    parsed = PARSER.parse(to_markdown(of(block)))
    expected = [plain(cell) for cell in cells]
    assert [plain(t) for t in texts(parsed, "th") + texts(parsed, "td")] == expected


@given(WORDS, WORDS)
@example("#", "one ##")
@example("one #two#", "#1 ## #")
def test_headings_read_as_they_were(title: str, section: str) -> None:
    written = to_markdown(Document(title, "", [], [Section("a", section, [])], ""))
    assert [plain(t) for t in texts(PARSER.parse(written), "heading")] == [
        plain(title),
        plain(section),
    ]


def test_addresses_and_names_become_no_links() -> None:
    text = "see https://example.org, www.example.org or @octocat"
    written = to_markdown(of(Paragraph(text)))
    # What GitHub looks for: a scheme, www. or @ and the beginning of a name.
    assert not re.search(r"https?:|www\.|@\w", written)
    assert plain(text) in plain(written)


def test_every_kind_of_block() -> None:
    table = Table("Numbers", ["a", "b"], [["x", "1"]], frozenset({1}))
    written = to_markdown(
        of(
            Paragraph("The result.", role="lead"),
            note("Careful."),
            Tiles([Tile("Best", "91 %", "trial 3")]),
            Command("Run:", "echo '```'"),
            Columns([table]),
            Folded("More <than> this", [Paragraph("inside")]),
        )
    )
    assert "**The result.**" in written
    assert "> Careful." in written
    assert "- Best: **91 %** (trial 3)" in written
    assert "````sh\necho '```'\n````" in written
    assert "**Numbers**\n\n| a | b |\n| --- | ---: |\n| x | 1 |" in written
    assert (
        "<details>\n<summary>More &lt;than&gt; this</summary>\n\ninside\n\n</details>" in written
    )
    unfolded = to_markdown(of(Folded("More", [Paragraph("inside")])), folded=False)
    assert "### More\n\ninside" in unfolded
    assert "<" not in unfolded


@pytest.fixture(scope="module")
def report(sweep: optuna.Study) -> Document:
    return document(sweep)


def test_figures_are_shown_where_they_lie(report: Document) -> None:
    written = to_markdown(report, "../my figures")
    shown = re.findall(r"!\[(?:[^]\\]|\\.)*\]\(([^)]*)\)", written)
    assert shown == [f"../my%20figures/{name}.png" for name in figures(report)]
    images = [t for token in PARSER.parse(written) for t in token.children or []]
    assert [t.attrs["src"] for t in images if t.type == "image"] == shown


def test_figures_that_lie_nowhere_are_told_in_words(report: Document) -> None:
    written = to_markdown(report)
    assert "![" not in written
    for figure in figures(report).values():
        assert figure.chart.title.split("_")[0] in written


def test_all_tables_are_there(report: Document) -> None:
    parsed = PARSER.parse(to_markdown(report))
    assert sum(t.type == "table_open" for t in parsed) == len(tables(report)) > 8
