"""Who works on the studies of a storage, as a table."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE
from rich.table import Table

from visweep import text
from visweep.storage.holders import Holder
from visweep.storage.overview import StudyOverview


def workers_table(studies: Sequence[StudyOverview]) -> Table:
    """One row for each worker that holds a trial of one of these studies."""
    several = len(studies) > 1
    table = Table(header_style="bold", box=SIMPLE)
    if several:
        table.add_column("study", overflow="fold")
    table.add_column("worker", overflow="fold")
    for heading in ("trial", "epoch"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("lease", overflow="fold")
    for study in studies:
        for worker in study.workers:
            table.add_row(*([study.name] if several else []), *_cells(worker))
    return table


def _cells(worker: Holder) -> tuple[str, str, str, str]:
    name = f"{worker.host}, process {worker.pid}" if worker.host else "unreadable: visweep check"
    return name, str(worker.trial), str(worker.epoch), _lease(worker)


def _lease(worker: Holder) -> str:
    if worker.gone:
        return "its process is gone"
    if worker.lease_age is None:
        return "held"
    return f"renewed {text.duration(worker.lease_age)} ago"
