"""Tables for machines, as data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Value = str | int | float | bool | None


@dataclass(frozen=True)
class Sheet:
    """What a table is made of, for machines: numbers as they are.

    Attributes:
        columns: their names, which say the unit where there is one.
        rows: the values, as many as there are columns; None where one is missing.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[Value]]


def sheet_of(records: Sequence[Mapping[str, Value]]) -> Sheet:
    """A sheet of one row for each record, with every name that occurs, in order of appearance."""
    columns = list(dict.fromkeys(name for record in records for name in record))
    return Sheet(columns, [[record.get(name) for name in columns] for record in records])
