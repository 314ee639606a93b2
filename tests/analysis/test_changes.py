"""The table of a study of arms: the same cells and sentences wherever it is written."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from typing import Any

import optuna
import pytest
from rich.console import Console

from arms_studies import arms_of_report, run_of, runs_of_report, specification_of
from visweep.analysis.ablation import ablation_table
from visweep.analysis.changes import cells, headings, lines, over_seeds, remarks, tally
from visweep.analysis.comma_separated import to_csv
from visweep.analysis.contents import sheets
from visweep.analysis.document import Table
from visweep.analysis.markdown import escaped, to_markdown
from visweep.analysis.overview import read
from visweep.analysis.report import document
from visweep.analysis.sections.verdicts import ablation_section, table_of
from visweep.cli.verdicts import print_verdicts
from visweep.storage.specification import Specification

NewStudy = Callable[..., optuna.Study]
GAP = "\N{NO-BREAK SPACE}"


@pytest.fixture
def partly(new_study: NewStudy) -> optuna.Study:
    """Five seeds of the baselines, and of the changes as many as their place in the study: the
    first has none yet."""
    arms = arms_of_report()
    places = {name: place for place, name in enumerate(n for n in arms if ":" in n)}
    runs = [
        run for run in runs_of_report(5) if run.params["seed"] < places.get(run.params["arm"], 5)
    ]
    return new_study("partly", runs, specification=specification_of(arms), budget=40)


def table_in(study: optuna.Study) -> Table:
    section = ablation_section(read(study))
    assert section is not None
    return next(block for block in section.blocks if isinstance(block, Table))


def records(study: optuna.Study) -> dict[str, dict[str, str]]:
    """The rows of ablation.csv, by arm."""
    written = to_csv(sheets(document(study))["ablation"])
    return {row["arm"]: row for row in csv.DictReader(io.StringIO(written))}


def printed(study: optuna.Study, width: int) -> str:
    overview = read(study)
    out = io.StringIO()
    specification = Specification.from_stored(overview.specification)
    print_verdicts(Console(file=out, width=width), study.study_name, specification, study.trials)
    return out.getvalue()


@pytest.mark.parametrize("which", ["comparison", "partly"])
def test_page_markdown_and_terminal_say_the_same(
    which: str, request: pytest.FixtureRequest
) -> None:
    study: optuna.Study = request.getfixturevalue(which)
    table = table_of(read(study))
    assert table is not None
    terminal, markdown = printed(study, 200), to_markdown(document(study))
    page = table_in(study)
    assert list(page.columns) == list(headings(table).values())
    assert len(page.rows) == len(lines(table)) == 8
    for line, row in zip(lines(table), page.rows, strict=True):
        assert list(row) == cells(line, tuple(headings(table)))
        for cell in row[1:]:
            assert escaped(cell) in markdown
        shown = [row[i] for i in (1, 2, 4, 5, 6, 7)]
        if line.verdict is None:
            shown[0] = line.model
        (told,) = [
            written
            for written in terminal.splitlines()
            if [part.strip() for part in written.split("  ") if part.strip()]
            == [cell.replace(GAP, " ") for cell in shown if cell]
        ]
        assert told
    assert tally(table).replace(GAP, " ") in terminal


def test_a_table_under_way_tells_the_pairs_of_each_row(partly: optuna.Study) -> None:
    by_change = {row[1]: row for row in table_in(partly).rows}
    pairs = {change: row[4] for change, row in by_change.items() if change != "baseline"}
    # One of the runs with dropout diverged.
    assert list(pairs.values()) == ["0", "1", "2", "2", "4", "5"]
    assert by_change["block basic → late_relu"][5:] == ["–", "–", "not enough runs", "–"]
    opening = repr(document(partly).opening).replace("\\xa0", " ")
    assert "6 changes over 0 to 5 seeds each: " in opening
    assert "over 5 seeds" not in opening
    assert "25 of 40 trials finished" in opening
    table = table_of(read(partly))
    assert table is not None
    assert {n: len(e.row.seeds) for n, e in zip(pairs, table.rows, strict=True)} == {
        n: int(p) for n, p in pairs.items()
    }


def test_waiting_and_running_trials_are_told(new_study: NewStudy) -> None:
    arms = arms_of_report()
    study = new_study(
        "waiting", runs_of_report(1), specification=specification_of(arms), budget=16
    )
    study.enqueue_trial({"arm": "vit", "seed": 1})
    opening = repr(document(study).opening).replace("\\xa0", " ")
    assert "The study is not finished: 1 waiting." in opening


@pytest.mark.parametrize(
    ("counts", "words"),
    [
        ([], ""), ([0, 0], ""), ([5, 5], " over 5 seeds"), ([1], " over 1 seed"),
        ([3, 5, 4], " over 3 to 5 seeds each"), ([0, 1], " over 0 to 1 seed each"),
    ],
)  # fmt: skip
def test_over_how_many_seeds(counts: list[int], words: str) -> None:
    assert over_seeds(counts).replace(GAP, " ") == words


@pytest.mark.parametrize("which", ["comparison", "partly"])
def test_the_csv_holds_the_numbers_themselves(which: str, request: pytest.FixtureRequest) -> None:
    study: optuna.Study = request.getfixturevalue(which)
    found = records(study)
    table = table_of(read(study))
    assert table is not None
    assert list(found) == [arm.name for arm in table.arms]
    for each in table.rows:
        row = found[each.changed.name]
        low, high = each.row.interval or (None, None)
        expected: dict[str, Any] = {
            "effect_points": each.row.effect,
            "effect_low_points": low,
            "effect_high_points": high,
            "p": each.row.p,
            "p_adjusted": each.row.adjusted,
            "val_accuracy_before": each.before,
            "val_accuracy_after": each.after,
            "pairs": len(each.row.seeds),
        }
        assert {n: float(row[n]) if row[n] else None for n in expected} == expected
        assert row["verdict"] == each.row.verdict
        assert row["baseline"] == each.baseline.name
    for arm in table.baselines:
        assert float(found[arm.name]["val_accuracy"]) == arm.mean
        assert found[arm.name]["effect_points"] == ""


def test_the_terminal_is_readable_at_80_columns(comparison: optuna.Study) -> None:
    shown = printed(comparison, 80)
    table = shown[: shown.index("vit: drop=0.2: ")].splitlines()
    assert max(map(len, table)) <= 80
    for words in ("patch_size", "preadd_relu", "+5.3 (+4.6 to +6.0)", "no difference", "< 0.001"):
        assert any(words in line for line in table), words


def test_arms_without_changes_are_told_by_how_many_runs_they_have(new_study: NewStudy) -> None:
    arms = {name: arm for name, arm in arms_of_report().items() if ":" not in name}
    runs = [run_of(arms, "vit", seed, 0.5) for seed in range(3)]
    runs.append(run_of(arms, "convnet", 0, 0.8))
    study = new_study("unequal", runs, specification=specification_of(arms))
    words = repr(document(study).opening).replace("\\xa0", " ")
    assert "2 configurations over 1 to 3 seeds each; the highest mean" in words
    specification = Specification.from_stored(study.user_attrs["visweep:specification"])
    said = " ".join(remarks(ablation_table(specification, runs)))
    assert said.endswith("points (one standard error).")
