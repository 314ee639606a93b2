"""The leaders of a study, trained with new seeds until one of them is shown to be the best."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from optuna.trial import FrozenTrial, TrialState
from rich.console import Console

from visweep import text
from visweep.analysis.race import Searched
from visweep.cli.companions import Source, begun, companion, deleting, source_of
from visweep.cli.join import Local, resume
from visweep.cli.on_test_images import evaluate_once
from visweep.cli.studies import opened
from visweep.cli.sweep import train_all
from visweep.errors import UsageError
from visweep.search.arms import MOST_SEEDS
from visweep.search.study import images_folder
from visweep.storage.companions import companion_name, source_name
from visweep.storage.specification import OF, RACE, SPECIFICATION, Arm, Specification

KIND = "race"
TOP = 5
SEEDS = (3, 20)
"""What is taken where the options do not say."""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What `visweep race` was asked for; fields are named after the options."""

    study: str
    top: int | None
    seeds: str | None
    local: Local


def race(console: Console, wanted: Wanted) -> int:
    """Race, or go on racing, and evaluate the test set for the one that is chosen; returns the
    exit status.

    Raises:
        UsageError: an option is bad, there are too few configurations, or the race that was begun
            is of others than this study has.
    """
    if wanted.top is not None and wanted.top < 2:
        raise UsageError(f"--top: {wanted.top} is not accepted; accepted: 2, 3, 4, …")
    seeds = None if wanted.seeds is None else _range(wanted.seeds)
    name, former, local = _begun(wanted)
    source = source_of(wanted.study, local)
    if former is None:
        status = _begin(source, name, wanted.top or TOP, seeds or SEEDS, local)
    else:
        _require_same(former[RACE], name, wanted, seeds)
        _require_its_own(former, name, source, local)
        status = resume(console, name, local, looks=True)
    if status == 0:
        evaluate_once(console, name, local)
    return status


def _range(given: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d{1,4})\.\.(\d{1,4})", given)
    first, last = (int(found[1]), int(found[2])) if found else (0, 0)
    if not 2 <= first <= last <= MOST_SEEDS:
        raise UsageError(
            f"--seeds: {given!r} is not accepted; accepted: A..B with 2 ≤ A ≤ B ≤ {MOST_SEEDS}, "
            "such as 3..20"
        )
    return first, last


def _begun(wanted: Wanted) -> tuple[str, Mapping[str, Any] | None, Local]:
    """The name of the race, what it keeps of itself, None where there is none yet, and what this
    machine brings, with the images where the study found them."""
    local = wanted.local
    with opened(local.storage, wanted.study) as (study, storage):
        of = study.user_attrs.get(OF, {})
        if of.get("kind") == KIND:
            raced = source_name(study)
            if raced is None:
                raise UsageError(
                    f"STUDY: {wanted.study!r} is a race itself, and the study that it is of is "
                    f"not here; it was called {of.get('study')!r}; accepted: a search"
                )
            raise UsageError(
                f"STUDY: {wanted.study!r} is a race itself; go on with it: "
                f"visweep race {shlex.quote(raced)}"
            )
        if local.data_dir is None and (folder := images_folder(study)) is not None:
            local = replace(local, data_dir=Path(folder))
        name = companion_name(study, KIND)
        former = begun(study, storage, name, KIND, local)
        return name, former if RACE in former else None, local


def _require_same(
    former: Mapping[str, Any], name: str, wanted: Wanted, seeds: tuple[int, int] | None
) -> None:
    """The thresholds depend on both, so that neither can change on the way."""
    delete = deleting(name, wanted.local)
    arms, first, last = former["arms"], former["first"], former["last"]
    if wanted.top not in (None, len(arms)):
        raise UsageError(
            f"--top: this race was begun with {len(arms)}; leave it out, or begin anew: {delete}"
        )
    if seeds not in (None, (first, last)):
        raise UsageError(
            f"--seeds: this race was begun with {first}..{last}; leave it out, or begin anew: "
            f"{delete}"
        )


def _require_its_own(former: Mapping[str, Any], name: str, source: Source, local: Local) -> None:
    """A race is found by its study's id, which a copy that went its own way has, too: its leaders
    may be others, which would be trained and looked at on the test images in this one's name."""
    for arm, raced in Specification.from_stored(former[SPECIFICATION]).arms.items():
        trial = source.completed.get(former[RACE]["arms"][arm]["trial"])
        if trial is None:
            raise UsageError(
                f"STUDY: {name!r} races {arm}, which {source.name!r} has not completed: they are "
                "copies of different age; give this command the newer ones of both"
            )
        differing = raced.differences(source.arm(trial).seedless)
        if differing:
            field, (own, other) = next(iter(differing.items()))
            raise UsageError(
                f"STUDY: {name!r} races {arm} with {field} {other!r}, and that of {source.name!r} "
                f"has {own!r}: it is of a copy that went its own way; to race this one, begin "
                f"anew: {deleting(name, local)}"
            )


def _begin(source: Source, name: str, top: int, seeds: tuple[int, int], local: Local) -> int:
    found = leaders(source)
    if len(found) < max(2, top):
        if len(found) < 2:
            raise UsageError(
                f"STUDY: {text.plural(len(found), 'configuration')} of {source.name!r} completed, "
                "and a race takes two at least; search on with more --trials, or --pruner none"
            )
        accepted = "2" if len(found) == 2 else f"2 to {len(found)}"
        raise UsageError(
            f"--top: {top} configurations are wanted, and {len(found)} of {source.name!r} have "
            f"completed; accepted: {accepted}"
        )
    first, last = seeds
    arms = found[:top]
    prepared = companion(
        source,
        KIND,
        {leader.name: leader.arm for leader in arms},
        local,
        first_seed=source.fresh_seed,
        trials=top * first,
        name=name,
        attributes={
            RACE: {
                "first": first,
                "last": last,
                "arms": {leader.name: asdict(leader.searched) for leader in arms},
                "among": len(found),
            }
        },
    )
    return train_all(prepared)


@dataclass(frozen=True)
class Leader:
    """A configuration of a study.

    Attributes:
        arm: it.
        searched: what the study has of it.
    """

    arm: Arm
    searched: Searched

    @property
    def name(self) -> str:
        return f"trial {self.searched.trial}"


def leaders(source: Source) -> list[Leader]:
    """The configurations of a study that have completed, the best mean accuracy first.

    Trials of one configuration, such as replicates, are one: their mean is less flattered.
    """
    groups: dict[Arm, list[FrozenTrial]] = {}
    for trial in source.trials:
        if trial.state == TrialState.COMPLETE and trial.value is not None:
            groups.setdefault(source.arm(trial).seedless, []).append(trial)
    found = [Leader(arm, _searched(trials)) for arm, trials in groups.items()]
    return sorted(found, key=lambda each: (-each.searched.accuracy, each.searched.trial))


def _searched(trials: Sequence[FrozenTrial]) -> Searched:
    """Of trials of one configuration, the best first."""
    values = [trial.value or 0.0 for trial in trials]
    return Searched(trials[0].number, fmean(values), len(trials))
