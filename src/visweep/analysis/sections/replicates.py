"""Configurations that were run several times: what a search itself tells of chance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from optuna.trial import FrozenTrial, TrialState

from visweep import text
from visweep.analysis.document import Block, Table
from visweep.analysis.overview import Overview, in_state, value_of
from visweep.analysis.sections.cells import MISSING, setting
from visweep.analysis.sheet import Value, sheet_of
from visweep.analysis.trial_rows import objective
from visweep.storage.replicates import originals, seeds_of

MOST_ROWS = 10
"""How many configurations the table lists."""
_MOST_NUMBERS = 8


@dataclass(frozen=True)
class Repeated:
    """A configuration with at least one replicate.

    Attributes:
        first: the trial that the others replicate.
        replicates: those others, by number.
        values: the results of those that completed, one for each choice of seeds.
    """

    first: FrozenTrial
    replicates: Sequence[FrozenTrial]
    values: Sequence[float]


def repeated(overview: Overview) -> list[Repeated]:
    """The configurations that were run several times: those with the best mean first."""
    trials = {trial.number: trial for trial in overview.trials}
    groups: dict[int, list[FrozenTrial]] = {}
    for number, first in originals(overview.trials).items():
        groups.setdefault(first, []).append(trials[number])
    found = [_repeated(trials[first], group) for first, group in groups.items()]
    key = overview.measure.key
    return sorted(found, key=lambda r: (not r.values, -key(fmean(r.values)) if r.values else 0.0))


def _repeated(first: FrozenTrial, replicates: list[FrozenTrial]) -> Repeated:
    complete = in_state([first, *replicates], TrialState.COMPLETE)
    # The same seeds give the same result: it is no further evidence.
    values = {seeds_of(trial): value_of(trial) for trial in complete}
    return Repeated(first, sorted(replicates, key=lambda t: t.number), list(values.values()))


def replicates_table(overview: Overview) -> list[Block]:
    """Mean and spread of the configurations that were run several times; nothing without any."""
    found = repeated(overview)
    if not found:
        return []
    rows = [
        [
            f"trial {each.first.number}",
            _numbers(each.replicates),
            *(setting(each.first, name) for name in overview.varied),
            str(len(each.values)),
            *_statistics(overview, each.values),
        ]
        for each in found[:MOST_ROWS]
    ]
    headings = ["configuration of", "replicates", *overview.varied, "completed"]
    headings += ["mean", "standard deviation", "range"]
    shown = f"The best {MOST_ROWS} of {len(found)} c" if len(found) > MOST_ROWS else "C"
    caption = (
        f"{shown}onfigurations that were run again, with new seeds each time: "
        f"{overview.measure.name} of the trials that completed"
    )
    return [
        Table(
            caption,
            headings,
            rows,
            numeric=frozenset(range(2, len(headings))),
            sheet=sheet_of([_record(overview, each) for each in found]),
        )
    ]


def _record(overview: Overview, each: Repeated) -> dict[str, Value]:
    name = objective(overview)
    return {
        "trial": each.first.number,
        "replicates": " ".join(str(trial.number) for trial in each.replicates),
        **{parameter: each.first.params.get(parameter) for parameter in overview.varied},
        "completed": len(each.values),
        f"{name}_mean": fmean(each.values) if each.values else None,
        f"{name}_sd": stdev(each.values) if len(each.values) > 1 else None,
        f"{name}_min": min(each.values, default=None),
        f"{name}_max": max(each.values, default=None),
    }


def said_of(overview: Overview, trial: FrozenTrial) -> str:
    """What is known of a trial's configuration by having run it several times, as a sentence."""
    for each in repeated(overview):
        members = {t.number for t in (each.first, *each.replicates)}
        if trial.number in members and len(each.values) > 1:
            mean, deviation, span = _statistics(overview, each.values)
            return (
                f"Its configuration completed {len(each.values)} times, each with other seeds: "
                f"{mean} on average, {span}, standard deviation {deviation}."
            )
    return ""


def remark(replicates: Mapping[int, int], trial: FrozenTrial) -> str:
    """What follows the number of a trial that is a replicate."""
    first = replicates.get(trial.number)
    return "" if first is None else f" (replicate of {first})"


def _statistics(overview: Overview, values: Sequence[float]) -> tuple[str, str, str]:
    """Mean, standard deviation and range."""
    if not values:
        return MISSING, MISSING, MISSING
    measure = overview.measure
    mean = measure.text(fmean(values))
    if len(values) == 1:
        return mean, MISSING, MISSING
    deviation = measure.difference(stdev(values), 0.0).lstrip("+")
    return mean, deviation, f"{measure.text(min(values))} to {measure.text(max(values))}"


def _numbers(trials: Sequence[FrozenTrial]) -> str:
    shown = [str(trial.number) for trial in trials[:_MOST_NUMBERS]]
    more = len(trials) - len(shown)
    return text.listing([*shown, *([f"{more} more"] if more else [])])
