"""A report as one self-contained web page: it loads nothing and needs no network.

Text is escaped by the template, figures travel as JSON, and a content security policy allows
exactly the two scripts of ours, so that nothing that a study contains can run.
"""

from __future__ import annotations

import base64
import hashlib
from importlib import resources

import jinja2
from markupsafe import Markup
from plotly.io.json import to_json_plotly
from plotly.offline import get_plotlyjs

from visweep.analysis.document import Document
from visweep.analysis.figures.chart import Chart, theme


def to_html(document: Document) -> str:
    """The page, as a complete HTML document."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("visweep.analysis", "web"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["chart_json"] = _chart_json
    script, plotly = _asset("page.js"), get_plotlyjs()
    return environment.get_template("page.html.jinja").render(
        document=document,
        style=Markup(_asset("page.css")),
        script=Markup(script),
        plotly=Markup(plotly),
        themes=_json({"light": theme(dark=False), "dark": theme(dark=True)}),
        script_sources=" ".join(_source(text) for text in (plotly, script)),
    )


def _asset(name: str) -> str:
    return resources.files("visweep.analysis").joinpath("web", name).read_text("utf-8")


def _source(script: str) -> str:
    """The policy's word for one script: the hash of its exact text."""
    digest = hashlib.sha256(script.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


def _chart_json(chart: Chart) -> Markup:
    """The figure without its template: the page chooses the light or the dark one."""
    figure = chart.figure.to_plotly_json()
    layout = {key: value for key, value in figure["layout"].items() if key != "template"}
    return _json({"data": figure["data"], "layout": layout})


def _json(value: object) -> Markup:
    # plotly writes <, > and / as \u escapes, so that no text can end the script element.
    return Markup(to_json_plotly(value))
