"""The report's contents, read from the page as a browser's parser sees it."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import FrozenTrial, TrialState, create_trial

from visweep.analysis.report import build_report, write_report
from visweep.errors import UsageError

NewStudy = Callable[..., optuna.Study]
Attributes = dict[str, str | None]

VOID = {"meta", "link", "br", "img", "input", "hr"}
EIGHT_MEGABYTES = 8_000_000


@dataclass
class Element:
    tag: str
    attributes: Attributes
    text: str = ""


@dataclass
class Page(HTMLParser):
    """Every element of a page with the text that it holds, its descendants' included."""

    elements: list[Element] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()
        self._open: list[Element] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = Element(tag, dict(attrs))
        self.elements.append(element)
        if tag not in VOID:
            self._open.append(element)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop().tag == tag, f"unbalanced {tag}"

    def handle_data(self, data: str) -> None:
        for element in self._open:
            if element.tag not in ("html", "body") and "script" not in {
                e.tag for e in self._open if e is not element
            }:
                element.text += data

    def all(self, tag: str, **attributes: str) -> list[Element]:
        return [
            element
            for element in self.elements
            if element.tag == tag
            and all(
                value in (element.attributes.get(name.rstrip("_")) or "").split()
                for name, value in attributes.items()
            )
        ]

    def text(self, tag: str, **attributes: str) -> str:
        return plain(" ".join(element.text for element in self.all(tag, **attributes)))

    def section(self, anchor: str) -> str:
        return self.text("section", id=anchor)

    @property
    def charts(self) -> list[dict[str, Any]]:
        scripts = self.all("script", type="application/json")
        return [json.loads(s.text) for s in scripts if s.attributes.get("id") != "themes"]


def plain(text: str) -> str:
    return re.sub(r"\s+", " ", text.replace("\N{NO-BREAK SPACE}", " ")).strip()


def parse(html: str) -> Page:
    page = Page()
    page.feed(html)
    page.close()
    return page


@pytest.fixture(scope="module")
def html(sweep: optuna.Study) -> str:
    return build_report(sweep)


@pytest.fixture(scope="module")
def page(html: str) -> Page:
    return parse(html)


def trial_of(number: int, state: TrialState = TrialState.COMPLETE, **changes: Any) -> FrozenTrial:
    values: dict[str, Any] = {
        "params": {"x": number / 100, "n": number % 7},
        "distributions": {"x": FloatDistribution(0, 1), "n": IntDistribution(0, 6)},
    }
    if state == TrialState.COMPLETE:
        values["value"] = 0.5 + number / 100
    return create_trial(state=state, **{**values, **changes})


# What it says -----------------------------------------------------------------------------------


def test_the_lead_names_the_best_and_the_baseline(page: Page, sweep: optuna.Study) -> None:
    lead = page.text("p", class_="lead")
    best, baseline = sweep.best_trial, sweep.trials[0]
    assert f"Trial {best.number} is the best: {100 * sweep.best_value:.1f} %" in lead
    assert f"patch_size {best.params['patch_size']}" in lead
    assert f"trial 0, reached {100 * (baseline.value or 0):.1f} %" in lead
    difference = 100 * (sweep.best_value - (baseline.value or 0))
    assert f"the best lies {difference:.1f} points above it" in lead


def test_the_comparison_comes_with_a_caution(page: Page, sweep: optuna.Study) -> None:
    complete = sum(trial.state == TrialState.COMPLETE for trial in sweep.trials)
    note = page.text("p", class_="note")
    assert f"best of {complete} completed trials on the same validation data" in note
    assert "no claim of significance" in note


def test_counts_and_epochs_saved(page: Page, sweep: optuna.Study) -> None:
    header = page.text("header")
    finished = [t for t in sweep.trials if t.state != TrialState.FAIL]
    pruned = [t for t in finished if t.state == TrialState.PRUNED]
    spent = sum(t.user_attrs["epochs"] for t in finished)
    assert "50 of 50 trials finished" in header
    assert f"{50 - len(pruned)} completed and {len(pruned)} pruned; 1 more failed" in header
    assert f"ran {spent} epochs; without pruning it would have been 400" in header
    assert f"saved {100 * (1 - spent / 400):.0f} %" in header
    assert "vit on cluttered-digits · sampler tpe · pruner hyperband" in header
    assert "20 November 2026, 09:30 to 09:41 UTC" in header


