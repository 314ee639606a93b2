"""Whether pruning dropped a run that would have won: a few are trained to their end."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, replace
from typing import Any

from visweep import text
from visweep.analysis.measure import Measure
from visweep.analysis.pruning import (
    POOL,
    SAMPLE,
    Pool,
    Sample,
    arm_of,
    eligible,
    number_of,
    pool,
)
from visweep.cli.companions import Source, begun, companion, deleting, name_of, source_of
from visweep.cli.join import Local
from visweep.cli.options import console, storage_arguments, storage_url
from visweep.cli.studies import opened
from visweep.cli.sweep import train_all
from visweep.errors import UsageError
from visweep.storage.specification import SPECIFICATION, TAKING_PART, Specification

ROOM = 200
"""Up to so many trials a sample can grow without beginning anew: the study is given as many arms
when it begins, each of some hundred bytes, that whoever reads the study reads."""
_ACCURACY = Measure("validation accuracy", percent=True, maximize=True)
KIND = "pruned"


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What `visweep pruned` was asked for; fields are named after the options."""

    study: str
    sample: int
    dry_run: bool
    local: Local


def pruned(wanted: Wanted) -> int:
    """Train some pruned trials to their end, with their own seeds; returns the exit status.

    A larger sample than before takes in the one before.

    Raises:
        UsageError: an option is bad, or nothing was pruned.
    """
    source = source_of(wanted.study, wanted.local)
    source.chosen(None)
    if not eligible(source.trials):
        raise UsageError(f"STUDY: no trial of {wanted.study!r} was pruned that could run on")
    name = name_of(source, KIND, wanted.local)
    chosen = _begun(wanted, source, name) or _new(wanted, source)
    by_number = {trial.number: trial for trial in source.trials}
    unknown = [number for number in chosen.arms if number not in by_number]
    if unknown:
        raise UsageError(
            f"STUDY: {name!r} trains trial {unknown[0]}, which {source.name!r} has not finished: "
            "they are copies of different age; give this command the newer ones of both"
        )
    seeds = source.specification.train.seeds
    prepared = companion(
        source,
        KIND,
        {arm_of(number): source.arm(by_number[number]) for number in chosen.arms},
        wanted.local,
        first_seed=min(seeds),
        trials=len(chosen.sample.numbers) * len(seeds),
        name=name,
        attributes=chosen.attributes,
    )
    status = train_all(replace(prepared, renewed=chosen.renewed), wanted.dry_run)
    if status == 0 and not wanted.dry_run:
        where = storage_arguments(storage_url(wanted.local.storage))
        see = shlex.join(["visweep", "report", source.name, *where])
        text.print_line(console(), f"would any of them have won? {see} says what follows")
    return status


@dataclass(frozen=True)
class _Chosen:
    """Which pruned trials are trained.

    Attributes:
        sample: they.
        pool: that it was taken from; None in a study that an earlier version began.
        arms: of the study. They never change, so that those of a larger sample are there from the
            beginning, up to `ROOM`; the first one is trained first, whoever takes part.
    """

    sample: Sample
    pool: Pool | None
    arms: tuple[int, ...]

    @property
    def attributes(self) -> dict[str, Any]:
        return {} if self.pool is None else {POOL: self.pool.to_json()}

    @property
    def renewed(self) -> dict[str, Any]:
        return {SAMPLE: self.sample.to_json(), TAKING_PART: list(map(arm_of, self.sample.numbers))}


def _new(wanted: Wanted, source: Source) -> _Chosen:
    found = pool(source.trials, _ACCURACY, source.specification.seed)
    sample = found.sample(wanted.sample)
    larger = found.sample(max(ROOM, wanted.sample))
    return _Chosen(sample, found, tuple(dict.fromkeys([*sample.numbers, *larger.numbers])))


def _begun(wanted: Wanted, source: Source, name: str) -> _Chosen | None:
    """What an earlier call chose, to go on with; the search may have gone on since then.

    Raises:
        UsageError: it cannot take in more, or it is another study's.
    """
    with opened(wanted.local.storage, source.name) as (study, storage):
        former = begun(study, storage, name, KIND, wanted.local)
    sample, found = Sample.from_json(former.get(SAMPLE)), Pool.from_json(former.get(POOL))
    if sample is None:
        return None
    number, everybody = len(sample.numbers), len(sample.nearest) + sample.others
    if found is None and number < min(wanted.sample, everybody):
        raise UsageError(
            f"--sample: {name!r} was begun by an earlier version, with {number} pruned trials and "
            f"no others; accepted: {number}, or more after: {deleting(name, wanted.local)}"
        )
    if wanted.sample < number:
        text.print_line(
            console(),
            f"{name} trains {number} pruned trials already; a smaller sample takes none away",
        )
    elif found is not None:
        sample = found.sample(wanted.sample)
    arms = tuple(map(number_of, Specification.from_stored(former[SPECIFICATION]).arms))
    if not {*sample.numbers} <= {*arms}:
        raise UsageError(
            f"--sample: {name!r} was begun with room for {len(arms)} pruned trials; accepted: "
            f"{number} to {len(arms)}, or more after: {deleting(name, wanted.local)}"
        )
    return _Chosen(sample, found, arms)
