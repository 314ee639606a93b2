"""What shifts do to the trained models of a study."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from optuna.trial import FrozenTrial, TrialState
from rich.box import SIMPLE
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TimeRemainingColumn
from rich.table import Table

from visweep import data, text
from visweep.analysis.shifted import HOW_EQUIVARIANT, HOW_FAR, SHIFT, Shifted, named, shifted
from visweep.cli.options import artifacts_place
from visweep.cli.studies import opened
from visweep.data.resident import ResidentData, to_device
from visweep.errors import DataError, ExportError, UsageError
from visweep.search.duplicates import trained_as
from visweep.search.study import checkpoints_of, images_folder, specification_of
from visweep.search.summary import finished
from visweep.search.threads import THREADS
from visweep.storage.artifacts import Checkpoints
from visweep.storage.specification import ARM, Specification
from visweep.training.device import resolve_device
from visweep.training.passes import Member
from visweep.training.shift import Heard, Robustness, robustness, work
from visweep.training.trained import CPU, Trained, allowed_change

_MISSING = "—"


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What `visweep shift` was asked for; fields are named after the options."""

    study: str
    trials: tuple[int, ...]
    data_dir: Path | None
    device: str
    storage: str | None
    artifacts: str | None


@dataclass(frozen=True)
class _Subject:
    """A trained trial, and where its weights are."""

    trial: FrozenTrial
    member: Member
    checkpoint: Path

    def work(self, data: ResidentData) -> int:
        """How many images are evaluated for all its replicas."""
        return len(self.member.train.seeds) * work(self.member.model, data)


@dataclass(frozen=True)
class _Chosen:
    specification: Specification
    threads: int | None
    subjects: Sequence[_Subject]


def shift(console: Console, wanted: Wanted) -> None:
    """Measure each trial asked for, store what it came to in the trial, and print it.

    Raises:
        UsageError: an option is bad, or the weights of a trial are not to be had.
        DataError: these are not the study's images.
        CheckpointError: weights are damaged, or another run's.
        ExportError: what would be measured is not the trained model.
    """
    device = resolve_device(wanted.device)
    chosen = _choose(wanted)
    if chosen.threads is not None:
        # As in the search: sums are rounded by it.
        torch.set_num_threads(chosen.threads)
    dataset = data.load(chosen.specification.data)
    if dataset.fingerprint != chosen.specification.fingerprint:
        raise DataError(f"--data-dir: these are not the images of study {wanted.study!r}")
    trained_on = to_device(dataset, CPU, 0)
    there = trained_on if device.type == "cpu" else to_device(dataset, device, 0)
    found = []
    with _bar(console, sum(each.work(there) for each in chosen.subjects)) as heard:
        for subject in chosen.subjects:
            images = f"{len(dataset.val):,} validation images, shifted on {device}"
            text.print_line(console, f"{named(subject.trial)}: {images}")
            measured = _measured(subject, trained_on, there, heard).to_json()
            with opened(wanted.storage, wanted.study, to_change=True) as (_, storage):
                storage.set_trial_attributes(subject.trial._trial_id, {SHIFT: measured})
            subject.trial.user_attrs[SHIFT] = measured
            result = shifted(subject.trial)
            assert result is not None
            found.append(result)
    for part in (_by_distance(found), _by_layer(found)):
        console.print(part)
    for line in (f"Of each distance {HOW_FAR}.", HOW_EQUIVARIANT):
        text.print_line(console, line)


@contextmanager
def _bar(console: Console, total: int) -> Iterator[Heard]:
    """How much is done and how long the rest takes, while it is worked; in a terminal only."""
    columns = (
        BarColumn(None),
        TaskProgressColumn(),
        TimeRemainingColumn(elapsed_when_finished=True),
    )
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as shown:
        task = shown.add_task("", total=total)
        yield lambda images: shown.advance(task, images)


