"""The best trials, and how all trials ended."""

from __future__ import annotations

import re
from collections import Counter

from optuna.trial import FrozenTrial

from visweep.analysis.document import Block, Section, Table, note
from visweep.analysis.overview import STATE_WORDS, Overview, epochs, ranked
from visweep.analysis.sections.cells import MISSING, measurements, setting
from visweep.analysis.sections.replicates import remark, replicates_table
from visweep.analysis.sheet import Sheet
from visweep.storage.replicates import originals

TOP_TRIALS = 10
"""How many trials the table of the best ones lists."""


def trials_section(overview: Overview) -> Section:
    """The best trials and how all trials ended."""
    if not overview.trials:
        return Section("trials", "Trials", [note("There are no trials yet.")])
    blocks = [*_top_table(overview), *replicates_table(overview)]
    if not any(map(epochs, overview.trials)):
        # Otherwise it is part of where the budget went.
        blocks.append(_endings_table(overview))
    return Section("trials", "Trials", blocks)


def _top_table(overview: Overview) -> list[Block]:
    best = ranked(overview.trials, overview.measure)[:TOP_TRIALS]
    if not best:
        return [note("No trial has completed with a value.")]
    measured = [
        (heading, [cell(trial) for trial in best]) for heading, cell in measurements(overview)
    ]
    known = [column for column in measured if set(column[1]) != {MISSING}]
    searched = [(name, [setting(trial, name) for trial in best]) for name in overview.varied]
    columns = [known[0], *searched, *known[1:]]
    replicates = originals(overview.trials)
    rows = [
        [
            f"{rank}. trial {trial.number}{remark(replicates, trial)}",
            *(column[rank - 1] for _, column in columns),
        ]
        for rank, trial in enumerate(best, start=1)
    ]
    headings = ["rank", *(heading for heading, _ in columns)]
    caption = f"The best {len(best)} of the completed trials, by {overview.measure.name}"
    words = {name for name in overview.varied if any(_is_text(t.params.get(name)) for t in best)}
    numeric = frozenset(i for i, heading in enumerate(headings) if i and heading not in words)
    return [Table(caption, headings, rows, numeric, marked=frozenset({0}))]


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _endings_table(overview: Overview) -> Table:
    counted = Counter(map(ending, overview.trials))
    return Table(
        "How the trials ended",
        ["ending", "trials"],
        [[name, f"{count:,}"] for name, count in counted.most_common()],
        numeric=frozenset({1}),
        sheet=Sheet(["ending", "trials"], counted.most_common()),
    )


def ending(trial: FrozenTrial) -> str:
    """Why the trial ended, without the epoch at which it did."""
    reason = trial.user_attrs.get("ended")
    if not trial.state.is_finished() or not isinstance(reason, str) or not reason:
        return STATE_WORDS[trial.state]
    return re.sub(r" at epoch \d+$", "", reason)
