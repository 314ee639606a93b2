"""Creating a study with its specification, and resuming it as what it was created."""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from operator import itemgetter
from pathlib import Path
from types import MappingProxyType
from typing import Any

import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from visweep.errors import UsageError, unknown_name
from visweep.search.watch import Progress, TrialView
from visweep.storage.artifacts import Checkpoints
from visweep.storage.engine import Storage
from visweep.storage.failures import storage_errors
from visweep.storage.owner import Owner, this_process
from visweep.storage.slots import Slots
from visweep.storage.specification import (
    ARTIFACTS,
    BRANCH,
    BUDGET,
    SPECIFICATION,
    STUDY_ID,
    TRAINER,
    Specification,
    require_same,
)
from visweep.storage.tables import FINISHED
from visweep.storage.whereabouts import Artifacts
from visweep.training.results import TRAINER_VERSION

STOP = "visweep:stop"
"""Study attribute: set by `visweep stop`, cleared when the sweep is run again."""
IMAGES = "visweep:images"
"""Study attribute: the folder where the command that last began or resumed it found the images."""


@dataclass(frozen=True)
class OpenStudy:
    """A study that this process works on.

    Attributes:
        study: Optuna's view of it.
        study_id: Optuna's id of it.
        storage: where it lies.
        specification: its identity.
        slots: its slots, as this process sees them.
        checkpoints: where its trials keep their state.
    """

    study: optuna.Study
    study_id: int
    storage: Storage
    specification: Specification
    slots: Slots
    checkpoints: Checkpoints

    @property
    def name(self) -> str:
        return self.study.study_name

    def trials(self) -> list[FrozenTrial]:
        """Its trials; those that other tools added are left out."""
        ours = self.slots.trial_ids()
        return [t for t in self.study.get_trials(deepcopy=False) if t._trial_id in ours]

    def make_room(self) -> None:
        """A slot that failed is replaced, and a trial that was enqueued meanwhile gets one."""
        first = self.specification.baseline()
        self.slots.set_budget(self._budget(), first=first)

    def is_to_stop(self) -> bool:
        """Whether `visweep stop` was called.

        Raises:
            KeyError: the study was deleted.
        """
        return bool(self.storage.get_study_attributes(self.study_id, STOP).get(STOP))

    def branch(self) -> str:
        """Of a copy that went its own way, what it is called; empty for the study itself."""
        return str(self.storage.get_study_attributes(self.study_id, BRANCH).get(BRANCH, ""))

    def _budget(self) -> int:
        return int(self.storage.get_study_attributes(self.study_id, BUDGET)[BUDGET])

    def progress(self, trials: Sequence[FrozenTrial] | None = None) -> Progress:
        """How far the study is, all workers counted; by its `trials` where they were just read."""
        trials = self.trials() if trials is None else trials
        count = Counter(t.state for t in trials)
        others = self.slots.held_by_others()
        best = _best(trials)
        return Progress(
            # One that was lowered afterwards takes no finished trial away.
            budget=max(self._budget(), sum(count[s] for s in FINISHED)),
            complete=count[TrialState.COMPLETE],
            pruned=count[TrialState.PRUNED],
            failed=count[TrialState.FAIL],
            running=count[TrialState.RUNNING],
            elsewhere=sum(not owner.is_here() for owner in others.values()),
            beside=tuple(
                self._beside(trial, others[trial.number])
                for trial in trials
                if trial.state == TrialState.RUNNING and _is_at_work(others.get(trial.number))
            ),
            best=None if best is None else (best.number, best.value or 0.0, best.params),
        )

    def _beside(self, trial: FrozenTrial, owner: Owner) -> TrialView:
        curve = trial.intermediate_values
        return TrialView(
            number=trial.number,
            parameters=trial.params,
            epochs=self.specification.train.epochs,
            curve=tuple(curve[epoch] for epoch in sorted(curve)),
            state=f"process {owner.pid}",
        )


def _best(trials: Sequence[FrozenTrial]) -> FrozenTrial | None:
    """The first of the best completed ones. What a pruned trial would have come to, nobody knows:
    it is the best only where none is completed."""
    for state in (TrialState.COMPLETE, TrialState.PRUNED):
        reached = [(t.value, -t.number, t) for t in trials if t.state == state]
        known = [(value, place, t) for value, place, t in reached if value is not None]
        if known:
            return max(known, key=itemgetter(0, 1))[2]
    return None


def _is_at_work(owner: Owner | None) -> bool:
    return owner is not None and owner.is_here() and not owner.is_gone()


def open_study(
    storage: Storage,
    name: str,
    specification: Specification,
    budget: int,
    artifacts: str | None = None,
    attributes: Mapping[str, Any] = MappingProxyType({}),
    *,
    renewed: Mapping[str, Any] = MappingProxyType({}),
    option: str = "--study",
) -> OpenStudy:
    """Create the study, or resume it, with room for `budget` trials in all.

    Args:
        storage: where it lies.
        name: of the study.
        specification: what it must be.
        budget: how many trials it has in all.
        artifacts: where its artifacts lie from now on; None for where it says.
        attributes: more that a new study keeps of itself.
        renewed: what it keeps of itself from now on, new or not.
        option: that gives the study another name; named by errors.

    Raises:
        UsageError: the study exists under another identity, or is not ours.
    """
    with storage_errors(storage):
        study = optuna.create_study(
            study_name=name, storage=storage, direction="maximize", load_if_exists=True
        )
        if SPECIFICATION not in study.user_attrs:
            _require_new(study, option)
            place = {} if artifacts is None else {ARTIFACTS: artifacts}
            own = {**_of_a_new_study(specification, budget), **place, **attributes, **renewed}
            storage.set_study_attributes_once(study._study_id, own)
        stored = study.user_attrs[SPECIFICATION]
        specification = _in_stored_precision(specification, stored["identity"])
        require_same(name, stored["identity"], specification, option)
        specification = _judged_as_stored(specification, stored)
        for key, value in renewed.items():
            # Before there is room, which is for the arms that take part.
            if study.user_attrs.get(key) != value:
                study.set_user_attr(key, value)
        study.set_user_attr(BUDGET, budget)
        keep_artifacts_in(study, artifacts)
        keep_images_in(study, specification.data.data_dir)
        study.set_user_attr(STOP, False)
        slots = Slots(storage, study._study_id, this_process())
        slots.set_budget(budget, first=specification.baseline())
        return OpenStudy(
            study=study,
            study_id=study._study_id,
            storage=storage,
            specification=specification,
            slots=slots,
            checkpoints=checkpoints_of(study, storage),
        )


