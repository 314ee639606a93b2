"""Whether pruning dropped a run that would have won: a few are trained to their end."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, replace

from visweep import text
from visweep.analysis.measure import Measure
from visweep.analysis.pruning import SAMPLE, Sample, arm_of, choose, eligible
from visweep.cli.companions import Source, begun, companion, deleting, source_of
from visweep.cli.join import Local
from visweep.cli.options import console, storage_arguments, storage_url
from visweep.cli.studies import opened
from visweep.cli.sweep import train_all
from visweep.errors import UsageError

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

    Raises:
        UsageError: an option is bad, or nothing was pruned.
    """
    source = source_of(wanted.study, wanted.local)
    source.chosen(None)
    if not eligible(source.trials):
        raise UsageError(f"STUDY: no trial of {wanted.study!r} was pruned that could run on")
    sample = _begun(wanted, source) or choose(
        source.trials, _ACCURACY, source.specification.seed, wanted.sample
    )
    by_number = {trial.number: trial for trial in source.trials}
    seeds = source.specification.train.seeds
    arms = {arm_of(number): source.arm(by_number[number]) for number in sample.numbers}
    prepared = companion(
        source,
        KIND,
        arms,
        wanted.local,
        first_seed=min(seeds),
        trials=len(arms) * len(seeds),
    )
    attributes = {**prepared.attributes, SAMPLE: sample.to_json()}
    status = train_all(replace(prepared, attributes=attributes), wanted.dry_run)
    if status == 0 and not wanted.dry_run:
        where = storage_arguments(storage_url(wanted.local.storage))
        see = shlex.join(["visweep", "report", source.name, *where])
        text.print_line(console(), f"would any of them have won? {see} says what follows")
    return status


def _begun(wanted: Wanted, source: Source) -> Sample | None:
    """What an earlier call chose, to go on with; the search may have gone on since then.

    Raises:
        UsageError: it chose another number of trials, or another study's.
    """
    name = f"{source.name}-{KIND}"
    with opened(wanted.local.storage, source.name) as (study, storage):
        former = begun(study, storage, name, KIND, wanted.local)
        sample = Sample.from_json(former.get(SAMPLE))
    if sample is not None and len(sample.numbers) != min(wanted.sample, _all_of(sample)):
        number = len(sample.numbers)
        raise UsageError(
            f"--sample: {name!r} trains {number} pruned trials, not {wanted.sample}; accepted: "
            f"{number}, or another after: {deleting(name, wanted.local)}"
        )
    return sample


def _all_of(sample: Sample) -> int:
    return len(sample.nearest) + sample.others
