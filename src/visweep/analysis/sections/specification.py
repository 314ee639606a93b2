"""What was searched, and what was held fixed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from optuna.distributions import (
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    json_to_distribution,
)

from visweep.analysis.document import Block, Folded, Section, Table, note
from visweep.analysis.overview import Overview, mapping
from visweep.analysis.sections.cells import MISSING
from visweep.analysis.sections.settings import plain, settings_tables
from visweep.analysis.sheet import Value, sheet_of
from visweep.config import completed


def specification_section(overview: Overview) -> Section:
    """What was searched, and what was held fixed."""
    blocks: list[Block] = []
    if not overview.specification:
        blocks.append(
            note(
                "This study stores no specification, so it was not made by a visweep sweep; "
                "the space is read from its trials."
            )
        )
    blocks += _space_table(overview)
    settings = _settings(overview.identity)
    if settings:
        blocks.append(Folded("Data, model, training and search", [settings_tables(settings)]))
    return Section("specification", "Specification", blocks)


def _space_table(overview: Overview) -> list[Block]:
    space = _space(overview)
    if not space:
        return [note("No parameters are known.")]
    rows = [[name, *_distribution_cells(distribution)] for name, distribution in space.items()]
    sheet = sheet_of([_record(name, distribution) for name, distribution in space.items()])
    columns = ["parameter", "kind", "values"]
    caption = "What was compared" if overview.compares_arms else "The space that was searched"
    return [Table(caption, columns, rows, sheet=sheet)]


def _record(name: str, distribution: object) -> dict[str, Value]:
    kind, values = _distribution_cells(distribution)
    found: dict[str, Value] = dict.fromkeys(("low", "high", "step", "log", "choices"))
    if isinstance(distribution, CategoricalDistribution):
        found["choices"] = json.dumps(distribution.choices)
    elif isinstance(distribution, IntDistribution | FloatDistribution):
        found |= {name: getattr(distribution, name) for name in ("low", "high", "step", "log")}
    else:
        kind, found["choices"] = "", values
    return {"parameter": name, "kind": kind or None, **found}


def _space(overview: Overview) -> Mapping[str, Any]:
    stored = mapping(overview.identity, "space")
    if stored:
        return {name: _read_distribution(written) for name, written in stored.items()}
    return {name: d for trial in overview.trials for name, d in trial.distributions.items()}


def _read_distribution(written: object) -> object:
    """The distribution, or what is stored in its place when it cannot be read."""
    try:
        return json_to_distribution(str(written))
    except (ValueError, KeyError, TypeError):
        return written


def _distribution_cells(distribution: object) -> list[str]:
    if isinstance(distribution, CategoricalDistribution):
        return ["choice", ", ".join(str(choice) for choice in distribution.choices)]
    if isinstance(distribution, IntDistribution | FloatDistribution):
        kind = "integer" if isinstance(distribution, IntDistribution) else "real"
        return [kind, f"{distribution.low:g} to {distribution.high:g}{_scale(distribution)}"]
    return [MISSING, plain(distribution)]


def _scale(distribution: IntDistribution | FloatDistribution) -> str:
    if distribution.log:
        return ", on a logarithmic scale"
    is_plain = distribution.step is None or (
        isinstance(distribution, IntDistribution) and distribution.step == 1
    )
    return "" if is_plain else f", in steps of {distribution.step:g}"


def _settings(identity: Mapping[str, Any]) -> dict[str, Any]:
    """Everything but the space; a field that is searched stands at the baseline's value."""
    searched = {name.partition(".")[0] for name in mapping(identity, "space")}

    def marked(part: Any) -> Any:
        if not isinstance(part, Mapping):
            return part
        return {
            name: f"{plain(value)} (baseline; searched)" if name in searched else value
            for name, value in completed(part).items()
        }

    return {name: marked(part) for name, part in identity.items() if name != "space"}