def _choose(wanted: Wanted) -> _Chosen:
    # What is measured is written in the end, so this is to fail before hours of work.
    with opened(wanted.storage, wanted.study, to_change=True) as (study, storage):
        specification = specification_of(study)
        kept = checkpoints_of(study, storage, artifacts_place(wanted.artifacts))
        # What is asked for may be changed later; Optuna's own are shared.
        trials = study.get_trials(deepcopy=True)
        own = wanted.data_dir
        where = images_folder(study) if own is None else str(own.expanduser())
        return _Chosen(
            specification=replace(specification, data=specification.data.replace(data_dir=where)),
            threads=study.user_attrs.get(THREADS),
            subjects=[
                _subject(specification, trial, kept)
                for trial in _trials(wanted, specification, trials, kept)
            ],
        )


def _trials(
    wanted: Wanted,
    specification: Specification,
    trials: Sequence[FrozenTrial],
    kept: Checkpoints,
) -> list[FrozenTrial]:
    """Those asked for, or else the best one; of arms, the best one of each that others are
    compared with."""
    ranked = [t for t in finished(trials) if t.state == TrialState.COMPLETE]
    if not ranked:
        raise UsageError(f"STUDY: no trial of {wanted.study!r} has completed yet")
    there = {number for number, _, _ in kept.all()}
    held = [trial for trial in ranked if trial.number in there]
    if wanted.trials:
        by_number = {trial.number: trial for trial in held}
        for number in wanted.trials:
            if number not in by_number:
                numbers = text.listing([str(n) for n in sorted(by_number)]) or "none"
                raise UsageError(
                    f"--trial: the weights of trial {number} are not in {kept.place.where}; "
                    f"accepted, since they are kept there: {numbers}"
                )
        return [by_number[number] for number in dict.fromkeys(wanted.trials)]
    if not held:
        raise UsageError(
            f"STUDY: no weights of {wanted.study!r} are in {kept.place.where}; "
            "--artifacts tells where they are"
        )
    compared = [name for name, arm in specification.arms.items() if arm.against is None]
    best = [next((t for t in held if t.params.get(ARM) == name), None) for name in compared]
    return [trial for trial in best if trial is not None] or held[:1]


def _subject(specification: Specification, trial: FrozenTrial, kept: Checkpoints) -> _Subject:
    checkpoint = kept.latest(trial.number)
    assert checkpoint is not None
    return _Subject(trial, Member(*trained_as(specification, trial)), checkpoint)


def _measured(
    subject: _Subject, trained_on: ResidentData, there: ResidentData, heard: Heard
) -> Robustness:
    """Of all replicas of a trial."""
    trained = Trained(subject.member, trained_on, subject.checkpoint)
    models = [trained.replica(seed) for seed in trained.seeds]
    found = robustness(models, subject.member.model, there, heard)
    then, now = trained.mean_val_accuracy, found.accuracy[0]
    if abs(now - then) > allowed_change(then, len(there.val)):
        raise ExportError(
            f"trial {subject.trial.number}: what would be measured has a validation accuracy of "
            f"{text.percent(now)}, and the trained model had {text.percent(then)}"
        )
    return found


def _by_distance(found: Sequence[Shifted]) -> Table:
    table = _table("accuracy, and error after pooling, by shift in pixels", ["model", "measured"])
    for pixels in found[0].pixels:
        table.add_column(str(pixels), justify="right", no_wrap=True)
    for each in found:
        table.add_row(each.name, "accuracy", *map(text.percent, each.accuracy))
        table.add_row("", "after pooling", *(f"{error:.2f}" for error in each.invariance))
    return table


def _by_layer(found: Sequence[Shifted]) -> Table:
    table = _table("equivariance error by layer", ["model", "layer"])
    for heading in ("stride", "error", "at 8 pixels"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in _layer_rows(found):
        table.add_row(*row)
    return table


def _layer_rows(found: Sequence[Shifted]) -> Iterator[tuple[str, ...]]:
    for each in found:
        for index, layer in enumerate(each.layers):
            far = _MISSING if layer.far_error is None else f"{layer.far_error:.2f}"
            model = "" if index else each.name
            yield model, layer.name, str(layer.stride), f"{layer.error:.2f}", far


def _table(title: str, headings: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left", header_style="bold", box=SIMPLE)
    for heading in headings:
        table.add_column(heading, overflow="fold")
    return table
