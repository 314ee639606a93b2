"""The figures of a report as PNG and SVG, drawn by plotly in a Chrome or Chromium of this machine.

Kaleido drives the browser. It is given plotly's script as it is installed and no other, so that
nothing is loaded from elsewhere; and it runs without the browser's sandbox, which needs rights
that root and most containers do not have, while all it is given are figures as data.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from visweep.analysis.contents import Figure
from visweep.errors import UsageError

FORMATS = ("png", "svg")

_WIDTH, _SMALL_WIDTH = 960, 480
"""Of a figure, and of one that stands beside others, in its own pixels."""
_SCALE = {"png": 2, "svg": 1}
"""Pixels of an image for each of the figure's."""
_NOWHERE = "http://127.0.0.1:9"
"""A proxy that nobody is: whatever a browser may want to ask of the network on its own account,
it does not reach it."""
_WAY_OUT = "install one (apt install chromium), or say where it is: BROWSER_PATH=/path/to/chrome"


class NoBrowser(UsageError):
    """There is no browser to draw figures with."""


def require_browser(option: str) -> str:
    """The browser's file, before the work that it is needed for.

    Raises:
        NoBrowser: there is none.
    """
    from choreographer.browsers.chromium import Chromium

    found: str | None = Chromium.find_browser(skip_local=False)
    if found is None or not Path(found).is_file():
        given = f" ({found} is no file)" if found else ""
        raise NoBrowser(
            f"{option}: figures are drawn by Chrome or Chromium, and there is none{given}; "
            f"{_WAY_OUT}"
        )
    return found


def draw(
    figures: Mapping[str, Figure], option: str, formats: tuple[str, ...] = FORMATS
) -> dict[str, bytes]:
    """Figures as images on white, by file name.

    Args:
        figures: what to draw, by file name without suffix.
        option: that asked for them.
        formats: of each figure, from `FORMATS`.

    Raises:
        NoBrowser: there is none to draw them with.
        UsageError: the browser cannot be run.
    """
    browser = require_browser(option)
    if not figures:
        return {}
    with tempfile.TemporaryDirectory(prefix="visweep-") as folder:
        images = [
            _image(figure, Path(folder) / f"{name}.{kind}")
            for name, figure in figures.items()
            for kind in formats
        ]
        _write(images, browser, option)
        return {image["path"].name: image["path"].read_bytes() for image in images}


def _write(images: list[dict[str, Any]], browser: str, option: str) -> None:
    import kaleido
    from choreographer.errors import BrowserClosedError, BrowserFailedError, ChannelClosedError

    try:
        kaleido.write_fig_from_object_sync(
            images,
            kopts={"mathjax": False, "proxy_server": _NOWHERE},
            cancel_on_error=True,
        )
    except (BrowserFailedError, BrowserClosedError, ChannelClosedError, OSError) as e:
        raise UsageError(
            f"{option}: {browser} draws no figures ({type(e).__name__}); {_WAY_OUT}"
        ) from e


def _image(figure: Figure, path: Path) -> dict[str, Any]:
    drawn = go.Figure(figure.chart.figure)
    drawn.update_layout(paper_bgcolor="#ffffff", plot_bgcolor="#ffffff")
    kind = path.suffix.removeprefix(".")
    size = {
        "width": max(_SMALL_WIDTH if figure.is_small else _WIDTH, figure.chart.min_width),
        "height": drawn.layout.height,
    }
    return {"fig": drawn, "path": path, "opts": {"format": kind, "scale": _SCALE[kind], **size}}