def test_the_command_trains_the_best_again(page: Page, sweep: optuna.Study) -> None:
    best = sweep.best_trial.number
    command = f"visweep train --study vit-cluttered-digits --trial {best}"
    images = "--data-dir '/images of digits'"
    assert page.section("best").count(f"{command} {images}") == 1
    elsewhere = parse(build_report(sweep, ["--storage", "sqlite:///night.db"]))
    assert f"{command} --storage sqlite:///night.db {images}" in elsewhere.section("best")


def test_sections_in_order_with_a_link_each(page: Page) -> None:
    anchors = [section.attributes["id"] for section in page.all("section")]
    assert anchors == [
        "best",
        "history",
        "curves",
        "parallel",
        "slices",
        "importance",
        "budget",
        "trials",
        "specification",
        "environment",
    ]
    links = [link.attributes["href"] for link in page.all("a")]
    assert links == ["#content", *(f"#{anchor}" for anchor in anchors)]


def test_every_figure_has_contents(page: Page) -> None:
    assert len(page.charts) == 3 + 7 + 2
    for chart in page.charts:
        assert sum(len(trace.get("x", [])) for trace in chart["data"]) > 5
        assert "template" not in chart["layout"]


def test_training_curves_come_with_what_explains_them(
    new_study: Callable[..., optuna.Study], sweep: optuna.Study, page: Page
) -> None:
    trials = sweep.get_trials(deepcopy=True)[:20]
    reached = list(trials[0].intermediate_values.values())
    trials[0].set_user_attr("train_curves", {"plain": reached, "augmented": reached})
    curved = parse(build_report(new_study("curved", trials)))
    assert len(curved.charts) == len(page.charts) + 1
    assert "merely because it is measured while the training images" in curved.section("curves")
    assert "training images" not in page.section("curves")


def test_tables_hold_the_best_trials_and_the_space(page: Page, sweep: optuna.Study) -> None:
    trials = page.section("trials")
    assert f"1. trial {sweep.best_trial.number}" in trials
    assert "10. trial" in trials
    assert "failed: RuntimeError: out of disk 1" in page.section("budget")
    specification = page.section("specification")
    assert "lr real 0.0001 to 0.01, on a logarithmic scale" in specification
    assert "drop real 0 to 0.3, in steps of 0.05" in specification
    assert "patch_size choice 4, 8, 16" in specification
    assert "fingerprint 5f1c09aa72e3" in specification
    assert "num_classes 10 depth 6 (baseline; searched) block pre_norm" in specification


def test_numbers_are_rounded(page: Page) -> None:
    best = page.section("best")
    assert re.search(r"validation accuracy \d\d\.\d % \d\d\.\d %", best)
    assert re.search(r"time \d\d s", best)
    assert re.search(r"model parameters \d+ K \d+ K", best)
    assert re.search(r"peak memory \d+ MiB", best)
    assert not re.search(r"\d\.\d{7}", page.text("section"))


# How it is made ---------------------------------------------------------------------------------


def test_it_loads_nothing(html: str, page: Page) -> None:
    for element in page.elements:
        for name in ("src", "href", "action", "data", "poster", "srcset"):
            assert (element.attributes.get(name) or "#").startswith(("#", "data:"))
    assert "@import" not in page.text("style")
    assert "url(" not in page.text("style")
    assert html.count("plotly.js v") == 1
    assert len(html.encode()) < EIGHT_MEGABYTES


def test_the_policy_allows_the_two_scripts_and_nothing_else(page: Page) -> None:
    policy = next(m for m in page.all("meta") if m.attributes.get("http-equiv"))
    content = policy.attributes["content"] or ""
    allowed = re.findall(r"'sha256-([^']+)'", content)
    scripts = [s for s in page.all("script") if "type" not in s.attributes]
    digests = [hashlib.sha256(s.text.encode()).digest() for s in scripts]
    assert allowed == [base64.b64encode(digest).decode() for digest in digests]
    assert len(scripts) == 2
    assert content.startswith("default-src 'none'; script-src 'sha256-")


