"""Sheets as comma-separated values: for machines, so that numbers are as they were measured."""

from __future__ import annotations

import csv
import io
import re

from visweep.analysis.sheet import Sheet, Value

_FORMULA = ("=", "+", "-", "@", "\t", "\r")
_NUMBER = re.compile(r"[+-]?\d+(?:\.\d+)?(?:e[+-]?\d+)?", re.IGNORECASE)


def to_csv(sheet: Sheet) -> str:
    """A sheet as a header and rows.

    Numbers are written in full, so that reading them gives the same ones; what is missing is
    empty. Text that a spreadsheet would take for a formula is preceded by an apostrophe: names and
    choices are whatever a study holds. See
    https://owasp.org/www-community/attacks/CSV_Injection.
    """
    written = io.StringIO()
    writer = csv.writer(written, lineterminator="\n")
    writer.writerow([_plain(column) for column in sheet.columns])
    writer.writerows([_plain(value) for value in row] for row in sheet.rows)
    return written.getvalue()


def _plain(value: Value) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        return repr(value)
    if value.startswith(_FORMULA) and not _NUMBER.fullmatch(value):
        return f"'{value}"
    return value
