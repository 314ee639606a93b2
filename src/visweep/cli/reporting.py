"""The command that writes the report of a study."""

from pathlib import Path
from typing import Annotated

import typer

from visweep.cli import options as opt


def register(app: typer.Typer) -> None:
    """Add this command to the command line."""
    app.command()(report)


def report(
    study: opt.Study,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="Where to write it, such as report.html, or report.md for Markdown. "
            "[default: STUDY.html]",
        ),
    ] = None,
    markdown: Annotated[
        Path | None,
        typer.Option(
            "--markdown",
            metavar="FILE",
            help="Write it as Markdown too, such as report.md for a pull request. "
            "[default: not written]",
        ),
    ] = None,
    figures: Annotated[
        Path | None,
        typer.Option(
            "--figures",
            metavar="DIR",
            help="Write its figures as PNG and SVG too, into a folder such as figures; needs "
            "Chrome or Chromium. [default: not written]",
        ),
    ] = None,
    tables: Annotated[
        Path | None,
        typer.Option(
            "--tables",
            metavar="DIR",
            help="Write its tables as CSV too, into a folder such as tables. "
            "[default: not written]",
        ),
    ] = None,
    attach: Annotated[
        bool,
        typer.Option(
            "--attach",
            help="Attach the page, the figures and a note to the study, for optuna-dashboard; "
            "again, and they replace those of the last time.",
        ),
    ] = False,
    storage: opt.Storage = None,
    artifacts: opt.Artifacts = None,
) -> None:
    """Write one HTML file about a study that opens offline; and its parts, if asked to."""
    from visweep.cli.report import Wanted, report

    for line in report(
        Wanted(
            study=study,
            output=output,
            markdown=markdown,
            figures=figures,
            tables=tables,
            attach=attach,
            storage=storage,
            artifacts=artifacts,
        )
    ):
        typer.echo(line)
