"""The best configuration, beside the baseline."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from optuna.trial import FrozenTrial

from visweep.analysis.document import Block, Command, Section, Table, note
from visweep.analysis.measure import GAP
from visweep.analysis.overview import Overview, mapping, parameter_names
from visweep.analysis.sections.cells import MISSING, measurements, setting
from visweep.analysis.sheet import Sheet, sheet_of

_ROLES = ("best", "baseline")


def best_section(overview: Overview) -> Section:
    """The best configuration: the command that trains it again, beside the baseline."""
    best = overview.best
    if best is None:
        return Section("best", "Best configuration", [note("No trial has completed yet.")])
    compared = [best]
    if overview.baseline is not None and overview.baseline is not best:
        compared.append(overview.baseline)
    blocks: list[Block] = [_command(overview, best), _parameter_table(overview, compared)]
    return Section("best", "Best configuration", [*blocks, *_measured_table(overview, compared)])


def _command(overview: Overview, best: FrozenTrial) -> Block:
    if not overview.specification:
        return note("Without a stored specification there is no command that trains it again.")
    command = ["visweep", "train", "--study", overview.name, "--trial", str(best.number)]
    folder = mapping(best.user_attrs, "provenance").get("data_dir")
    command += [*overview.where, *(["--data-dir", str(folder)] if folder else [])]
    return Command("Train it again:", shlex.join(command))


def _parameter_table(overview: Overview, compared: Sequence[FrozenTrial]) -> Table:
    names = [n for n in parameter_names(overview.trials) if n in compared[0].params]
    cells = [[setting(trial, name) for trial in compared] for name in names]
    changed = frozenset(i for i, row in enumerate(cells) if len(set(row)) > 1)
    marks = [["changed" if i in changed else "same"] for i in range(len(names))]
    is_compared = len(compared) > 1
    return Table(
        "Parameters",
        ["parameter", *_headings(compared), *(["change"] if is_compared else [])],
        [
            [name, *row, *(mark if is_compared else [])]
            for name, row, mark in zip(names, cells, marks, strict=True)
        ],
        numeric=frozenset(range(1, 1 + len(compared))),
        marked=changed,
        sheet=_parameter_sheet(names, compared),
    )


def _parameter_sheet(names: Sequence[str], compared: Sequence[FrozenTrial]) -> Sheet:
    roles = dict(zip(_ROLES, compared, strict=False))
    numbers = {role: trial.number for role, trial in roles.items()}
    values = [
        {"parameter": name, **{role: trial.params.get(name) for role, trial in roles.items()}}
        for name in names
    ]
    return sheet_of([{"parameter": "trial", **numbers}, *values])


def _headings(compared: Sequence[FrozenTrial]) -> list[str]:
    return [f"{role} (trial{GAP}{t.number})" for role, t in zip(_ROLES, compared, strict=False)]


def _measured_table(overview: Overview, compared: Sequence[FrozenTrial]) -> list[Block]:
    rows = [
        [heading, *(cell(trial) for trial in compared)] for heading, cell in measurements(overview)
    ]
    measured = [row for row in rows if any(value != MISSING for value in row[1:])]
    columns = ["measurement", *_headings(compared)]
    numeric = frozenset(range(1, len(columns)))
    # The sheet of all trials holds these numbers.
    return [Table("Measurements", columns, measured, numeric)] if measured else []
