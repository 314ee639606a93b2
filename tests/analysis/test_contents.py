"""The figures and tables of a report as files: their names, and what tables become as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from datetime import datetime

import optuna
import plotly.graph_objects as go
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import FloatDistribution, IntDistribution
from optuna.trial import create_trial

from visweep.analysis.comma_separated import to_csv
from visweep.analysis.contents import figures, sheets
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
from visweep.analysis.sheet import Sheet, Value


def chart(title: str) -> Chart:
    return Chart(go.Figure(), title, "", "")


def table(caption: str) -> Table:
    return Table(caption, ["a"], [["1"]], sheet=Sheet(["a"], [[1]]))


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
    found = sheets(Document("t", "", [table("alone")], [Section("s", "S", blocks)], ""))
    assert list(found) == ["opening", "s-the-best-trials", "s-unnamed", "s-unnamed-2"]


def test_a_sheet_of_the_document_keeps_its_name() -> None:
    part = Section("s", "S", [table("alone")])
    document = Document("t", "", [], [part], "", sheets={"s": Sheet(["all"], [])})
    assert {name: list(sheet.columns) for name, sheet in sheets(document).items()} == {
        "s-alone": ["a"],
        "s": ["all"],
    }


@pytest.mark.parametrize("which", ["sweep", "comparison"])
def test_every_name_is_a_file_of_its_own(which: str, request: pytest.FixtureRequest) -> None:
    contents = document(request.getfixturevalue(which))
    for names in (list(figures(contents)), list(sheets(contents))):
        assert len({name.lower() for name in names}) == len(names) > 2
        assert all(set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789_-") for name in names)


@pytest.mark.parametrize("which", ["sweep", "comparison"])
def test_what_the_page_tables_a_sheet_holds(which: str, request: pytest.FixtureRequest) -> None:
    """All but those that show some of the trials: these stand in the sheet of all."""
    contents = document(request.getfixturevalue(which))
    blocks = [block for section in contents.sections for block in section.blocks]
    without = [b.caption for b in blocks if isinstance(b, Table) and b.sheet is None]
    assert all(c == "Measurements" or c.startswith("The best 10 of the") for c in without)
    for sheet in sheets(contents).values():
        assert all(len(row) == len(sheet.columns) for row in sheet.rows)
        assert len(set(sheet.columns)) == len(sheet.columns)


def as_csv(*columns: str, rows: Sequence[Sequence[Value]]) -> list[list[str]]:
    return list(csv.reader(io.StringIO(to_csv(Sheet(columns, rows)))))


@pytest.mark.parametrize(
    "text",
    ["=1+1", "@SUM(A1)", "+cmd|' /C calc'!A0", "-2+3", "-2 (x)+1", "--", "\t=1", "-cmd", "-1|x"],
)
def test_no_cell_is_a_formula(text: str) -> None:
    written = as_csv("name", text, rows=[[text, "5"]])
    assert written == [["name", f"'{text}"], [f"'{text}", "5"]]


@pytest.mark.parametrize("text", ["-0.2", "+1234", "-1.5e-05", "a=b", "1 000"])
def test_text_that_is_no_formula_stays_as_it_is(text: str) -> None:
    assert as_csv("name", rows=[[text]]) == [["name"], [text]]


@given(st.one_of(st.floats(allow_nan=False), st.integers()))
def test_a_number_is_read_back_as_it_was(number: float) -> None:
    ((_,), (written,)) = as_csv("x", rows=[[number]])
    assert type(number)(written) == number


def test_a_sheet_as_csv() -> None:
    written = as_csv("name", "a, b", rows=[['say "so"', None], ["two\nlines", True]])
    assert written == [["name", "a, b"], ['say "so"', ""], ["two\nlines", "True"]]


# All trials -------------------------------------------------------------------------------------


def read_back(study: optuna.Study) -> list[dict[str, str]]:
    written = to_csv(sheets(document(study))["trials"])
    return list(csv.DictReader(io.StringIO(written)))


MEASURED = (
    "val_loss", "train_accuracy", "epochs", "seconds", "images_per_second", "peak_memory_bytes",
    "num_params",
)  # fmt: skip


def test_all_trials_are_written_with_all_that_is_known(sweep: optuna.Study) -> None:
    rows, trials = read_back(sweep), sweep.get_trials()
    assert [int(row["trial"]) for row in rows] == [trial.number for trial in trials]
    assert len(rows) == 51, "the page shows the best ten"
    states = {row["state"] for row in rows}
    assert states == {"COMPLETE", "PRUNED", "FAIL"}
    for row, trial in zip(rows, trials, strict=True):
        assert row["state"] == trial.state.name
        for name, distribution in trial.distributions.items():
            value = trial.params[name]
            assert row[name] == str(value)
            if isinstance(distribution, FloatDistribution):
                assert float(row[name]) == value
        for name in MEASURED:
            known = trial.user_attrs.get(name)
            assert (float(row[name]) if row[name] else None) == known, name
        assert (float(row["val_accuracy"]) if row["val_accuracy"] else None) == trial.value
        assert row["ended"] == trial.user_attrs["ended"]
        seeds = trial.user_attrs.get("val_accuracy_per_seed", [])
        assert [float(each) for each in row["val_accuracy_per_seed"].split()] == seeds
        begun = trial.datetime_start
        assert (datetime.fromisoformat(row["begun_utc"]) if row["begun_utc"] else None) == begun
        host = trial.user_attrs.get("provenance", {}).get("host", "")
        assert row["host"] == host


def test_parameters_called_like_other_columns_are_kept_apart() -> None:
    study = optuna.create_study(study_name="theirs")
    space = {"epochs": IntDistribution(1, 9), "trial": IntDistribution(1, 9)}
    params = {"epochs": 7, "trial": 3}
    study.add_trial(create_trial(value=-2.5, params=params, distributions=dict(space)))
    (row,) = read_back(study)
    assert (row["param_epochs"], row["param_trial"], row["trial"]) == ("7", "3", "0")
    assert float(row["value"]) == -2.5
    assert "val_accuracy" not in row


def test_intervals_and_shares_are_numbers(sweep: optuna.Study) -> None:
    found = sheets(document(sweep))
    importance = next(sheet for name, sheet in found.items() if name.startswith("importance"))
    assert importance.columns[0] == "parameter"
    for column in range(1, len(importance.columns) - 1):
        shares = [row[column] for row in importance.rows]
        assert sum(float(s) for s in shares if isinstance(s, float)) == pytest.approx(1.0)
    spent = next(sheet for name, sheet in found.items() if name.startswith("budget"))
    assert list(spent.columns) == ["ending", "trials", "epochs", "worker_seconds"]
    assert sum(int(str(row[1])) for row in spent.rows) == 51
