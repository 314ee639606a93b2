"""The figures and tables of a report as files: their names, and what tables become as CSV."""

from __future__ import annotations

import csv
import io

import optuna
import plotly.graph_objects as go
import pytest

from visweep.analysis.comma_separated import to_csv
from visweep.analysis.contents import figures, tables
from visweep.analysis.document import (
    Columns,
    Document,
    Folded,
    Paragraph,
    Plot,
    PlotGrid,
    Section,
    Table,
)
from visweep.analysis.figures.chart import Chart
from visweep.analysis.report import document


def chart(title: str) -> Chart:
    return Chart(go.Figure(), title, "", "")


def table(caption: str) -> Table:
    return Table(caption, ["a"], [["1"]])


def test_names_follow_the_sections() -> None:
    slices = PlotGrid([chart("lr"), chart("num_heads"), chart("x1"), chart("x2")], "")
    part = Section("slices", "Slices", [slices, Folded("", [Plot(chart("LR"))])])
    single = Section("history", "History", [Paragraph("x"), Plot(chart("History"))])
    found = figures(Document("t", "", [], [single, part], ""))
    assert list(found) == [
        "history", "slices-lr", "slices-num_heads", "slices-x1", "slices-x2", "slices-lr-2",
    ]  # fmt: skip
    assert [figure.is_small for figure in found.values()] == [False, *[True] * 4, False]


def test_names_of_tables_do_not_change_with_numbers() -> None:
    blocks = [table("The best 10 trials"), Folded("", [Columns([table("../ / \\"), table("")])])]
    found = tables(Document("t", "", [table("alone")], [Section("s", "S", blocks)], ""))
    assert list(found) == ["opening", "s-the-best-trials", "s-unnamed", "s-unnamed-2"]


def test_every_name_is_a_file_of_its_own(sweep: optuna.Study) -> None:
    contents = document(sweep)
    for names in (list(figures(contents)), list(tables(contents))):
        assert len({name.lower() for name in names}) == len(names) > 8
        assert all(set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789_-") for name in names)


@pytest.mark.parametrize(
    "text",
    ["=1+1", "@SUM(A1)", "+cmd|' /C calc'!A0", "-2+3", "-2 (x)+1", "--", "\t=1", "-cmd", "−1|x"],
)
def test_no_cell_is_a_formula(text: str) -> None:
    written = list(csv.reader(io.StringIO(to_csv(Table("t", ["name", text], [[text, "5"]])))))
    plain = text.replace("−", "-")
    assert written == [["name", f"'{plain}"], [f"'{plain}", "5"]]


@pytest.mark.parametrize(
    "number",
    ["-0.2", "+1,234", "-1.5e-05", "+2.1 %", "-2.1 (-3.0 to -1.2)", "-0.3 points", "-inf", "a=b"],
)
def test_a_number_stays_one(number: str) -> None:
    rows = [[number], [number.replace("-", "−").replace(" ", "\N{NO-BREAK SPACE}")]]
    written = list(csv.reader(io.StringIO(to_csv(Table("t", ["name"], rows)))))
    assert written[1:] == [[number], [number]]


def test_a_table_as_csv() -> None:
    written = to_csv(
        Table(
            "t",
            ["name", "a, b"],
            [["x\N{NO-BREAK SPACE}1", "−0.2"], ['say "so"', "–"], ["two\nlines", "91.0 %"]],
        )
    )
    assert written.splitlines()[0] == 'name,"a, b"'
    assert list(csv.reader(io.StringIO(written)))[1:] == [
        ["x 1", "-0.2"],
        ['say "so"', ""],
        ["two\nlines", "91.0 %"],
    ]
