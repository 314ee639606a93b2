"""What is wrong or stale in the rows of a storage, and in the checkpoints of its studies.

Rows are read in a transaction, and examined together with what was seen of the checkpoints before
or after: a place may be slow or away, and nobody shall wait for it meanwhile.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial

import sqlalchemy as sa
from optuna.trial import TrialState

from visweep import text
from visweep.errors import CheckpointError, StorageError, UsageError
from visweep.sealed import unseal
from visweep.storage import attached, rows, schema
from visweep.storage.artifacts import Checkpoints
from visweep.storage.backup import read_study
from visweep.storage.mending import (
    close_as_failed,
    delete_reports_after,
    delete_where,
    give_slot,
    give_uuids,
    release,
    set_attributes,
    set_value,
    set_waiting,
)
from visweep.storage.owner import Owner
from visweep.storage.place import Place
from visweep.storage.rows import StudyRows, TrialRows, UnreadableRows, unreadable
from visweep.storage.specification import BUDGET, SPECIFICATION, STUDY_ID
from visweep.storage.tables import (
    FINISHED,
    FINITE,
    OF_A_STUDY,
    OF_A_TRIAL,
    studies,
    trials,
)
from visweep.storage.whereabouts import Artifacts

HOPELESS = "none; go back to a copy, or save what can still be read: visweep pack STUDY"
_UNREADABLE = (ValueError, LookupError, TypeError)
"""What rows raise that are not what Optuna and we write."""


@dataclass(frozen=True)
class Finding:
    """Something that is not as it should be.

    Attributes:
        what: is found, and where.
        remedy: what a repair does about it.
        wrong: whether no worker leaves this behind; otherwise it is stale.
        mend: does it, in a transaction; None where nothing is to be done to rows, or can be.
        put_aside: does it, where it is a file that is damaged; after that transaction.
    """

    what: str
    remedy: str
    wrong: bool = True
    mend: Callable[[sa.Connection], None] | None = field(default=None, compare=False, repr=False)
    put_aside: Callable[[], None] | None = field(default=None, compare=False, repr=False)

    @property
    def can_be_mended(self) -> bool:
        return self.mend is not None or self.put_aside is not None


@dataclass(frozen=True)
class Snapshot:
    """What one moment of a storage holds.

    Attributes:
        findings: of the rows that belong to no study or cannot be read.
        studies: those that visweep made, each with the database's ids of its trials.
    """

    findings: tuple[Finding, ...]
    studies: tuple[tuple[StudyRows, list[int]], ...]


@dataclass(frozen=True)
class States:
    """What trials of one study would go on from.

    Attributes:
        newest: the generation of each trial's newest checkpoint, by the trial's number; None
            where the place could not be looked at.
        findings: of the checkpoints.
    """

    newest: Mapping[int, int] | None
    findings: tuple[Finding, ...] = ()


@dataclass(frozen=True)
class _Trial:
    """A trial as it is examined."""

    study: str
    trial_id: int
    rows: TrialRows
    space: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"study {self.study!r}, trial {self.rows.number}"

    def wrong(self, what: str, remedy: str, mend: Callable[..., None] | None) -> Finding:
        bound = None if mend is None else partial(mend, trial_id=self.trial_id)
        return Finding(f"{self.name}: {what}", remedy, mend=bound)


def read_snapshot(connection: sa.Connection, name: str | None) -> Snapshot:
    """Read all studies, or one.

    Raises:
        UsageError: there is none of this name.
    """
    found = [*_orphans(connection), *_without_uuid(connection)] if name is None else []
    ours = []
    for study_name in rows.names(connection) if name is None else [name]:
        try:
            study = read_study(connection, study_name)
        except UnreadableRows as e:
            found.append(Finding(str(e), HOPELESS))
            continue
        # Another tool's study has its own rules.
        if SPECIFICATION in study.attributes:
            ids = rows.trial_ids(connection, rows.id_of(connection, study_name))
            ours.append((study, ids))
    return Snapshot(tuple(found), tuple(ours))


def look_at_states(study: StudyRows, artifacts: Artifacts) -> States:
    """Read every checkpoint of a study, which may take long."""
    newest: dict[int, int] | None = None
    found: list[Finding] = []
    try:
        place = artifacts.of(study.name, study.attributes)
        newest = {number: generation for number, generation, _ in Checkpoints(place).all()}
        found.extend(_damaged(study, place))
        found.extend(_detached(study, artifacts.above(study.name, study.attributes)))
    except (UsageError, StorageError) as e:
        what = f"study {study.name!r}: its checkpoints were not checked: {e}"
        found.append(Finding(what, "none; check again when they can be read", wrong=False))
    except _UNREADABLE as e:
        found.append(Finding(unreadable(study.name, e), HOPELESS))
    return States(newest, tuple(found))


def _damaged(study: StudyRows, place: Place) -> Iterator[Finding]:
    for _, _, name in Checkpoints(place).all():
        try:
            unseal(place.read(name), f"{place.where}/{name}")
        except FileNotFoundError:  # a worker needs it no more
            continue
        except (CheckpointError, OSError) as e:
            yield Finding(
                f"study {study.name!r}: {e}",
                f"renamed to {name}.damaged; a trial that needs it begins anew",
                put_aside=partial(_put_aside, place, name),
            )


def _detached(study: StudyRows, place: Place) -> Iterator[Finding]:
    """A disk that failed, or a person, may have taken a file away that we attached."""
    for key, name in attached.missing(study, place):
        yield Finding(
            f"study {study.name!r}: {name} is attached to it, and the file is missing",
            "said no more to be attached",
            wrong=False,
            mend=partial(attached.forget, study=study.name, key=key),
        )


def _put_aside(place: Place, name: str) -> None:
    try:
        place.rename(name, f"{name}.damaged")
    except FileNotFoundError:  # a worker has found it, too, and begun anew
        return
    except OSError as e:
        where = f"{place.where}/{name}"
        raise StorageError(f"{where}: cannot be renamed ({e.strerror or e})") from e


def examine(snapshot: Snapshot, states: Mapping[str, States]) -> list[Finding]:
    """What is wrong or stale.

    Args:
        snapshot: of the rows.
        states: of the studies, by their names, as far as somebody looked.
    """
    found = list(snapshot.findings)
    for study, ids in snapshot.studies:
        try:
            found.extend(_examine_study(study, ids, states.get(study.name, States(None))))
        except _UNREADABLE as e:
            found.append(Finding(unreadable(study.name, e), HOPELESS))
    return found


def _orphans(connection: sa.Connection) -> Iterator[Finding]:
    """Rows that belong to nothing."""
    for owners, key, tables in (
        (studies, "study_id", (*OF_A_STUDY, trials)),
        (trials, "trial_id", OF_A_TRIAL),
    ):
        there = sa.select(owners.c[key])
        for table in tables:
            astray = table.c[key].not_in(there)
            count = connection.execute(
                sa.select(sa.func.count()).select_from(table).where(astray)
            ).scalar_one()
            if count:
                owner = key.removesuffix("_id")
                yield Finding(
                    f"{text.plural(count, 'row')} of {table.name} without a {owner}",
                    "deleted",
                    mend=partial(delete_where, table=table, condition=astray),
                )


def _without_uuid(connection: sa.Connection) -> Iterator[Finding]:
    missing = schema.missing_uuids(connection)
    if missing:
        yield Finding(
            f"{text.plural(len(missing), 'trial')} begun without an identity of its own, by an "
            "older visweep",
            "given one that every copy of the study agrees on",
            mend=give_uuids,
        )


def _examine_study(study: StudyRows, ids: list[int], states: States) -> Iterator[Finding]:
    space = tuple(study.attributes[SPECIFICATION]["identity"]["space"])
    newest = states.newest
    yield from states.findings
    numbers = Counter(t.number for t in study.trials)
    astray = [n for n in numbers if numbers[n] > 1 or not 0 <= n < len(study.trials)]
    if astray:
        yield Finding(
            f"study {study.name!r}: trial number {astray[0]} is given twice or leaves a gap",
            HOPELESS,
        )
    for trial_id, trial in zip(ids, study.trials, strict=True):
        examined = _Trial(study.name, trial_id, trial, space)
        if trial.slot is None:
            yield from _slotless(examined, study, (newest or {}).get(trial.number))
            continue
        yield from _examine_trial(examined, newest is None or trial.number in newest)
    yield from _examine_budget(study)


def _slotless(trial: _Trial, study: StudyRows, generation: int | None) -> Iterator[Finding]:
    """Trials that other tools added have no slot; ours say where they were run."""
    ours = generation is not None or "provenance" in trial.rows.attributes
    if ours and trial.rows.state != TrialState.WAITING and trial.rows.parameters:
        identity = schema.inferred_uuid(
            study.attributes[STUDY_ID], trial.rows.number, trial.rows.parameters.items()
        )
        yield trial.wrong(
            "was begun and has no slot",
            "given one again",
            partial(give_slot, generation=generation or 1, identity=identity),
        )


def _examine_trial(trial: _Trial, has_state: bool) -> Iterator[Finding]:
    yield from _examine_lease(trial)
    found = trial.rows
    running = found.state == TrialState.RUNNING and found.generation > 0
    if not running and found.state not in FINISHED:
        return
    unset = [name for name in trial.space if name not in found.parameters]
    if unset:
        yield trial.wrong(
            f"was begun without its parameter {unset[0]}",
            "set waiting again" if running else "closed as failed, and another is run instead",
            set_waiting if running else partial(close_as_failed, cause="a parameter was missing"),
        )
        return
    missing = [e for e in range(1, max(found.curve, default=0) + 1) if e not in found.curve]
    if missing:
        yield trial.wrong(
            f"its curve lacks epoch {missing[0]}",
            "its later epochs are forgotten, and reported again when it goes on"
            if running
            else "closed as failed, and another is run instead",
            partial(delete_reports_after, epoch=missing[0])
            if running
            else partial(close_as_failed, cause="its curve had a gap"),
        )
    elif not running:
        yield from _examine_result(trial)
    elif found.curve and not has_state:
        yield Finding(
            f"{trial.name}: its checkpoint is missing",
            "none needed: it begins anew under its own number",
            wrong=False,
        )


def _examine_lease(trial: _Trial) -> Iterator[Finding]:
    owner = _owner(trial.rows)
    mend = partial(release, trial_id=trial.trial_id)
    if isinstance(owner, str):
        yield trial.wrong("its lease has an owner that cannot be read", "released", release)
    elif owner is not None and not trial.rows.state.is_finished() and owner.is_gone():
        yield Finding(
            f"{trial.name}: its worker is gone (process {owner.pid})", "released", False, mend
        )


def _owner(trial: TrialRows) -> Owner | str | None:
    """Who holds the lease; the text itself where it cannot be read."""
    held: str | None = None if trial.slot is None else trial.slot["owner"]
    try:
        return None if held is None else Owner.from_text(held)
    except (ValueError, TypeError):
        return held


def _examine_result(trial: _Trial) -> Iterator[Finding]:
    found = trial.rows
    last = found.curve.get(len(found.curve))
    values = found.parts["trial_values"]
    complete = found.state == TrialState.COMPLETE
    if not found.curve and complete:
        yield trial.wrong(
            "is finished and has no curve",
            "closed as failed, and another is run instead",
            partial(close_as_failed, cause="its curve was lost"),
        )
        return
    if not values and last is not None:
        yield trial.wrong(
            "is finished and has no value",
            "given that of its last epoch",
            partial(set_value, value=last),
        )
    elif complete and any(v["value_type"] != FINITE for v in values):
        yield trial.wrong(
            "is finished with a value that is no number",
            "closed as failed, and another is run instead",
            partial(close_as_failed, cause="its value was no number"),
        )
    yield from _examine_attributes(trial)


def _examine_attributes(trial: _Trial) -> Iterator[Finding]:
    found = trial.rows
    epochs = len(found.curve)
    complete = found.state == TrialState.COMPLETE
    inferred = {
        "ended": "completed" if complete else f"pruned at epoch {epochs}",
        "epochs": epochs,
        "provenance": {},
    }
    there = found.attributes
    needed = inferred if complete else ("ended",)
    missing = {name: inferred[name] for name in needed if name not in there}
    if missing:
        yield trial.wrong(
            f"is finished and lacks its attribute {next(iter(missing))}",
            "given as far as its curve tells",
            partial(set_attributes, values=missing),
        )
    elif complete and there["epochs"] != epochs:
        yield trial.wrong(
            f"its curve has {text.plural(epochs, 'epoch')} of {there['epochs']}",
            "closed as failed, and another is run instead",
            partial(close_as_failed, cause="its curve was cut short"),
        )


def _examine_budget(study: StudyRows) -> Iterator[Finding]:
    """A worker makes it right whenever it looks for a slot, and so does a repair."""
    budget = study.attributes.get(BUDGET)
    if budget is None:
        return
    counted = [t for t in study.trials if t.slot is not None and t.state != TrialState.FAIL]
    spare = sum(t.state == TrialState.WAITING for t in counted)
    surplus = len(counted) - budget
    if surplus < 0 or min(surplus, spare) > 0:
        yield Finding(
            f"study {study.name!r}: has {text.plural(len(counted), 'slot')} for a budget of "
            f"{budget}",
            "added" if surplus < 0 else "removed as far as they wait",
            wrong=False,
            mend=lambda _: None,
        )
