"""The report in a real browser: it opens from a file, complains of nothing and draws all figures.

The page's policy forbids every load, and the browser reports a forbidden one on its console, so
that a silent console also means that nothing was asked of the network.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import optuna
import pytest
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.trial import create_trial

from visweep.analysis.report import build_report, write_report

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


def test_a_thousand_trials_are_drawn(thousand_trials: optuna.Study, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    write_report(thousand_trials, page)
    loaded = load(page, tmp_path / "profile", "--dump-dom")
    assert loaded.console == []
    assert len(loaded.drawn) == 3 + 7 + 2
