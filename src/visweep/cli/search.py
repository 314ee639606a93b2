"""Running a prepared search to its end, or until it is stopped."""

from __future__ import annotations

import logging

import optuna
from rich.console import Console

from visweep import text
from visweep.cli.options import missing_folder, storage_arguments
from visweep.cli.prepare import Prepared
from visweep.errors import StorageError
from visweep.search.interrupt import Interrupt
from visweep.search.live import view_for
from visweep.search.study import OpenStudy, open_study
from visweep.search.summary import print_summary
from visweep.search.trainer import SharedTrainer
from visweep.search.worker import Worker
from visweep.storage.engine import artifact_folder, open_storage

_STATUS = {"interrupted": 130, "terminated": 143}


def search_until_done(console: Console, prepared: Prepared, command: str) -> int:
    """Search, show it, and say at the end what came of it; returns the exit status.

    Args:
        command: how this was called; shown as the way to resume.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    asked = prepared.asked
    missing = missing_folder(asked.storage)
    if missing is not None:
        missing.mkdir(exist_ok=True)
    storage = open_storage(asked.storage)
    try:
        opened = open_study(storage, prepared.name, prepared.specification, asked.trials)
        interrupt = _watch(console, opened, prepared)
        folder = asked.data.data_dir
        print_summary(
            console,
            opened.name,
            opened.trials(),
            prepared.specification.train.epochs,
            where=storage_arguments(asked.storage),
            images=[] if folder is None else ["--data-dir", folder],
        )
        if interrupt.reason:
            text.print_line(console, f"stopped: {interrupt.reason}. resume: {command}")
        return _STATUS.get(interrupt.reason, 0)
    except OSError as e:
        place = e.filename or artifact_folder(asked.storage)
        raise StorageError(f"{e.strerror or e}: {place}; every finished trial is kept") from e
    finally:
        storage.close()


def _watch(console: Console, opened: OpenStudy, prepared: Prepared) -> Interrupt:
    view = view_for(console)
    try:
        with Interrupt(prepared.asked.timeout, heard=view.stopping).listening() as interrupt:
            Worker(opened, SharedTrainer(prepared.data), view, interrupt).run()
            return interrupt
    finally:
        view.close()
