"""A study of arms in the terminal: the table of its changes, and how each is judged."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from optuna.trial import FrozenTrial
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from visweep import text
from visweep.analysis.ablation import AblationTable, ablation_table
from visweep.analysis.changes import HEADINGS, Line, cells, left_out, lines, remarks, tally
from visweep.analysis.measure import GAP
from visweep.analysis.statistics.verdicts import Verdict
from visweep.storage.specification import Specification

_STYLES = {Verdict.BETTER: "green", Verdict.WORSE: "red"}
_CHANGES = ("change", "accuracy", "pairs", "effect", "p", "verdict")
_ARMS = ("model", "accuracy", "loss")
_RIGHT = frozenset({"pairs", "p"})
_LEAST = {"change": 14, "accuracy": 8, "pairs": 5, "effect": 20, "p": 8, "verdict": 13}
"""Characters that a column keeps where the terminal is narrow: 80 are enough for all."""


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
    console.print(_table(table))
    more = f"see more: {shlex.join(['visweep', 'report', name, *where])}"
    for line in (*left_out(table), *remarks(table), more):
        text.print_line(console, line.replace(GAP, " "))


def _table(table: AblationTable) -> Table:
    names = _CHANGES if table.rows else _ARMS
    shown = Table(
        title=_plain(tally(table)) if table.rows else None,
        title_justify="left",
        header_style="bold",
        box=SIMPLE,
        pad_edge=False,
    )
    for name in names:
        shown.add_column(
            HEADINGS[name],
            justify="right" if name in _RIGHT else "left",
            min_width=_LEAST.get(name),
            overflow="fold",
        )
    for line in lines(table):
        if line.verdict is None and table.rows:
            shown.add_section()
        style = None if line.verdict is None else _STYLES.get(line.verdict)
        shown.add_row(*_cells(line, names), style=style)
    return shown


def _cells(line: Line, names: Sequence[str]) -> list[str]:
    written = [_plain(cell) for cell in cells(line, names)]
    if line.verdict is None and "change" in names:
        written[0] = line.model
    return written


def _plain(cell: str) -> str:
    return cell.replace(GAP, " ")
