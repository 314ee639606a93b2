"""Two copies of one study made one, as rows.

A trial that has begun is known by its UUID; waiting slots are interchangeable. In a study of arms
two that trained one point, an arm with a seed, are one trial, too: both sides go through the
points in one order, and a point counts once, in the budget as in whatever compares the arms.

The laws, up to leases, which do not hold in a copy: nothing twice, nothing lost; uniting with
itself or with what is in it already changes nothing; the order of the two matters to the trials'
numbers alone.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import count

from optuna.trial import TrialState

from visweep.storage import attached
from visweep.storage.replicates import SEEDS
from visweep.storage.rows import Parts, Row, StudyRows, TrialRows, digest, plain
from visweep.storage.specification import BRANCH, BUDGET
from visweep.storage.tables import (
    FINISHED,
    OF_A_TRIAL,
    slots,
    study_system_attributes,
    user_attributes,
)

_TRUNK = "trunk"
"""What a study that was never unpacked is called among branches."""
_Key = tuple[str, int]
_Begun = Mapping[_Key, TrialRows]
_BLANK = TrialRows(
    row={"state": TrialState.WAITING, "datetime_start": None, "datetime_complete": None},
    parts={
        **{table.name: () for table in OF_A_TRIAL},
        slots.name: ({"owner": None, "generation": 0, "heartbeat": 0, "uuid": None},),
    },
)


@dataclass(frozen=True)
class Source:
    """A trial before it was united.

    Attributes:
        side: 0 for the first study, 1 for the second.
        number: of the trial there.
    """

    side: int
    number: int


@dataclass(frozen=True)
class United:
    """Two copies of a study, made one.

    Attributes:
        study: the one.
        sources: by the numbers of its trials that have begun, which trials each is the same as.
        set_aside: the copies of trials that both went on with, and that lost; or that were marked
            otherwise when they had finished.
        twice: how many of them are of a point that both sides trained by themselves.
    """

    study: StudyRows
    sources: Mapping[int, tuple[Source, ...]]
    set_aside: tuple[TrialRows, ...]
    twice: int = 0


@dataclass(frozen=True)
class _Kept:
    trial: TrialRows
    sources: tuple[Source, ...]
    rivals: tuple[TrialRows, ...] = ()


def unite(one: StudyRows, other: StudyRows) -> United:
    """Two copies of a study, made one: the trials of the first keep their numbers."""
    if one == other:
        same = {t.number: (Source(0, t.number), Source(1, t.number)) for t in one.trials}
        released = tuple(t.released() for t in one.trials)
        return United(replace(one, trials=released), same, ())
    first, second = _by_identity(one), _by_identity(other)
    points = _same_points(first, second) if one.compares_arms else {}
    second = {points.get(key, key): trial for key, trial in second.items()}
    kept = {
        trial.number: _better(trial, second[key]) if key in second else _alone(trial, 0)
        for key, trial in first.items()
    }
    free = (number for number in count() if number not in kept)
    added = [_alone(trial, 1) for key, trial in second.items() if key not in first]
    kept.update([(next(free), trial) for trial in added])
    begun = [k.trial for k in kept.values()]
    budget = _budget(one, other, begun)
    trials = {number: k.trial.numbered(number) for number, k in kept.items()}
    for trial in _waiting(one, other, begun, budget):
        number = next(free)
        trials[number] = trial.numbered(number)
    # Optuna numbers trials without gaps; the next worker closes the slots that are not wanted.
    for number in set(range(max(trials, default=-1))) - set(trials):
        trials[number] = _BLANK.numbered(number)
    return United(
        study=StudyRows(
            name=one.name,
            parts=_united_parts(one, other, budget),
            trials=tuple(trials[number].released() for number in sorted(trials)),
        ),
        sources={number: k.sources for number, k in kept.items()},
        set_aside=tuple(rival for k in kept.values() for rival in k.rivals),
        twice=sum(len(kept[first[key].number].rivals) for key in points.values()),
    )


def _waits(trial: TrialRows) -> bool:
    return trial.state == TrialState.WAITING


def _by_identity(study: StudyRows) -> _Begun:
    """The trials that have begun, in the study's order.

    Those of other tools, and those that failed before they began, have no UUID: they are known
    by when and with what they were made, and told apart by their order.
    """
    seen: Counter[str] = Counter()
    found = {}
    for trial in study.trials:
        if _waits(trial):
            continue
        born = trial.row["datetime_start"] or trial.row["datetime_complete"]
        identity = trial.uuid or digest([plain(born), trial.parameters, trial.enqueued])
        found[identity, seen[identity]] = trial
        seen[identity] += 1
    return found


def _same_points(first: _Begun, second: _Begun) -> dict[_Key, _Key]:
    """What the first calls the trials of the second that have trained a point of its own."""
    here, there = _points(first, second), _points(second, first)
    return {key: here[point] for point, key in there.items() if point in here}


def _points(side: _Begun, other: _Begun) -> dict[str, _Key]:
    """The points that one side trained by itself; of several trials of one, which only an earlier
    version left, the first."""
    found: dict[str, _Key] = {}
    for key, trial in side.items():
        point = None if key in other else _point(trial)
        if point is not None:
            found.setdefault(point, key)
    return found


def _point(trial: TrialRows) -> str | None:
    """The arm and the seed that it stands for; None for a replicate, and for what failed."""
    if trial.slot is None or trial.state == TrialState.FAIL or SEEDS in trial.attributes:
        return None
    return json.dumps(trial.parameters, sort_keys=True) if trial.parameters else None


def _alone(trial: TrialRows, side: int) -> _Kept:
    return _Kept(trial, (Source(side, trial.number),))


def _better(one: TrialRows, other: TrialRows) -> _Kept:
    """Of two copies of a trial: the finished one, then the longer, then the lower generation."""
    sources = (Source(0, one.number), Source(1, other.number))
    if essence(one) == essence(other):
        return _Kept(one, sources)
    if _is_one_run(one, other):
        return _marked(one, other, sources)

    def rank(trial: TrialRows) -> tuple[bool, int, int, str]:
        # The last decides where nothing else does, the same in either order.
        return trial.state in FINISHED, len(trial.curve), -trial.generation, essence(trial)

    winner, loser = (one, other) if rank(one) > rank(other) else (other, one)
    return _Kept(
        trial=winner,
        sources=(sources[0] if winner is one else sources[1],),
        rivals=() if _is_earlier(loser, winner) else (loser,),
    )


def _is_one_run(one: TrialRows, other: TrialRows) -> bool:
    """Whether both copies are finished, and differ in nothing but what was written to them."""
    bare = [replace(t, parts={**t.parts, user_attributes.name: ()}) for t in (one, other)]
    return one.state in FINISHED and essence(bare[0]) == essence(bare[1])


def _marked(one: TrialRows, other: TrialRows, sources: tuple[Source, ...]) -> _Kept:
    """A finished trial with what was written to either copy, such as what shifts do to it."""
    name = user_attributes.name
    rows = _union(one.parts[name], other.parts[name])
    return _Kept(
        trial=replace(one, parts={**one.parts, name: rows}),
        sources=sources,
        rivals=tuple(t for t in (one, other) if any(r not in rows for r in t.parts[name])),
    )


def essence(trial: TrialRows) -> str:
    """What a trial says, without its number and its lease; equal for equal trials alone."""
    row = {name: value for name, value in trial.row.items() if name != "number"}
    leaseless = {"owner", "heartbeat", "renewed", "lost", "reached"}
    parts = {
        name: sorted(
            json.dumps(plain({k: v for k, v in row.items() if k not in leaseless}), sort_keys=True)
            for row in rows
        )
        for name, rows in trial.parts.items()
        if rows
    }
    return json.dumps(plain([row, parts]), sort_keys=True)


def _is_earlier(trial: TrialRows, later: TrialRows) -> bool:
    """Whether the later copy of a trial still says all that this one said."""
    return (
        trial.state == TrialState.RUNNING
        and trial.generation <= later.generation
        and trial.parameters == later.parameters
        and trial.curve.items() <= later.curve.items()
        and all(
            row in later.parts[name]
            for name in ("trial_user_attributes", "trial_system_attributes")
            for row in trial.parts[name]
        )
    )


def _budget(one: StudyRows, other: StudyRows, begun: Iterable[TrialRows]) -> int:
    """The number of finished trials, or the larger budget where more are wanted."""
    finished = sum(trial.slot is not None and trial.state in FINISHED for trial in begun)
    wanted: list[int] = [study.attributes.get(BUDGET, 0) for study in (one, other)]
    return max(finished, *wanted)


def _waiting(
    one: StudyRows, other: StudyRows, begun: Iterable[TrialRows], budget: int
) -> Iterator[TrialRows]:
    """The slots that are left to be run: those that a user enqueued, and as many as are wanted."""
    enqueued = _enqueued(one.trials) | _enqueued(other.trials)
    enqueued -= _enqueued(begun)
    counted = sum(t.slot is not None and t.state != TrialState.FAIL for t in begun)
    wanted = max(0, budget - counted - enqueued.total())
    for trial in filter(_waits, one.trials):
        if trial.enqueued is None and wanted:
            wanted -= 1
            yield trial
        elif trial.enqueued is not None and enqueued[trial.enqueued]:
            enqueued[trial.enqueued] -= 1
            yield trial
    for trial in filter(_waits, other.trials):
        if trial.enqueued is not None and enqueued[trial.enqueued]:
            enqueued[trial.enqueued] -= 1
            yield trial
    for _ in range(wanted):
        yield _BLANK


def _enqueued(trials: Iterable[TrialRows]) -> Counter[str]:
    """How often each point was enqueued; a union of two counts takes the larger."""
    return Counter(trial.enqueued for trial in trials if trial.enqueued is not None)


def _united_parts(one: StudyRows, other: StudyRows, budget: int) -> Parts:
    parts = {name: _union(rows, other.parts.get(name, ())) for name, rows in one.parts.items()}
    system = study_system_attributes.name
    # The pieces of a note belong together.
    note = attached.newer_note(one.parts[system], other.parts.get(system, ()))
    parts[system] = (*(r for r in parts[system] if not attached.is_of_note(r)), *note)
    united = replace(one, parts=parts).with_attributes(**{BUDGET: budget})
    branch = _branch(one, other)
    return (united.with_attributes(**{BRANCH: branch}) if branch else united).parts


def _branch(one: StudyRows, other: StudyRows) -> str:
    """Which ways were united, so that what is proposed next is new to each of them."""
    ways = {
        way
        for study in (one, other)
        for way in (study.attributes.get(BRANCH) or _TRUNK).split("+")
    }
    return "" if ways == {_TRUNK} else "+".join(sorted(ways))


def _union(one: tuple[Row, ...], other: tuple[Row, ...]) -> tuple[Row, ...]:
    """Every row of both; where they say different things of one key, the one that says more."""
    united = {_key(row): row for row in one}
    for row in other:
        there = united.setdefault(_key(row), row)
        united[_key(row)] = max(there, row, key=lambda r: (len(_text(r)), _text(r)))
    return tuple(united.values())


def _key(row: Row) -> str:
    return str(row["key"]) if "key" in row else _text(row)


def _text(row: Row) -> str:
    return json.dumps(plain(row), sort_keys=True)