def test_it_can_be_read_without_seeing_and_without_a_mouse(page: Page) -> None:
    assert page.all("html")[0].attributes["lang"] == "en"
    assert len(page.all("h1")) == 1
    assert len(page.all("h2")) == len(page.all("section"))
    assert len(page.all("main")) == 1
    for table in page.all("table"):
        assert table.text
    assert len(page.all("caption")) == len(page.all("table"))
    for cell in page.all("th"):
        assert cell.attributes["scope"] in ("col", "row")
    for chart in page.all("div", class_="chart"):
        assert chart.attributes["role"] == "img"
        assert chart.attributes["tabindex"] == "0"
        assert len(chart.attributes["aria-label"] or "") > 40
    for region in page.all("div", role="region"):
        assert region.attributes["tabindex"] == "0"
        assert region.attributes["aria-label"]


def test_the_same_study_gives_the_same_page(html: str, sweep: optuna.Study) -> None:
    assert build_report(sweep) == html


# Unusual studies --------------------------------------------------------------------------------


def test_an_empty_study(new_study: NewStudy) -> None:
    page = parse(build_report(new_study("empty", [], budget=20)))
    assert "This study has no trials yet." in page.text("header")
    assert "0 of 20" in page.text("header")
    assert page.charts == []
    anchors = [section.attributes["id"] for section in page.all("section")]
    assert anchors[0] == "best"
    assert "budget" not in anchors, "nothing was spent"


def test_a_single_trial(new_study: NewStudy) -> None:
    page = parse(build_report(new_study("single", [trial_of(0)])))
    assert "The baseline, trial 0, is still the best: 50.0 %" in page.text("p", class_="lead")
    assert "the only one that completed" in page.text("header")
    assert len(page.charts) == 1 + 2
    assert "fewer than two" in page.section("parallel")
    assert "there is 1." in page.section("importance")


def test_all_pruned(new_study: NewStudy) -> None:
    pruned = [
        trial_of(i, TrialState.PRUNED, value=None, intermediate_values={1: i / 100})
        for i in range(12)
    ]
    page = parse(build_report(new_study("pruned", pruned)))
    assert "No trial has completed" in page.text("p", class_="lead")
    assert page.all("pre") == []
    assert "0 completed and 12 pruned" in page.text("header")
    assert len(page.charts) == 3 + 2 + 2


def test_only_failed(new_study: NewStudy) -> None:
    page = parse(build_report(new_study("failed", [trial_of(0, TrialState.FAIL)] * 3)))
    assert "; 3 more failed" in page.text("header")
    assert "No trial has reported a value yet." in page.section("history")
    assert "failed 3" in page.section("trials")


def test_a_slot_that_never_ran_is_no_failure(new_study: NewStudy) -> None:
    study = new_study("closed", [trial_of(0), create_trial(state=TrialState.WAITING)])
    study._storage.set_trial_state_values(study.trials[1]._trial_id, TrialState.FAIL)
    page = parse(build_report(study))
    assert "1 completed and 0 pruned." in page.text("header")


def test_while_it_runs(new_study: NewStudy) -> None:
    running = trial_of(1, TrialState.RUNNING, intermediate_values={1: 0.4})
    waiting = create_trial(state=TrialState.WAITING)
    page = parse(build_report(new_study("running", [trial_of(0), running, waiting], budget=3)))
    assert "1 of 3 trials finished" in page.text("header")
    assert "not finished: 1 running and 1 waiting." in page.text("header")


def test_a_pruned_baseline_gives_no_comparison(new_study: NewStudy) -> None:
    baseline = trial_of(0, TrialState.PRUNED, intermediate_values={1: 0.2})
    page = parse(build_report(new_study("pruned-baseline", [baseline, trial_of(1)])))
    assert "trial 0, gives no final value to compare with (pruned)" in page.text("header")
    assert "20.0 % when it was stopped" in page.section("best")


def test_a_study_of_another_tool(new_study: NewStudy) -> None:
    trials = [trial_of(i, value=10.0 - i) for i in range(12)]
    study = new_study("foreign", trials, is_sweep=False, direction="minimize")
    page = parse(build_report(study))
    assert "Trial 11 is the best: objective -1 with x 0.11 and n 4." in page.text("header")
    assert "%" not in page.text("p", class_="lead")
    assert "baseline" not in page.text("header")
    assert page.all("pre") == []
    assert "stores no specification" in page.section("specification")
    assert "x real 0 to 1" in page.section("specification")
    assert "Nothing is recorded." in page.section("environment")


