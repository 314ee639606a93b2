"""The report in a real browser: it opens from a file, complains of nothing and draws all figures.

The page's policy forbids every load, and the browser reports a forbidden one on its console, so
that a silent console also means that nothing was asked of the network.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import re
import shutil
import subprocess
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import choreographer
import optuna
import pytest
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from arms_studies import run_of, specification_of
from race_studies import LAST, NAMES, add_race
from visweep.analysis.pruning import SAMPLE, Sample, arm_of
from visweep.analysis.report import build_report, write_report
from visweep.config import TrainConfig, ViTConfig
from visweep.search.arms import changed
from visweep.storage.specification import OF, Arm
from visweep.training.shift import Layer, Robustness

NewStudy = Callable[..., optuna.Study]

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
BROWSER = next((path for name in BROWSERS if (path := shutil.which(name))), None)

FLAGS = (
    "--headless",
    "--disable-gpu",
    "--disable-quic",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
    "--virtual-time-budget=10000",
    "--enable-logging=stderr",
    *(["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []),
)

pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome is installed")


@dataclass(frozen=True)
class Loaded:
    """A page after its scripts ran: the document as HTML, and what the console said."""

    dom: str
    console: list[str]

    @property
    def drawn(self) -> list[str]:
        """The markup of each figure that was drawn, from its element to the next."""
        figures = self.dom.split('<div class="chart')[1:]
        return [f for f in figures if "js-plotly-plot" in f[:100] and "main-svg" in f]


def load(page: Path, profile: Path, *flags: str) -> Loaded:
    command = [str(BROWSER), *FLAGS, *flags, f"--user-data-dir={profile}", page.as_uri()]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    console = [line for line in result.stderr.splitlines() if "CONSOLE" in line]
    return Loaded(result.stdout, console)


@pytest.fixture(scope="module")
def report(sweep: optuna.Study, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    write_report(sweep, path)
    return path


@pytest.fixture(scope="module")
def arms_report(comparison: optuna.Study, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("arms") / "report.html"
    write_report(comparison, path)
    return path


SHIFTED = Robustness(
    pixels=tuple(range(9)),
    accuracy=tuple(0.9 - 0.05 * pixels for pixels in range(9)),
    invariance=tuple(0.1 * pixels for pixels in range(9)),
    layers=(Layer("embedding", 4, 0.2, 0.7), Layer("block 1", 4, 0.3, 0.8)),
)


@pytest.fixture(scope="module")
def whole_report(
    sweep: optuna.Study, new_study: NewStudy, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Of a search of which all was made that can be, with every section there is."""
    trials = sweep.get_trials(deepcopy=True)
    for trial in trials:
        if reached := list(trial.intermediate_values.values()):
            curves = {"plain": reached, "augmented": [value - 0.03 for value in reached]}
            trial.set_user_attr("train_curves", curves)
    trials[0].set_user_attr("shift", SHIFTED.to_json())
    search = new_study("night", trials)
    add_ablation(search, new_study)
    add_race(search, {name: 1.5 * place for place, name in enumerate(NAMES)}, LAST, test=True)
    add_reruns(search, new_study)
    path = tmp_path_factory.mktemp("whole") / "report.html"
    write_report(search, path)
    return path


def add_ablation(search: optuna.Study, new_study: NewStudy) -> None:
    baseline = Arm(model=ViTConfig(patch_size=8), train=TrainConfig())
    arms = {"trial 7": baseline, **changed("trial 7", baseline, [{"depth": 2}, {"drop": 0.1}])}
    runs = [
        run_of(arms, name, seed, 0.6 + 0.01 * seed + 0.02 * place * (1 + seed / 9))
        for seed in range(3)
        for place, name in enumerate(arms)
    ]
    kept = {OF: {"study": search.study_name, "kind": "ablation"}}
    new_study(
        "night-ablation",
        runs,
        beside=search,
        specification=specification_of(arms),
        attributes=kept,
    )


def add_reruns(search: optuna.Study, new_study: NewStudy) -> None:
    pruned = [t.number for t in search.get_trials() if t.state == TrialState.PRUNED]
    sample = Sample(tuple(pruned[:2]), tuple(pruned[2:5]), len(pruned) - 2)
    arms = [arm_of(number) for number in sample.numbers]
    runs: list[FrozenTrial] = [run_of(arms, arm, 0, 0.7) for arm in arms]
    kept = {OF: {"study": search.study_name, "kind": "pruned"}, SAMPLE: sample.to_json()}
    new_study("night-pruned", runs, beside=search, attributes=kept)


