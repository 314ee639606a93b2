"""What each parameter of a study's winner contributes: one at a time is set to another value."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from visweep.cli.companions import Source, begun, companion, name_of, source_of
from visweep.cli.join import Local
from visweep.cli.studies import opened
from visweep.cli.sweep import train_all
from visweep.errors import UsageError, unknown_name
from visweep.search.arms import MOST_SEEDS, Change, changed
from visweep.search.neighbours import neighbours
from visweep.storage.specification import SPECIFICATION, Specification


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What `visweep ablate` was asked for; fields are named after the options."""

    study: str
    trial: int | None
    to: str
    seeds: int
    name: str | None
    dry_run: bool
    local: Local


def ablate(wanted: Wanted) -> int:
    """Train the winner and each change of it over the same seeds; returns the exit status.

    Raises:
        UsageError: an option is bad, or there is nothing to change.
    """
    if wanted.to not in CHANGES:
        raise unknown_name("--to", wanted.to, CHANGES)
    if wanted.seeds > MOST_SEEDS:
        raise UsageError(f"--seeds: {wanted.seeds} is not accepted; accepted: 1 to {MOST_SEEDS}")
    source = source_of(wanted.study, wanted.local)
    kind = {"baseline": "ablation"}.get(wanted.to, wanted.to)
    made = wanted.name or name_of(source, kind, wanted.local)
    former = _begun_with(wanted, source, kind, made)
    winner = source.chosen(former if wanted.trial is None else wanted.trial)
    changes = CHANGES[wanted.to](source, winner.params)
    name = f"trial {winner.number}"
    if not changes and wanted.to == "baseline":
        raise UsageError(f"--to: {name} is the baseline itself; accepted here: neighbours")
    if not changes:
        raise UsageError(f"--to: no parameter of {name} has another value in the space")
    baseline = source.arm(winner)
    arms = {name: baseline, **changed(name, baseline, changes)}
    prepared = companion(
        source,
        kind,
        arms,
        wanted.local,
        first_seed=source.fresh_seed,
        trials=len(arms) * wanted.seeds,
        name=made,
        renamed_by="--name",
    )
    return train_all(prepared, wanted.dry_run)


def _begun_with(wanted: Wanted, source: Source, kind: str, made: str) -> int | None:
    """The trial whose ablation has begun already, so that seeds are added to it though the search
    may have gone on; None where none has.

    Raises:
        UsageError: the study has not completed that trial, or the ablation is another one's.
    """
    with opened(wanted.local.storage, source.name) as (study, storage):
        former = begun(study, storage, made, kind, wanted.local, renamed_by="--name")
    if SPECIFICATION not in former:
        return None
    first = next(iter(Specification.from_stored(former[SPECIFICATION]).arms), "")
    found = re.fullmatch(r"trial (\d+)", first)
    number = int(found[1]) if found else None
    if number is not None and wanted.trial is None and number not in source.completed:
        raise UsageError(
            f"STUDY: {made!r} is about trial {number}, which {source.name!r} has not completed: "
            "they are copies of different age; give this command the newer ones of both, or "
            "another --name"
        )
    return number


def _to_baseline(source: Source, point: Change) -> list[Change]:
    """Each parameter that the winner has another value of than the search began with."""
    began = source.specification.baseline()
    return [{name: began[name]} for name in point if began[name] != point[name]]


def _to_neighbours(source: Source, point: Change) -> list[Change]:
    space = source.specification.space
    return [{name: value} for name in point for value in neighbours(space[name], point[name])]


CHANGES: Mapping[str, Callable[[Source, Change], list[Change]]] = {
    "baseline": _to_baseline,
    "neighbours": _to_neighbours,
}
