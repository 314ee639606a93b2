"""Studies of arms that are made of another study: of its images, its training, its trials."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from visweep import data, text
from visweep.analysis.runs import is_ours
from visweep.cli.join import Local
from visweep.cli.options import artifacts_place, console, storage_url
from visweep.cli.prepare import Prepared
from visweep.cli.studies import opened
from visweep.cli.sweep import Asked
from visweep.errors import DataError, UsageError
from visweep.search.arms import arms_specification
from visweep.search.duplicates import trained_as
from visweep.search.study import images_folder, specification_of
from visweep.search.summary import finished
from visweep.storage.companions import companion_name, companions
from visweep.storage.engine import Storage
from visweep.storage.specification import (
    OF,
    SPECIFICATION,
    STUDY_ID,
    Arm,
    Specification,
    is_made_of,
    made_of,
)
from visweep.storage.url import bare
from visweep.training.resolve import device_name


@dataclass(frozen=True)
class Source:
    """A study that another one is made of.

    Attributes:
        name: of the study.
        specification: its own; the images are where this machine has them.
        trials: of ours those that are finished, the best completed one first.
        identifier: tells it from others of its name.
    """

    name: str
    specification: Specification
    trials: tuple[FrozenTrial, ...]
    identifier: str | None = None

    def chosen(self, number: int | None) -> FrozenTrial:
        """The completed trial of this number, or the best one.

        Raises:
            UsageError: there is none.
        """
        completed = self.completed
        if not completed:
            raise UsageError(f"STUDY: no trial of {self.name!r} has completed yet")
        if number is None:
            return next(iter(completed.values()))
        if number not in completed:
            raise UsageError(f"--trial: study {self.name!r} has no completed trial {number}")
        return completed[number]

    @property
    def completed(self) -> Mapping[int, FrozenTrial]:
        """The trials that have completed, by number, the best one first."""
        return {t.number: t for t in self.trials if t.state == TrialState.COMPLETE}

    def arm(self, trial: FrozenTrial) -> Arm:
        """A trial's configuration, to be compared with others."""
        model, train = trained_as(self.specification, trial)
        return Arm(model=model, train=train)

    @property
    def fresh_seed(self) -> int:
        """The first of the seeds that none of its trials was chosen by."""
        return max(self.specification.train.seeds) + 1


def source_of(study: str, local: Local) -> Source:
    """A study that was made by a search; nothing of it is changed.

    Raises:
        UsageError: there is no such study, or it compares arms itself.
    """
    with opened(local.storage, study) as (found, _):
        specification = specification_of(found)
        if specification.arms:
            raise UsageError(f"STUDY: {study!r} compares configurations; accepted: a search")
        if local.data_dir is None:
            folder = images_folder(found)
        else:
            folder = str(local.data_dir.expanduser())
        images = specification.data.replace(data_dir=folder)
        return Source(
            name=study,
            specification=replace(specification, data=images),
            trials=tuple(t for t in finished(found.get_trials(deepcopy=False)) if is_ours(t)),
            identifier=found.user_attrs.get(STUDY_ID),
        )


def name_of(source: Source, kind: str, local: Local) -> str:
    """What the study is called, or will be, that a command makes of another one."""
    with opened(local.storage, source.name) as (study, _):
        return companion_name(study, kind)


def begun(
    study: optuna.Study,
    storage: Storage,
    name: str,
    kind: str,
    local: Local,
    *,
    renamed_by: str | None = None,
) -> Mapping[str, Any]:
    """What a study keeps of itself that an earlier command made of another one, to go on with it;
    nothing where there is none yet. Where it was made under another name of that one, a line says
    so.

    Args:
        study: the other one.
        storage: where both lie.
        name: of the study.
        kind: what it is for.
        local: what this machine brings.
        renamed_by: the option that gives it another name.

    Raises:
        UsageError: it was not made so: of one of the same name, perhaps, that was deleted.
    """
    if name not in optuna.get_all_study_names(storage):
        return {}
    attributes = optuna.load_study(study_name=name, storage=storage).user_attrs
    identifier = study.user_attrs.get(STUDY_ID)
    if is_made_of(attributes, study.study_name, identifier, kind):
        return attributes
    if name in companions(study).get(kind, ()):
        former = attributes[OF]["study"]
        text.print_line(
            console(),
            f"going on with {name}, which was made of {study.study_name} when that was called "
            f"{former}",
        )
    elif SPECIFICATION in attributes:
        other = "" if renamed_by is None else f"give another {renamed_by}, or "
        raise UsageError(
            f"STUDY: {name!r} is there already, and this command did not make it of this "
            f"{study.study_name!r}; {other}begin anew: {deleting(name, local)}"
        )
    return attributes


def deleting(name: str, local: Local) -> str:
    """The command that deletes a study."""
    url = storage_url(local.storage)
    return shlex.join(["visweep", "delete", name, "--storage", bare(url)])


def companion(
    source: Source,
    kind: str,
    arms: Mapping[str, Arm],
    local: Local,
    *,
    first_seed: int,
    trials: int,
    name: str,
    attributes: Mapping[str, Any] = MappingProxyType({}),
    renamed_by: str = "STUDY",
) -> Prepared:
    """A study of arms beside the one that it is made of; nothing is written yet.

    Args:
        source: the study that it is made of.
        kind: what it is for, such as `ablation`.
        arms: what it compares.
        local: what this machine brings.
        first_seed: that each is trained with; the numbers after it follow.
        trials: how many it has in all.
        name: of the study.
        attributes: more that it keeps of itself.
        renamed_by: the option that gives it another name; named by errors.

    Raises:
        UsageError: this machine has no such device.
        DataError: it has not the source's images.
    """
    device = device_name(local.device)
    spec = source.specification
    dataset = data.load(spec.data)
    if dataset.fingerprint != spec.fingerprint:
        raise DataError(f"--data-dir: these are not the images of study {source.name!r}")
    specification = arms_specification(
        arms,
        first_seed=first_seed,
        data=spec.data,
        fingerprint=spec.fingerprint,
        precision=spec.train.precision,
        seed=spec.seed,
    )
    asked = Asked(
        trials=trials,
        study=name,
        storage=storage_url(local.storage),
        artifacts=artifacts_place(local.artifacts),
        data=spec.data,
        train=spec.train,
        device=local.device,
        workers=local.workers,
        timeout=local.timeout,
        pack=local.pack,
    )
    return Prepared(
        asked=asked,
        name=name,
        specification=specification,
        dataset=dataset,
        device=device,
        attributes={OF: made_of(source.name, source.identifier, kind), **attributes},
        renamed_by=renamed_by,
    )