@pytest.fixture(scope="module")
def loaded(report: Path, tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    return load(report, tmp_path_factory.mktemp("profile"), "--dump-dom")


def test_the_console_stays_silent(loaded: Loaded) -> None:
    assert loaded.console == []


def test_the_console_is_heard(tmp_path: Path) -> None:
    """The test above would also pass if messages were lost."""
    page = tmp_path / "page.html"
    page.write_text("<script>console.error('heard'); missing()</script>", encoding="utf-8")
    console = "\n".join(load(page, tmp_path / "profile", "--dump-dom").console)
    assert "heard" in console
    assert "missing is not defined" in console


def test_every_figure_is_drawn(loaded: Loaded) -> None:
    assert loaded.dom.count('class="chart') == 3 + 7 + 2
    assert len(loaded.drawn) == 3 + 7 + 2
    for figure in loaded.drawn:
        assert re.search(r'class="(point|js-line|points)"|class="trace', figure)


@pytest.mark.parametrize("which", ["arms_report", "whole_report"])
def test_so_it_is_with_every_section(
    which: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    page: Path = request.getfixturevalue(which)
    loaded = load(page, tmp_path / "profile", "--dump-dom")
    assert loaded.console == []
    sections = {"verdicts", "ablation", "curves", "budget", "environment"}
    if which == "whole_report":
        sections |= {"race", "shift", "importance"}
    assert sections <= set(re.findall(r'<section id="(\w+)"', loaded.dom))
    by_section = {
        part.partition('"')[0]: Loaded(part, [])
        for part in loaded.dom.partition("</main>")[0].split('<section id="')[1:]
    }
    for name in sections - {"ablation", "environment"}:
        assert by_section[name].drawn, name
    assert len(loaded.drawn) == loaded.dom.count('class="chart')
    for figure in loaded.drawn:
        assert re.search(r'class="(point|js-line|points)"|class="trace', figure)
    assert page.stat().st_size < EIGHT_MEGABYTES


def test_no_button_uploads_the_figure(loaded: Loaded) -> None:
    assert "cloud" not in loaded.dom.split("<body>")[1].split("<script")[0].lower()
    buttons = set(re.findall(r'data-title="([^"]+)"', "".join(loaded.drawn)))
    assert buttons <= {"Download plot as a PNG", "Zoom", "Pan", "Reset axes"}


def ink(loaded: Loaded) -> set[str]:
    """The colours of the axes' numbers."""
    return set(re.findall(r'class="xtick"><text[^>]*fill: (rgb\([^)]*\))', loaded.dom))


def test_figures_follow_the_colour_scheme(
    report: Path, loaded: Loaded, tmp_path_factory: pytest.TempPathFactory
) -> None:
    dark = load(
        report,
        tmp_path_factory.mktemp("profile"),
        "--dump-dom",
        "--blink-settings=preferredColorScheme=0",
    )
    assert dark.console == []
    assert ink(loaded) == {"rgb(51, 59, 72)"}
    assert ink(dark) == {"rgb(213, 218, 227)"}


# What a reader does with it: the browser is driven -----------------------------------------------


Ask = Callable[..., Awaitable[Any]]
EIGHT_MEGABYTES = 8 * 10**6

WIDER_THAN_THE_PAGE = """
[...document.querySelectorAll("body *")]
  .filter(e => !e.closest("svg") && (!e.parentElement.closest(".scroll") || PRINTED))
  .filter(e => e.getBoundingClientRect().right > innerWidth + 1 && e.checkVisibility())
  .map(e => e.outerHTML.slice(0, 80))
"""
FOCUS = """
(() => {
  const e = document.activeElement, style = getComputedStyle(e), box = e.getBoundingClientRect();
  return {
    text: e.textContent.slice(0, 40),
    role: e.getAttribute("role") || e.tagName.toLowerCase(),
    outline: style.outlineStyle === "none" ? 0 : parseFloat(style.outlineWidth),
    seen: box.right > 0 && box.bottom > 0 && box.left < innerWidth && box.top < innerHeight,
  };
})()
"""
DRAWN = """
(charts => charts.length > 0 && charts.every(e => e.querySelector(".main-svg")))(
  [...document.querySelectorAll(".chart")])
"""
FIGURES = """
[...document.querySelectorAll(".chart")].map(e => ({
  width: e.querySelector(".main-svg").getBoundingClientRect().width,
  marks: e.querySelectorAll(".points path, .points path.point, .js-line").length,
}))
"""


def drive(page: Path, visit: Callable[[Ask, Ask], Awaitable[Any]]) -> Any:
    """What `visit` finds: it is given `ask(script)` and `command(name, **parameters)`."""

    async def visited() -> Any:
        async with choreographer.Browser(headless=True) as browser:
            tab = await browser.create_tab(page.as_uri())

            async def command(name: str, **parameters: Any) -> Any:
                answer = await tab.send_command(name, parameters)
                assert "error" not in answer, answer
                return answer["result"]

            async def ask(script: str) -> Any:
                answer = await command("Runtime.evaluate", expression=script, returnByValue=True)
                assert "exceptionDetails" not in answer, answer
                return answer["result"].get("value")

            for _ in range(300):
                if await ask("document.readyState") == "complete" and await ask(DRAWN):
                    break
                await asyncio.sleep(0.1)
            return await visit(ask, command)

    return asyncio.run(visited())


async def resize(command: Ask, width: int, height: int) -> None:
    await command(
        "Emulation.setDeviceMetricsOverride",
        width=width, height=height, deviceScaleFactor=1, mobile=width < 600,
    )  # fmt: skip
    await asyncio.sleep(1)


@pytest.mark.parametrize("which", ["report", "arms_report", "whole_report"])
def test_nothing_is_wider_than_a_phone(which: str, request: pytest.FixtureRequest) -> None:
    report: Path = request.getfixturevalue(which)

    async def visit(ask: Ask, command: Ask) -> Any:
        await resize(command, 375, 812)
        await ask("document.querySelectorAll('details').forEach(e => { e.open = true })")
        wide = await ask(WIDER_THAN_THE_PAGE.replace("PRINTED", "false"))
        return await ask("document.documentElement.scrollWidth"), wide, await ask(FIGURES)

    width, wide, figures = drive(report, visit)
    assert (width, wide) == (375, [])
    if which == "report":
        assert len(figures) == 3 + 7 + 2
    assert all(200 < figure["width"] <= 343 for figure in figures if figure["width"] < 700)
    # Of two changes the forest has two.
    assert all(figure["marks"] > 1 for figure in figures), figures


STACKED = """
[...document.querySelectorAll("table.stacked")].map(table => ({
  scrolls: table.parentElement.scrollWidth > table.parentElement.clientWidth + 1,
  blocks: getComputedStyle(table.querySelector("tbody tr")).display === "block",
  cells: [...table.querySelectorAll("td")]
    .filter(e => e.textContent && e.scrollWidth > e.clientWidth + 1).length,
}))
"""


@pytest.mark.slow
def test_a_table_of_changes_never_scrolls(arms_report: Path) -> None:
    widths = (320, 360, 500, 640, 768, 1000, 1024, 1025, 1280)
    overflow = "document.documentElement.scrollWidth - document.documentElement.clientWidth"

    async def visit(ask: Ask, command: Ask) -> Any:
        found = {}
        for width in widths:
            await resize(command, width, 800)
            found[width] = await ask(overflow), await ask(STACKED)
        return found

    assert drive(arms_report, visit) == {
        width: (0, [{"scrolls": False, "blocks": width <= 1024, "cells": 0}]) for width in widths
    }


def test_a_stacked_table_is_a_table_to_a_screen_reader(arms_report: Path) -> None:
    async def visit(ask: Ask, command: Ask) -> Any:
        await resize(command, 360, 800)
        await command("Accessibility.enable")
        nodes = (await command("Accessibility.getFullAXTree"))["nodes"]
        return [(n["role"]["value"], n.get("name", {}).get("value", "")) for n in nodes]

    nodes = drive(arms_report, visit)
    roles = [role for role, _ in nodes]
    assert ("columnheader", "points (95 %)") in nodes
    assert ("columnheader", "verdict") in nodes
    assert roles.count("rowheader") >= 8


@pytest.mark.parametrize("which", ["report", "arms_report"])
def test_nothing_is_wider_than_a_printed_page(which: str, request: pytest.FixtureRequest) -> None:
    report: Path = request.getfixturevalue(which)

    async def visit(ask: Ask, command: Ask) -> Any:
        await command("Emulation.setEmulatedMedia", media="print")
        await resize(command, 688, 970)  # A4 within its margins
        await ask("dispatchEvent(new Event('beforeprint'))")
        await asyncio.sleep(1)
        return (
            await ask(WIDER_THAN_THE_PAGE.replace("PRINTED", "true")),
            await ask("[...document.querySelectorAll('details')].every(e => e.open)"),
            await ask("getComputedStyle(document.querySelector('nav')).display"),
            await ask(FIGURES),
        )

    wide, unfolded, navigation, figures = drive(report, visit)
    assert wide == []
    assert unfolded
    assert navigation == "none"
    assert all(0 < figure["width"] <= 688 for figure in figures)


def test_a_keyboard_is_enough(report: Path) -> None:
    async def visit(ask: Ask, command: Ask) -> Any:
        async def press(key: str, code: int) -> None:
            for kind in ("rawKeyDown", "keyUp"):
                await command(
                    "Input.dispatchKeyEvent", type=kind, key=key, code=key,
                    windowsVirtualKeyCode=code,
                )  # fmt: skip

        calm = {"name": "prefers-reduced-motion", "value": "reduce"}
        await command("Emulation.setEmulatedMedia", features=[calm])
        await resize(command, 375, 812)
        stops = []
        for _ in range(60):
            await press("Tab", 9)
            await asyncio.sleep(0.05)
            stops.append(await ask(FOCUS))
            if stops[-1]["role"] == "region" and len(stops) > 20:
                break
        region = "document.activeElement"
        assert await ask(f"{region}.scrollWidth > {region}.clientWidth"), stops[-1]
        for _ in range(3):
            await press("ArrowRight", 39)
        await asyncio.sleep(1)
        return stops, await ask(f"{region}.scrollLeft")

    stops, scrolled = drive(report, visit)
    assert stops[0]["text"] == "Skip to the content"
    assert [stop["text"] for stop in stops[1:3]] == ["Best configuration", "History"]
    assert all(stop["outline"] >= 2 and stop["seen"] for stop in stops), stops
    assert scrolled > 20


def test_headings_and_landmarks_are_in_order(report: Path) -> None:
    async def visit(ask: Ask, command: Ask) -> Any:
        headings = "[...document.querySelectorAll('h1,h2,h3,h4')].map(e => +e.tagName[1])"
        landmarks = "[...document.body.children].map(e => e.tagName)"
        return await ask(headings), await ask(landmarks)

    headings, landmarks = drive(report, visit)
    assert headings[0] == 1
    assert all(later <= earlier + 1 for earlier, later in itertools.pairwise(headings))
    kept = [name for name in landmarks if name in ("HEADER", "NAV", "MAIN", "FOOTER")]
    assert kept == ["HEADER", "NAV", "MAIN", "FOOTER"]


def test_it_is_small_and_asks_nothing_of_the_network(report: Path) -> None:
    async def visit(ask: Ask, command: Ask) -> Any:
        return await ask("performance.getEntriesByType('resource').map(e => e.name)")

    assert [name for name in drive(report, visit) if not name.startswith("data:")] == []
    assert report.stat().st_size < EIGHT_MEGABYTES


def test_it_prints(report: Path, tmp_path: Path) -> None:
    printed = tmp_path / "report.pdf"
    loaded = load(report, tmp_path / "profile", f"--print-to-pdf={printed}")
    assert loaded.console == []
    assert printed.read_bytes().startswith(b"%PDF")
    assert printed.stat().st_size > 100_000


HOSTILE = (
    "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='x'\">"
)


def test_names_from_the_study_do_not_run(new_study: NewStudy, tmp_path: Path) -> None:
    space: dict[str, BaseDistribution] = {
        HOSTILE: CategoricalDistribution([HOSTILE, "plain"]),
        "x": FloatDistribution(0, 1),
    }
    trials = [
        create_trial(
            value=0.5 + i / 100,
            params={HOSTILE: HOSTILE if i % 2 else "plain", "x": i / 20},
            distributions=space,
            intermediate_values={1: 0.4, 2: 0.5},
            user_attrs={"ended": HOSTILE},
        )
        for i in range(12)
    ]
    page = tmp_path / "report.html"
    page.write_text(build_report(new_study(f"hostile {HOSTILE}", trials)), encoding="utf-8")
    loaded = load(page, tmp_path / "profile", "--dump-dom")
    assert loaded.console == []
    assert len(loaded.drawn) == 3 + 2 + 2
    assert "<title>hostile &lt;/script&gt;" in loaded.dom
    assert "<img" not in re.sub(r"<script.*?</script>", "", loaded.dom, flags=re.DOTALL)


@pytest.mark.slow
def test_a_thousand_trials_are_drawn(thousand_trials: optuna.Study, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    write_report(thousand_trials, page)
    loaded = load(page, tmp_path / "profile", "--dump-dom")
    assert loaded.console == []
    assert len(loaded.drawn) == 3 + 7 + 2
