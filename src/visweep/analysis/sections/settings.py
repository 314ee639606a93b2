"""Stored settings as tables."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from visweep.analysis.document import Columns, Table
from visweep.analysis.sections.cells import MISSING
from visweep.analysis.sheet import Sheet


def settings_tables(settings: Mapping[str, Any]) -> Columns:
    """A table for each mapping, and one for all that stands alone."""
    alone = {name: value for name, value in settings.items() if not isinstance(value, Mapping)}
    tables = [
        _settings_table(name, part) for name, part in settings.items() if isinstance(part, Mapping)
    ]
    return Columns(tables + ([_settings_table("general", alone)] if alone else []))


def _settings_table(caption: str, settings: Mapping[str, Any]) -> Table:
    rows = [[str(name), plain(value)] for name, value in settings.items()]
    return plain_table(caption.replace("_", " ").capitalize(), ["setting", "value"], rows)


def plain_table(caption: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """A table of text, which is written for machines as it is."""
    values = [[None if cell == MISSING else cell for cell in row] for row in rows]
    return Table(caption, columns, rows, sheet=Sheet(columns, values))


def plain(value: object) -> str:
    """A stored value in full: a specification is not rounded."""
    if value is None:
        return MISSING
    if isinstance(value, list) and not any(isinstance(item, list | dict) for item in value):
        return ", ".join(str(item) for item in value)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
