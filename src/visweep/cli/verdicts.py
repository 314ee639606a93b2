"""A study of arms in the terminal: the table of its changes, and how each is judged."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from statistics import fmean

from optuna.trial import FrozenTrial
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from visweep import text
from visweep.analysis.ablation import AblationRow, AblationTable, ArmResults, ablation_table
from visweep.analysis.measure import points
from visweep.analysis.statistics.verdicts import Verdict
from visweep.analysis.statistics.words import (
    could_have_shown,
    decides,
    judged,
    needed,
    of_other_images,
)
from visweep.storage.specification import Specification

_MISSING = "—"
_STYLES = {Verdict.BETTER: "green", Verdict.WORSE: "red"}


def print_verdicts(
    console: Console,
    name: str,
    specification: Specification,
    trials: Sequence[FrozenTrial],
    where: Sequence[str] = (),
) -> None:
    """The table of a study of arms, as far as it has been trained.

    Args:
        console: where to print.
        name: of the study.
        specification: of the study.
        trials: of the study.
        where: options that tell other commands in which storage the study lies.
    """
    table = ablation_table(specification, trials)
    if not any(each.accuracy for each in table.arms):
        return
    console.print(_baselines(table))
    if table.rows:
        console.print(_changes(table))
    for line in (*_remarks(table), f"see more: {shlex.join(['visweep', 'report', name, *where])}"):
        text.print_line(console, line)


def _baselines(table: AblationTable) -> Table:
    shown = Table(
        title="validation accuracy", title_justify="left", header_style="bold", box=SIMPLE
    )
    shown.add_column("configuration", overflow="fold")
    for heading in ("mean", "over seeds ±", "loss", "runs"):
        shown.add_column(heading, justify="right", no_wrap=True)
    for each in table.baselines:
        shown.add_row(each.name, *_measured(each))
    return shown


def _measured(each: ArmResults) -> Iterator[str]:
    yield _percent(each.mean)
    yield _MISSING if each.scatter is None else f"{100 * each.scatter:.2f}"
    yield f"{fmean(each.loss.values()):.3f}" if each.loss else _MISSING
    yield str(len(each.values))


def _changes(table: AblationTable) -> Table:
    shown = Table(title="one change at a time", title_justify="left", box=SIMPLE)
    shown.header_style = "bold"
    shown.add_column("change", overflow="fold")
    shown.add_column("before → after", justify="right", no_wrap=True)
    shown.add_column("points (95 %)", justify="right", no_wrap=True)
    shown.add_column("p, Holm", justify="right", no_wrap=True)
    shown.add_column("verdict", overflow="fold")
    for each in table.rows:
        shown.add_row(*_cells(each), style=_STYLES.get(each.row.verdict))
    return shown


def _cells(each: AblationRow) -> Iterator[str]:
    row = each.row
    yield each.changed.name
    yield f"{_percent(each.before)} → {_percent(each.after)}"
    effect = _MISSING if row.effect is None else points(row.effect)
    interval = "" if row.interval is None else " ({} to {})".format(*map(points, row.interval))
    yield effect + interval
    yield _MISSING if row.adjusted is None else f"{row.adjusted:.3f}"
    yield str(row.verdict)


def _remarks(table: AblationTable) -> Iterator[str]:
    for each in table.rows:
        if each.row.missing:
            yield f"{each.changed.name}: {judged(each.row)}"
    if table.rows:
        yield decides(table.verdicts)
    errors = [error for each in table.arms for error in each.error.values()]
    yield from filter(
        None,
        [
            could_have_shown(table.verdicts.rows),
            needed(table.verdicts),
            of_other_images(errors),
        ],
    )


def _percent(value: float | None) -> str:
    return _MISSING if value is None else text.percent(value)