def test_attributes_of_the_wrong_type_are_left_out(new_study: NewStudy) -> None:
    odd = {
        "val_loss": "high",
        "seconds": None,
        "epochs": True,
        "num_params": math.nan,
        "val_accuracy_per_seed": 0.5,
        "ended": 3,
        "peak_memory_bytes": 10**400,
    }
    study = new_study("odd", [trial_of(i, user_attrs=odd) for i in range(2)])
    study.set_user_attr("visweep:budget", "many")
    study.set_user_attr("visweep:specification", {"identity": {"space": {"x": "?"}, "data": 1}})
    page = parse(build_report(study))
    assert "2 trials finished" in page.text("header")
    assert "x – ?" in page.section("specification")
    assert "loss" not in page.section("best")


def test_several_seeds(new_study: NewStudy) -> None:
    seeds = {"val_accuracy_per_seed": [0.501, 0.52, 0.53]}
    study = new_study("seeds", [trial_of(i, user_attrs=seeds) for i in range(2)])
    page = parse(build_report(study))
    assert "one run (of 3 seeds)" in page.text("header")
    assert "50.1 % to 53.0 % over 3 seeds" in page.section("best")


def test_several_objectives_are_refused() -> None:
    study = optuna.create_study(directions=["maximize", "minimize"])
    with pytest.raises(UsageError, match="2 objectives"):
        build_report(study)


HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'{{ 7 * 7 }}"


def test_nothing_that_a_study_holds_becomes_markup(new_study: NewStudy) -> None:
    space: dict[str, BaseDistribution] = {
        HOSTILE: CategoricalDistribution([HOSTILE, "plain"]),
        "x": FloatDistribution(0, 1),
    }
    trials = [
        create_trial(
            value=0.5 + i / 100,
            params={HOSTILE: HOSTILE if i % 2 else "plain", "x": i / 20},
            distributions=space,
            intermediate_values={1: 0.4},
            user_attrs={"ended": HOSTILE, "device": HOSTILE},
        )
        for i in range(12)
    ]
    study = new_study(HOSTILE, trials)
    study.set_user_attr(
        "visweep:specification",
        {
            "identity": {"space": {HOSTILE: HOSTILE}, "model": {"kind": HOSTILE, HOSTILE: [1]}},
            "provenance": {HOSTILE: HOSTILE},
        },
    )
    page = parse(build_report(study))
    assert page.text("h1") == HOSTILE
    assert page.all("img") == []
    assert len([s for s in page.all("script") if "type" not in s.attributes]) == 2
    assert len(page.charts) == 3 + 2 + 2
    assert "{{ 7 * 7 }}" in page.section("specification")
    assert page.text("pre").startswith("visweep train --study '</script>")


def test_a_thousand_trials(thousand_trials: optuna.Study) -> None:
    begin = time.process_time()
    html = build_report(thousand_trials)
    assert time.process_time() - begin < 10
    assert len(html.encode()) < EIGHT_MEGABYTES
    assert "1,000 of 1,000 trials" in plain(html)


# The file ---------------------------------------------------------------------------------------


def test_the_file_is_replaced_as_a_whole(tmp_path: Path, html: str, sweep: optuna.Study) -> None:
    path = tmp_path / "report.html"
    path.write_text("old", encoding="utf-8")
    write_report(sweep, path)
    assert path.read_text(encoding="utf-8") == html
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.html"]


def test_a_failed_write_leaves_the_old_file(
    tmp_path: Path, sweep: optuna.Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "report.html"
    path.write_text("old", encoding="utf-8")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(UsageError, match=r"report\.html: No space left on device"):
        write_report(sweep, path)
    assert path.read_text(encoding="utf-8") == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.html"]


def test_a_missing_folder_is_named(tmp_path: Path, sweep: optuna.Study) -> None:
    with pytest.raises(UsageError, match=r"cannot write .*missing"):
        write_report(sweep, tmp_path / "missing" / "report.html")
