"""The tables of a report as comma-separated values."""

from __future__ import annotations

import csv
import io
import re

from visweep.analysis.document import Table
from visweep.analysis.measure import GAP
from visweep.analysis.sections.cells import MISSING

_FORMULA = ("=", "+", "-", "@", "\t", "\r")
_NUMBER = r"[+-]?(?:\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?|inf)"
_NUMBERS = re.compile(rf"{_NUMBER}%?(?: \(?(?:{_NUMBER}%?|[a-z]+|%)[,;)]?)*")
"""A number, and after spaces further ones and words: `-2.1 (-3.0 to -1.2) points`."""


def to_csv(table: Table) -> str:
    """A table as a header and rows: what it shows, in plain characters.

    No-break spaces become spaces and minus signs hyphens, and what is missing is empty. Text that
    a spreadsheet would take for a formula is preceded by an apostrophe: names and choices are
    whatever a study holds. See https://owasp.org/www-community/attacks/CSV_Injection.
    """
    written = io.StringIO()
    writer = csv.writer(written, lineterminator="\n")
    writer.writerow([_plain(column) for column in table.columns])
    writer.writerows([_plain(cell) for cell in row] for row in table.rows)
    return written.getvalue()


def _plain(cell: str) -> str:
    if cell == MISSING:
        return ""
    plain = cell.replace(GAP, " ").replace("−", "-")
    return f"'{plain}" if plain.startswith(_FORMULA) and not _NUMBERS.fullmatch(plain) else plain
