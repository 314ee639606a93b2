"""The report of a study: one HTML file that opens offline.

A report is a list of sections; a new one is added to `SECTIONS`. How a page looks is `rendering`'s
business.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

import optuna

from visweep.analysis.document import Document, Section
from visweep.analysis.overview import Overview, read
from visweep.analysis.rendering import to_html
from visweep.analysis.sections.best import best_section
from visweep.analysis.sections.budget import budget_section
from visweep.analysis.sections.charts import (
    curves_section,
    history_section,
    parallel_section,
    slices_section,
)
from visweep.analysis.sections.environment import environment_section
from visweep.analysis.sections.importance import importance_section
from visweep.analysis.sections.opening import circumstances, opening
from visweep.analysis.sections.race import race_section
from visweep.analysis.sections.shift import shift_section
from visweep.analysis.sections.specification import specification_section
from visweep.analysis.sections.trials import trials_section
from visweep.analysis.sections.verdicts import ablation_section, verdicts_section
from visweep.analysis.trial_rows import objective, trials_sheet
from visweep.errors import UsageError

TRIALS = "trials"
"""The sheet of all trials, of which the page shows the best."""

MakeSection = Callable[[Overview], Section | None]


def _of_searches(make: MakeSection) -> MakeSection:
    """A section that has nothing to say where an arm and a seed are all that is varied."""

    def section(overview: Overview) -> Section | None:
        return None if overview.compares_arms else make(overview)

    return section


SECTIONS: tuple[MakeSection, ...] = (
    _of_searches(best_section),
    verdicts_section,
    ablation_section,
    race_section,
    _of_searches(history_section),
    curves_section,
    _of_searches(parallel_section),
    _of_searches(slices_section),
    shift_section,
    _of_searches(importance_section),
    budget_section,
    trials_section,
    specification_section,
    environment_section,
)
"""The report's sections, in order; one that has nothing to say of a study is None."""


def build_report(study: optuna.Study, where: Sequence[str] = ()) -> str:
    """The report of a study as a complete HTML page that loads nothing else.

    It works for any study with one objective, whoever made it: what is not known is left out.

    Args:
        study: what to report.
        where: options that tell `visweep train` in which storage the study lies.

    Raises:
        UsageError: the study has several objectives.
    """
    return to_html(document(study, where))


def write_report(study: optuna.Study, path: Path, where: Sequence[str] = ()) -> None:
    """Write the report to `path`: the whole of it, or nothing.

    Args:
        study: what to report.
        path: the file.
        where: see `build_report`.

    Raises:
        UsageError: the study has several objectives, or the file cannot be written.
    """
    write_text(build_report(study, where), path)


def write_text(page: str, path: Path) -> None:
    """Write a page to `path`: the whole of it, or nothing.

    Raises:
        UsageError: it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with temporary.open("x", encoding="utf-8") as file:
            file.write(page)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as e:
        temporary.unlink(missing_ok=True)
        raise UsageError(f"report: cannot write {path}: {e.strerror}") from e


def document(study: optuna.Study, where: Sequence[str] = ()) -> Document:
    """The report's contents, before they become a page."""
    overview = read(study, where)
    return Document(
        title=overview.name,
        subtitle=" · ".join(circumstances(overview)),
        opening=opening(overview),
        sections=[section for make in SECTIONS if (section := make(overview)) is not None],
        footer=f"Made by visweep {version('visweep')} with Optuna {optuna.__version__}. "
        "This page is complete in itself: it loads nothing from the network.",
        sheets={TRIALS: trials_sheet(overview.trials, objective(overview))},
    )
