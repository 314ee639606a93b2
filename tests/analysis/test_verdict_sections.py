"""What a report says of changes over paired seeds, in a study of arms and beside a search."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import optuna
import plotly.graph_objects as go
import pytest

from arms_studies import arms_of_report, noise, run_of, runs_of_report, specification_of
from visweep.analysis.ablation import ablation_table
from visweep.analysis.document import Plot, Section, Table
from visweep.analysis.figures.chart import NothingToDraw
from visweep.analysis.figures.forest import forest
from visweep.analysis.overview import read
from visweep.analysis.report import build_report, document
from visweep.analysis.sections.verdicts import ablation_section, table_of, verdicts_section
from visweep.config import TrainConfig, ViTConfig
from visweep.search.arms import changed
from visweep.storage.specification import OF, Arm, Specification

NewStudy = Callable[..., optuna.Study]


def plain(words: object) -> str:
    return repr(words).replace("\\xa0", " ").replace("\N{NO-BREAK SPACE}", " ")


def verdicts_of(study: optuna.Study) -> Section:
    section = verdicts_section(read(study))
    assert section is not None
    return section


def figure_of(section: Section) -> go.Figure:
    return next(block.chart.figure for block in section.blocks if isinstance(block, Plot))


def table_in(study: optuna.Study) -> Table:
    section = ablation_section(read(study))
    assert section is not None
    return next(block for block in section.blocks if isinstance(block, Table))


def test_each_change_stands_with_its_interval_and_verdict(comparison: optuna.Study) -> None:
    table = table_of(read(comparison))
    assert table is not None
    figure = figure_of(verdicts_of(comparison))
    drawn = {}
    for trace in figure.data:
        for x, up, down in zip(
            trace.x, trace.error_x.array, trace.error_x.arrayminus, strict=True
        ):
            drawn[round(x, 6)] = (trace.name, round(x - down, 6), round(x + up, 6))
    expected = {}
    for each in table.rows:
        assert each.row.effect is not None
        assert each.row.interval is not None
        low, high = each.row.interval
        expected[round(each.row.effect, 6)] = (
            str(each.row.verdict),
            round(low, 6),
            round(high, 6),
        )
    assert drawn == expected
    assert len({name for name, _, _ in drawn.values()}) > 1
    symbols = [trace.marker.symbol for trace in figure.data]
    assert len(set(symbols)) == len(symbols), "told apart without colours, too"
    low, high = figure.layout.xaxis.range
    assert all(low <= a <= b <= high for _, a, b in drawn.values())
    assert len(figure.layout.shapes) == len(table.rows) + 1


def test_changes_are_grouped_by_their_baseline(comparison: optuna.Study) -> None:
    notes = figure_of(verdicts_of(comparison)).layout.annotations
    from_the_top = [note.text for note in sorted(notes, key=lambda note: -note.y)]
    assert from_the_top == [
        "<b>convnet: 79.7\N{NO-BREAK SPACE}%</b>",
        "block basic → late_relu",
        "block basic → preadd_relu",
        "<b>vit: 51.7\N{NO-BREAK SPACE}%</b>",
        "block pre_norm → post_norm",
        "drop 0 → 0.2",
        "patch_size 32 → 16",
        "depth 16 → 24",
    ]


def test_the_words_beside_it(comparison: optuna.Study) -> None:
    words = plain(verdicts_of(comparison))
    assert "6 changes over 4 to 5 seeds each: " in words
    assert "The p-value alone decides a verdict: below 0.05 after Holm" in words
    assert "With 4 to 5 seeds, an effect of " in words
    assert "would have been shown in 4 of 5 studies." in words
    assert "To show an effect of 1 point in 4 of 5 studies would take about" in words
    assert "Other validation images would move an accuracy by about ±0.4 points" in words
    assert "both sides of a row mostly alike" in words


def test_the_table_in_the_form_of_the_report(comparison: optuna.Study) -> None:
    table = table_in(comparison)
    assert list(table.columns) == [
        "model",
        "change",
        "validation accuracy",
        "loss",
        "pairs",
        "points (95 %)",
        "p (Holm)",
        "verdict",
        "seeds to show 1\N{NO-BREAK SPACE}point",
    ]
    by_change = {(row[0], row[1]): row[2:] for row in table.rows}
    assert len(by_change) == 8
    patch = [
        cell.replace("\N{NO-BREAK SPACE}", " ") for cell in by_change["vit", "patch_size 32 → 16"]
    ]
    assert patch[:3] == ["51.7 % → 57.0 %", "1.383 → 1.330", "5"]
    assert patch[3].startswith("+5.")
    assert patch[3].endswith(")")
    assert patch[5] == "better"
    assert by_change["convnet", "baseline"][0].endswith("runs)")
    assert {table.rows[i][7] for i in table.marked} <= {"better", "worse"}
    judged = table_of(read(comparison))
    assert judged is not None
    told = [row[8] for row in table.rows if row[1] != "baseline"]
    assert told == [str(each.row.needed) for each in judged.rows]


def test_runs_without_a_result_are_named(comparison: optuna.Study) -> None:
    words = plain(ablation_section(read(comparison)))
    assert "vit: drop=0.2: " in words
    assert "seed 1 (changed diverged at epoch 2) is left out." in words


def test_the_report_of_such_a_study_leaves_out_what_is_for_searches(
    comparison: optuna.Study,
) -> None:
    found = document(comparison)
    assert [section.anchor for section in found.sections] == [
        "verdicts",
        "ablation",
        "curves",
        "budget",
        "trials",
        "specification",
        "environment",
    ]
    assert "8 configurations on fashion-mnist · over paired seeds" in plain(found.subtitle)
    opening = plain(found.opening)
    assert "6 changes over 4 to 5 seeds each: " in opening
    assert "Tile(label='vit', value='51.7 %', detail='5 runs')" in opening
    assert "40 of 40 trials finished: 39 completed and 1 pruned." in opening
    assert "baseline, trial 0" not in opening
    assert "<html" in build_report(comparison)


def test_a_search_shows_what_was_made_of_it(new_study: NewStudy, sweep: optuna.Study) -> None:
    assert verdicts_section(read(sweep)) is None
    assert ablation_section(read(sweep)) is None
    search = new_study("night", sweep.get_trials()[:12])
    model, train = ViTConfig(patch_size=8), TrainConfig()
    baseline = Arm(model=model, train=train)
    arms = {"trial 7": baseline, **changed("trial 7", baseline, [{"depth": 2}, {"drop": 0.1}])}
    for kind in ("ablation", "neighbours"):
        runs = [
            run_of(arms, name, seed, 0.6 + 0.01 * seed + 0.02 * place * (1 + seed / 9))
            for seed in range(3)
            for place, name in enumerate(arms)
        ]
        new_study(
            f"night-{kind}",
            runs,
            beside=search,
            specification=specification_of(arms),
            attributes={OF: {"study": "night", "kind": kind}},
        )
    words = plain(verdicts_of(search))
    assert "Study night-ablation, the best configuration with one parameter set back" in words
    assert "Study night-neighbours" in words
    assert table_in(search).rows[1][1] == "depth 6 → 2"
    anchors = [section.anchor for section in document(search).sections]
    assert anchors[:4] == ["best", "verdicts", "ablation", "history"]


def test_no_run_of_a_comparison_is_called_the_best(
    comparison: optuna.Study, new_study: NewStudy
) -> None:
    """It is the luckiest one."""
    curves = next(s for s in document(comparison).sections if s.anchor == "curves")
    drawn = [trace.name for trace in figure_of(curves).data if trace.visible is not False]
    assert drawn[-2:] == ["convnet, one run", "vit, one run"]
    assert not {"best", "baseline"} & set(drawn)
    arm = Arm(model=ViTConfig(), train=TrainConfig())
    arms = {"trial 3": arm, "trial 4": arm}
    runs = [run_of(arms, name, 0, 0.5) for name in arms]
    raced = new_study("as-a-race", runs, specification=specification_of(arms))
    curves = next(s for s in document(raced).sections if s.anchor == "curves")
    shown = [trace.name for trace in figure_of(curves).data if trace.visible is not False]
    assert shown == ["completed"], "no arm stands out of a race"


def test_before_there_is_a_pair(new_study: NewStudy) -> None:
    arms = arms_of_report()
    study = new_study("begun", [run_of(arms, "vit", 0, 0.5)], specification=specification_of(arms))
    words = plain(verdicts_of(study))
    assert "6 without enough runs to tell" in words
    assert "No change has a run that is paired with one of its baseline yet." in words
    assert table_in(study).rows[1][-2:] == ["not enough runs", "–"]
    empty = new_study("empty-arms", [], specification=specification_of(arms), budget=8)
    assert "0 of 8 trials finished" in plain(document(empty).opening)


def test_one_seed_has_an_effect_and_no_verdict(new_study: NewStudy) -> None:
    study = new_study("one", runs_of_report(1), specification=specification_of(arms_of_report()))
    figure = figure_of(verdicts_of(study))
    shown = {trace.name: len(trace.x) for trace in figure.data if trace.visible}
    assert shown == {"not enough runs": 6}
    assert len(figure.layout.shapes) == 1, "no band, since nothing is known of the scatter"


def test_arms_without_changes_have_no_verdicts(new_study: NewStudy) -> None:
    arm = Arm(model=ViTConfig(), train=TrainConfig())
    arms = {"trial 3": arm, "trial 4": arm}
    runs = [run_of(arms, name, 0, 0.5 + 0.1 * i) for i, name in enumerate(arms)]
    study = new_study("plain-arms", runs, specification=specification_of(arms))
    assert verdicts_section(read(study)) is None
    assert [row[0] for row in table_in(study).rows] == ["trial 3", "trial 4"]
    assert "the highest mean is that of trial 4, 60.0 %" in plain(document(study).opening)


def test_an_effect_far_beyond_the_others_leaves_them_readable(new_study: NewStudy) -> None:
    arms = arms_of_report()
    runs = [
        run_of(arms, name, seed, 0.5 + 0.01 * noise(name, seed) - 0.4 * ("post_norm" in name))
        for seed in range(5)
        for name in arms
    ]
    study = new_study("collapsed", runs, specification=specification_of(arms))
    figure = figure_of(verdicts_of(study))
    low, high = figure.layout.xaxis.range
    assert -5 < low < 0 < high < 5
    assert all(low <= x <= high for trace in figure.data for x in trace.x)
    (cut,) = [a.text for a in figure.layout.annotations if "←" in a.text]
    assert re.fullmatch(r"← −(39|40|41)\.\d\spoints", cut)


def test_a_row_that_scatters_alone_is_named_and_decides_no_number(new_study: NewStudy) -> None:
    arms = arms_of_report()
    runs = [
        run_of(
            arms, name, seed, 0.5 + (0.05 if "post_norm" in name else 0.004) * noise(name, seed)
        )
        for seed in range(5)
        for name in arms
    ]
    study = new_study("one-scatters", runs, specification=specification_of(arms))
    told = {row[1]: row[8] for row in table_in(study).rows if row[1] != "baseline"}
    wide = int(told.pop("block pre_norm → post_norm"))
    others = sorted(map(int, told.values()))
    assert wide > 20 * others[-1]
    words = plain(verdicts_of(study))
    assert re.search(rf"; by the row, {others[0]} to {others[-1]}; but {wide} for vit: bl", words)


def test_names_are_escaped(new_study: NewStudy) -> None:
    arm = Arm(model=ViTConfig(), train=TrainConfig())
    arms = {"<i>x": arm, "y": Arm(model=ViTConfig(depth=2), train=TrainConfig(), against="<i>x")}
    runs = [
        run_of(arms, name, s, 0.5 + 0.1 * s + 0.03 * s * i)
        for s in range(2)
        for i, name in enumerate(arms)
    ]
    study = new_study("hostile-arms", runs, specification=specification_of(arms))
    assert "<i>" not in str(figure_of(verdicts_of(study)).to_plotly_json())


def test_nothing_to_draw_is_said() -> None:
    arms: dict[str, Any] = arms_of_report()
    table = ablation_table(Specification.from_stored(specification_of(arms)), [])
    with pytest.raises(NothingToDraw, match=r"yet\.$"):
        forest(table)
