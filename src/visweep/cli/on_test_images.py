"""The test images, looked at once: for the configuration that a race has chosen."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from optuna.trial import FrozenTrial, TrialState
from rich.console import Console

from visweep import data, text
from visweep.analysis import race_words as words
from visweep.analysis.race import Raced, TestResult, read_race
from visweep.analysis.runs import by_seed
from visweep.cli.join import Local
from visweep.cli.options import artifacts_place, storage_url
from visweep.cli.search import quietly_opened
from visweep.data.dataset import Split, fingerprint
from visweep.errors import CheckpointError, DataError, UsageError
from visweep.search.duplicates import trained_as
from visweep.search.study import OpenStudy, images_folder, join_study, load_study
from visweep.storage.specification import ARM, SEED, TEST, provenance


def evaluate_once(console: Console, name: str, local: Local) -> None:
    """Show what the chosen configuration reaches on the test images, measured now if it never was.

    Args:
        console: where to show it.
        name: of a race that is over.
        local: what this machine brings.

    Raises:
        DataError: these are not the study's images.
        UsageError: the weights of a run are not to be had here.
        CheckpointError: they are damaged.
    """
    url = storage_url(local.storage)
    with quietly_opened(url, must_exist=True) as storage:
        folder = None if local.data_dir is None else str(local.data_dir.expanduser())
        folder = folder or images_folder(load_study(storage, name))
        place = artifacts_place(local.artifacts)
        opened = join_study(storage, name, folder, place)
        raced = _read(opened)
        if raced.chosen is None:
            return
        if raced.test is None:
            try:
                images = data.load_test(opened.specification.data)
            except DataError as e:
                text.print_line(console, f"the test images were not looked at: {e}")
                return
            _measure(opened, raced, raced.chosen, images, local.device)
            raced = _read(opened)
            _thin(opened, raced.chosen)
        for line in _shown(raced):
            text.print_line(console, line)


def _read(opened: OpenStudy) -> Raced:
    return read_race(opened.study.user_attrs, opened.specification, opened.trials())


def _shown(raced: Raced) -> Iterator[str]:
    assert raced.test is not None
    for number in words.numbers(raced, raced.test.arm):
        between = f" ({number.interval})" if number.interval else ""
        yield f"{raced.test.arm}, {number.what}: {number.accuracy}{between} – {number.remark}"
    yield words.curse(raced)


def _measure(opened: OpenStudy, raced: Raced, arm: str, images: Split, device: str) -> None:
    """See that the number is stored, once."""
    try:
        measured = _measured(opened, raced, arm, images, device)
    except (UsageError, CheckpointError):
        # Another command was faster: the weights go as soon as it has stored the number.
        if _read(opened).test is None:
            raise
    else:
        opened.storage.set_study_attributes_once(opened.study_id, {TEST: measured})


def _measured(
    opened: OpenStudy, raced: Raced, arm: str, images: Split, device: str
) -> dict[str, Any]:
    """What a study keeps of it: JSON values."""
    from visweep.analysis.statistics.generalisation import generalisation
    from visweep.data.resident import to_device
    from visweep.training.device import resolve_device
    from visweep.training.passes import Member
    from visweep.training.tested import correct
    from visweep.training.trained import CPU, Trained

    dataset = data.load(opened.specification.data)
    if dataset.fingerprint != opened.specification.fingerprint:
        raise DataError(f"--data-dir: these are not the images of study {opened.name!r}")
    resident = to_device(dataset, CPU, 0)
    runs = [_run(opened, arm, seed) for seed in raced.seeds_of(arm)]

    def models() -> Iterator[Any]:
        for trial in runs:
            path = opened.checkpoints.latest(trial.number)
            if path is None or not path.exists():
                raise UsageError(
                    f"--artifacts: the weights of trial {trial.number} of {opened.name!r} are not "
                    f"in {opened.checkpoints.place.where}; the test images are looked at where "
                    "the race was run"
                )
            model, train = trained_as(opened.specification, trial)
            trained = Trained(Member(model, train), resident, path)
            yield trained.replica(trained.seeds[0])

    wanted = resolve_device(device)
    there = resident if wanted.type == "cpu" else to_device(dataset, wanted, 0)
    right = correct(models(), there, images)
    found = generalisation(right, images.groups)
    seeds = [int(trial.params[SEED]) for trial in runs]
    measured = TestResult(**{**asdict(found), "arm": arm, "seeds": tuple(seeds)})
    return {
        **asdict(measured),
        "seeds": seeds,
        "by_seed": right.mean(1).tolist(),
        "trials": [trial.number for trial in runs],
        "fingerprint": fingerprint(images.images, images.labels),
        "measured": datetime.now(UTC).isoformat(timespec="seconds"),
        "provenance": provenance(str(there.device), opened.specification.data.data_dir),
    }


def _run(opened: OpenStudy, arm: str, seed: int) -> FrozenTrial:
    return by_seed(opened.trials(), arm, [TrialState.COMPLETE])[seed]


def _thin(opened: OpenStudy, arm: str | None) -> None:
    """Of all runs the best of the chosen configuration keeps its weights."""
    finished = [t for t in opened.trials() if t.state.is_finished()]
    own = [t for t in finished if t.params.get(ARM) == arm and t.state == TrialState.COMPLETE]
    best = max(own, key=lambda t: t.value or 0.0)
    opened.checkpoints.thin({t.number for t in finished}, {best.number})
