"""Where and with which versions the study was made."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from visweep.analysis.document import Section, note
from visweep.analysis.measure import plural
from visweep.analysis.overview import Overview
from visweep.analysis.sections.settings import plain, settings_tables


def provenance_section(overview: Overview) -> Section:
    """Where and with which versions the study was made."""
    records = overview.provenance
    if not records:
        return Section("provenance", "Provenance", [note("Nothing is recorded.")])
    return Section("provenance", "Provenance", [settings_tables(_agreed(records))])


def _agreed(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """All records as one: where they differ, each value with its number of trials."""
    names = dict.fromkeys(name for record in records for name in record)
    return {name: _agreed_value([r[name] for r in records if name in r]) for name in names}


def _agreed_value(values: Sequence[Any]) -> Any:
    if all(isinstance(value, Mapping) for value in values):
        return _agreed(values)
    counts = Counter(plain(value) for value in values)
    if len(counts) == 1:
        return values[0]
    return "; ".join(f"{ending} ({plural(n, 'trial')})" for ending, n in counts.most_common())
