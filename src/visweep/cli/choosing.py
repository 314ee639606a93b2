"""Which trial of a study is exported, and where its weights are."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from visweep import text
from visweep.cli.options import artifacts_place, storage_arguments, storage_url
from visweep.cli.studies import opened
from visweep.config import ModelConfig, TrainConfig
from visweep.errors import UsageError
from visweep.search.duplicates import trained_as
from visweep.search.study import checkpoints_of, images_folder, specification_of
from visweep.search.summary import finished
from visweep.search.threads import THREADS
from visweep.storage.artifacts import Checkpoints
from visweep.storage.companions import companions
from visweep.storage.specification import ARM, TEST, Arm, Specification


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What `visweep export` was asked for; fields are named after the options."""

    study: str
    trial: int | None
    seed: int | None
    output: Path | None
    checkpoint: Path | None
    data_dir: Path | None
    storage: str | None
    artifacts: str | None


@dataclass(frozen=True)
class Chosen:
    """A trial of a study, as far as the study knows it.

    Attributes:
        wanted: what was asked for.
        trial: as Optuna has it.
        specification: of its study; the images are where this machine has them.
        model, train: what it was trained as.
        checkpoint: of its last epoch.
        threads: with which its study is trained.
        ranked: the finished trials of its study, the best first.
        tested: what a race measured on the test images, as its study keeps it; empty where none
            did.
    """

    wanted: Wanted
    trial: FrozenTrial
    specification: Specification
    model: ModelConfig
    train: TrainConfig
    checkpoint: Path
    threads: int | None
    ranked: tuple[FrozenTrial, ...]
    tested: Mapping[str, Any] = field(default_factory=dict)

    @property
    def arm(self) -> str:
        """What a race calls its configuration."""
        return _raced_as(self.trial)


def choose(wanted: Wanted) -> Chosen:
    """The trial asked for, or else the best that completed.

    Raises:
        UsageError: there is none, or its weights are not to be had.
    """
    with opened(wanted.storage, wanted.study) as (study, storage):
        specification = specification_of(study)
        trials = study.get_trials(deepcopy=False)
        trial = _trial(wanted, trials)
        where = images_folder(study) if wanted.data_dir is None else str(wanted.data_dir)
        model, train = trained_as(specification, trial)
        checkpoint = wanted.checkpoint
        if checkpoint is None:
            kept = checkpoints_of(study, storage, artifacts_place(wanted.artifacts))
            checkpoint = _kept(wanted, kept, trial.number, trials)
        elif not checkpoint.is_file():
            raise UsageError(f"--checkpoint: there is no file {checkpoint}")
        return Chosen(
            wanted=wanted,
            trial=trial,
            specification=replace(specification, data=specification.data.replace(data_dir=where)),
            model=model,
            train=train,
            checkpoint=checkpoint,
            threads=study.user_attrs.get(THREADS),
            ranked=tuple(finished(trials)),
            tested=_tested(study, trials),
        )


def _tested(study: optuna.Study, trials: Sequence[FrozenTrial]) -> Mapping[str, Any]:
    """By the race that the study is, or by the one that was made of it."""
    races = companions(study).get("race", [])
    if TEST in study.user_attrs or not races:
        return dict(study.user_attrs.get(TEST, {}))
    race = optuna.load_study(study_name=races[0], storage=study._storage)
    tested: dict[str, Any] = race.user_attrs.get(TEST, {})
    if not tested:
        return {}
    # It may be of a copy that went on otherwise, where the number is another trial's.
    winner = specification_of(race).arms[tested["arm"]].seedless
    named = [t for t in trials if _raced_as(t) == tested["arm"] and t.params]
    alike = [t for t in named if not _configured(study, t).seedless.differences(winner)]
    return tested if alike else {}


def _raced_as(trial: FrozenTrial) -> str:
    return str(trial.params.get(ARM, f"trial {trial.number}"))


def _configured(study: optuna.Study, trial: FrozenTrial) -> Arm:
    model, train = trained_as(specification_of(study), trial)
    return Arm(model=model, train=train)


def _trial(wanted: Wanted, trials: Sequence[FrozenTrial]) -> FrozenTrial:
    if wanted.trial is None:
        completed = _completed(trials)
        if not completed:
            raise UsageError(f"STUDY: no trial of {wanted.study!r} has completed yet")
        return completed[0]
    found = next((t for t in trials if t.number == wanted.trial), None)
    if found is None:
        raise UsageError(f"--trial: study {wanted.study!r} has no trial {wanted.trial}")
    if found.state != TrialState.COMPLETE:
        raise UsageError(
            f"--trial: trial {found.number} is {found.state.name.lower()}; "
            "accepted: one that completed"
        )
    return found


def _completed(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """The best first."""
    return [t for t in finished(trials) if t.state == TrialState.COMPLETE]


def _kept(
    wanted: Wanted, checkpoints: Checkpoints, number: int, trials: Sequence[FrozenTrial]
) -> Path:
    """The checkpoint of a trial, if it is one of those that the study keeps."""
    found = checkpoints.latest(number)
    if found is not None and found.exists():
        return found
    completed = {t.number for t in _completed(trials)}
    there = sorted({n for n, _, _ in checkpoints.all()} & completed)
    others = f"of {text.listing([str(n) for n in there])}" if there else "none"
    train, export = _again(wanted, number)
    raise UsageError(
        f"--trial: the weights of trial {number} are not in {checkpoints.place.where} (kept "
        f"there: {others}; a search keeps its best three); train it again: {train}, then: {export}"
    )


def _again(wanted: Wanted, number: int) -> tuple[str, str]:
    """The commands that train a trial again, and export what comes of it."""
    which = ["--trial", str(number), "--checkpoint", f"trial-{number}.ckpt"]
    where = storage_arguments(storage_url(wanted.storage))
    if wanted.data_dir is not None:
        where += ["--data-dir", str(wanted.data_dir)]
    train = ["visweep", "train", "--study", wanted.study, *which, *where]
    return shlex.join(train), shlex.join(["visweep", "export", wanted.study, *which, *where])