def _of_a_new_study(specification: Specification, budget: int) -> dict[str, Any]:
    """What it keeps of itself from the first. It is written in one transaction, with what else it
    is given then: where there is a specification, there is all of it."""
    return {
        SPECIFICATION: specification.stored(),
        STUDY_ID: uuid.uuid4().hex,
        BUDGET: budget,
        TRAINER: TRAINER_VERSION,
    }


def keep_artifacts_in(study: optuna.Study, place: str | None) -> None:
    """Store where a study's artifacts lie, for whoever works on it from now on."""
    if place is not None and study.user_attrs.get(ARTIFACTS) != place:
        study.set_user_attr(ARTIFACTS, place)


def keep_images_in(study: optuna.Study, folder: str | None) -> None:
    """Store where a study's images lie, for whoever goes on with it on this machine."""
    if folder is not None:
        place = str(Path(folder).resolve())
        if study.user_attrs.get(IMAGES) != place:
            study.set_user_attr(IMAGES, place)


def join_study(
    storage: Storage,
    name: str,
    data_dir: str | None = None,
    artifacts: str | None = None,
    *,
    answered: bool = False,
) -> OpenStudy:
    """A study as one more worker of it sees it: its budget and its specification stand.

    Args:
        storage: where it lies.
        name: of the study.
        data_dir: folder of its images on this machine.
        artifacts: where this machine finds its artifacts; None for where the study says.
        answered: whether they have answered this machine before, so that they are waited for.

    Raises:
        UsageError: there is no such study, or another tool made it.
    """
    study = load_study(storage, name)
    specification = specification_of(study)
    return OpenStudy(
        study=study,
        study_id=study._study_id,
        storage=storage,
        specification=replace(specification, data=specification.data.replace(data_dir=data_dir)),
        slots=Slots(storage, study._study_id, this_process()),
        checkpoints=checkpoints_of(study, storage, artifacts, answered=answered),
    )


def _in_stored_precision(
    specification: Specification, identity: Mapping[str, Any]
) -> Specification:
    """On another device the study goes on in the number format that it was begun in."""
    precision = identity["train"]["precision"]
    return specification.in_precision(precision)


def _judged_as_stored(specification: Specification, stored: Mapping[str, Any]) -> Specification:
    """Every machine judges the limits as the one that created the study."""
    return replace(specification, limits=specification.limits.with_judge(stored.get("judge")))


def _require_new(study: optuna.Study, option: str) -> None:
    """A study without specification is ours only if a kill fell between creating and storing."""
    begun = [t for t in study.get_trials(deepcopy=False) if t.state.name != "WAITING"]
    if begun or study.directions != [StudyDirection.MAXIMIZE]:
        raise UsageError(
            f"{option}: {study.study_name!r} was made by another tool; give another name"
        )


def load_study(storage: Storage, name: str, option: str = "STUDY") -> optuna.Study:
    """An existing study, to be read; errors name the option that named it.

    Raises:
        UsageError: there is no study of that name; the nearest is suggested.
    """
    with storage_errors(storage):
        names = optuna.get_all_study_names(storage)
        if name not in names:
            if not names:
                raise UsageError(f"{option}: {name!r} is not here: the storage holds no studies")
            raise unknown_name(option, name, names)
        return optuna.load_study(study_name=name, storage=storage)


def specification_of(study: optuna.Study, option: str = "STUDY") -> Specification:
    """The specification stored in a study; errors name the option that named the study.

    Raises:
        UsageError: it has none: another tool made it.
    """
    stored: dict[str, Any] | None = study.user_attrs.get(SPECIFICATION)
    if stored is None:
        raise UsageError(f"{option}: {study.study_name!r} was not made by visweep")
    return Specification.from_stored(stored)


def images_folder(study: optuna.Study) -> str | None:
    """Where its images were found last, of the folders that are on this machine, too."""
    trials = reversed(study.get_trials(deepcopy=False))
    of_trials = (t.user_attrs.get("provenance", {}).get("data_dir") for t in trials)
    return next((f for f in (study.user_attrs.get(IMAGES), *of_trials) if f and _is_here(f)), None)


def _is_here(folder: str) -> bool:
    try:
        return Path(folder).is_dir()
    except PermissionError:  # what another machine has there, we may not even look at here
        return False


def checkpoints_of(
    study: optuna.Study,
    storage: Storage,
    artifacts: str | None = None,
    *,
    answered: bool = False,
) -> Checkpoints:
    """A study's checkpoints.

    Args:
        study: the study.
        storage: where it lies.
        artifacts: where this machine finds its artifacts; None for where the study says.
        answered: whether they have answered this machine before, so that they are waited for.

    Raises:
        UsageError: this machine cannot look there.
    """
    url = storage.engine.url.render_as_string(hide_password=False)
    place = Artifacts(url, artifacts, answered).of(study.study_name, study.user_attrs)
    return Checkpoints(place)
