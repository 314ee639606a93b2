"""Figures as PNG and SVG, drawn by a real browser."""

from __future__ import annotations

import io
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path

import optuna
import pytest
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.trial import create_trial
from PIL import Image

from visweep.analysis.contents import figures
from visweep.analysis.images import NoBrowser, draw, require_browser
from visweep.analysis.report import document
from visweep.errors import UsageError

NewStudy = Callable[..., optuna.Study]

try:
    require_browser("--figures")
    BROWSER = True
except NoBrowser:
    BROWSER = False

needs_browser = pytest.mark.skipif(not BROWSER, reason="no Chromium or Chrome is installed")

HOSTILE = '</text><script>alert(1)</script><a href="javascript:alert(2)">$x$'


@pytest.fixture(scope="module")
def images(new_study: NewStudy) -> dict[str, bytes]:
    """Of a study whose parameter has a hostile name: a figure of each kind, once."""
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
        )
        for i in range(12)
    ]
    found = figures(document(new_study("hostile", trials)))
    assert len(found) == 4 + 2 + 1
    return draw(found, "--figures")


@needs_browser
def test_each_figure_is_drawn_in_both_formats(images: dict[str, bytes]) -> None:
    stems = {Path(name).stem for name in images}
    assert {Path(name).suffix for name in images} == {".png", ".svg"}
    assert len(images) == 2 * len(stems) == 14
    assert {"history", "curves", "parallel", "importance", "budget", "slices-x"} <= stems


@needs_browser
def test_every_image_shows_something(images: dict[str, bytes]) -> None:
    for name, image in images.items():
        if not name.endswith(".png"):
            continue
        shown = Image.open(io.BytesIO(image)).convert("RGB")
        assert shown.width == (960 if name.startswith("slices") else 1920)
        assert shown.getpixel((0, 0)) == (255, 255, 255)
        colours = shown.getcolors(maxcolors=2**24) or []
        drawn = sum(n for n, colour in colours if max(colour) - min(colour) > 60)
        assert drawn > 300, name


@needs_browser
def test_an_svg_holds_text_and_no_script(images: dict[str, bytes]) -> None:
    for name, image in images.items():
        if not name.endswith(".svg"):
            continue
        root = ElementTree.fromstring(image)
        for element in root.iter():
            assert element.tag.rpartition("}")[2] not in ("script", "a", "foreignObject", "image")
            assert not any(key.lower().startswith("on") for key in element.attrib)
            assert not any("script" in value for value in element.attrib.values())
    text = "".join(ElementTree.fromstring(images["slices-x.svg"]).itertext())
    assert "x" in text
    assert "$x$" in "".join(ElementTree.fromstring(images["importance.svg"]).itertext())


def test_without_a_browser_the_way_out_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BROWSER_PATH", str(tmp_path / "chrome"))
    with pytest.raises(NoBrowser, match=r"^--figures: .*apt install chromium.*BROWSER_PATH="):
        draw({}, "--figures")


@needs_browser
def test_what_is_no_browser_is_named(sweep: optuna.Study, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BROWSER_PATH", "/bin/true")
    found = figures(document(sweep))
    with pytest.raises(UsageError, match=r"^--figures: /bin/true draws no figures"):
        draw({"history": found["history"]}, "--figures")
