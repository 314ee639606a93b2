"""The tables of a report as comma-separated values."""

from __future__ import annotations

import csv
import io

from visweep.analysis.document import Table
from visweep.analysis.measure import GAP
from visweep.analysis.sections.cells import MISSING


def to_csv(table: Table) -> str:
    """A table as a header and rows: what it shows, in plain characters.

    No-break spaces become spaces and minus signs hyphens, and what is missing is empty.
    """
    written = io.StringIO()
    writer = csv.writer(written, lineterminator="\n")
    writer.writerow([_plain(column) for column in table.columns])
    writer.writerows([_plain(cell) for cell in row] for row in table.rows)
    return written.getvalue()


def _plain(cell: str) -> str:
    return "" if cell == MISSING else cell.replace(GAP, " ").replace("−", "-")
