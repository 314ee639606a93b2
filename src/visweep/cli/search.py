"""Running a prepared search to its end, or until it is stopped."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import optuna
import torch
from rich.console import Console

from visweep import text
from visweep.cli.options import missing_folder, storage_arguments
from visweep.cli.prepare import Prepared
from visweep.data.dataset import Dataset
from visweep.data.resident import to_device
from visweep.data.shared import share
from visweep.errors import DataError
from visweep.search.crew import Crew, Job
from visweep.search.interrupt import Interrupt
from visweep.search.live import view_for
from visweep.search.study import OpenStudy, open_study
from visweep.search.summary import print_summary
from visweep.search.threads import default_workers, pinned_threads
from visweep.search.trainer import SharedTrainer, trainer_on
from visweep.search.watch import Watcher
from visweep.search.worker import Worker
from visweep.storage.engine import Storage, open_storage, storage_errors

_STATUS = {"interrupted": 130, "terminated": 143}


@dataclass(frozen=True, kw_only=True)
class Means:
    """What this machine works on a study with.

    Attributes:
        storage: URL of the storage.
        dataset: the study's images.
        data_dir: folder that they came from, where one was given.
        device: that trains.
        workers: how many processes; None for as many as suit the device.
        timeout: seconds after which to stop; None for never.
    """

    storage: str
    dataset: Dataset
    data_dir: str | None
    device: torch.device
    workers: int | None
    timeout: float | None


def search_until_done(console: Console, prepared: Prepared, command: str) -> int:
    """Search, show it, and say at the end what came of it; returns the exit status.

    Args:
        console: where to show it.
        prepared: the search.
        command: how this was called; shown as the way to resume.
    """
    asked = prepared.asked
    missing = missing_folder(asked.storage)
    if missing is not None:
        missing.mkdir(exist_ok=True)
    means = Means(
        storage=asked.storage,
        dataset=prepared.dataset,
        data_dir=asked.data.data_dir,
        device=prepared.device,
        workers=asked.workers,
        timeout=asked.timeout,
    )
    with quietly_opened(asked.storage) as storage:
        opened = open_study(storage, prepared.name, prepared.specification, asked.trials)
        return work_on(console, opened, means, command)


@contextmanager
def quietly_opened(url: str, *, must_exist: bool = False) -> Iterator[Storage]:
    """A storage, closed again afterwards; Optuna says only what matters."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    storage = open_storage(url, must_exist=must_exist)
    try:
        with storage_errors(storage):
            yield storage
    finally:
        storage.close()


def work_on(console: Console, opened: OpenStudy, means: Means, command: str) -> int:
    """Work on a study until it is finished or this command is stopped; returns the exit status."""
    view = view_for(console)
    try:
        with Interrupt(means.timeout, heard=view.stopping).listening() as interrupt:
            _workers(opened, means, view, interrupt).run()
    finally:
        view.close()
    print_summary(
        console,
        opened.name,
        opened.trials(),
        opened.specification.train.epochs,
        where=storage_arguments(means.storage),
        images=_images(means),
    )
    if interrupt.reason:
        text.print_line(console, f"stopped: {interrupt.reason}. resume: {command}")
    return _STATUS.get(interrupt.reason, 0)


def _images(means: Means) -> Sequence[str]:
    return [] if means.data_dir is None else ["--data-dir", means.data_dir]


def _workers(
    opened: OpenStudy, means: Means, view: Watcher, interrupt: Interrupt
) -> Worker | Crew:
    wanted = means.workers or default_workers(means.device.type)
    threads = pinned_threads(opened, wanted)
    margin = opened.specification.train.translate
    count = min(wanted, opened.slots.unfinished())
    if count <= 1:
        torch.set_num_threads(threads)
        data = to_device(means.dataset, means.device, margin)
        return Worker(opened, SharedTrainer(data), view, interrupt)
    try:
        images = share(to_device(means.dataset, torch.device("cpu"), margin))
    except DataError as e:
        if means.workers is not None:
            raise
        view.note(f"one worker only: {e}")
        data = to_device(means.dataset, means.device, margin)
        return Worker(opened, SharedTrainer(data), view, interrupt)
    job = Job(
        storage=means.storage,
        study=opened.name,
        data_dir=means.data_dir,
        make_trainer=partial(trainer_on, images, str(means.device), threads),
    )
    return Crew(opened, job, count, view, interrupt)
