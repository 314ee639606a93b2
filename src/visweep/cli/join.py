"""Working on a study that exists: as its own command would, or as one more worker."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from visweep import data, text
from visweep.cli.options import (
    artifacts_place,
    number_of_workers,
    seconds,
    storage_arguments,
    storage_url,
    this_command,
)
from visweep.cli.search import Means, quietly_opened, work_on
from visweep.data.dataset import Dataset
from visweep.errors import DataError, UsageError
from visweep.search.samplers import require_safe
from visweep.search.study import (
    STOP,
    OpenStudy,
    images_folder,
    join_study,
    keep_artifacts_in,
    keep_images_in,
    load_study,
    specification_of,
)
from visweep.storage.engine import Storage
from visweep.storage.overview import StudyOverview, overview
from visweep.storage.specification import RACE
from visweep.storage.whereabouts import make_ready
from visweep.training.resolve import device_name


@dataclass(frozen=True, kw_only=True)
class Local:
    """What this machine brings; fields are named after the options."""

    storage: str | None
    data_dir: Path | None
    artifacts: str | None
    device: str
    workers: int | None
    pack: int
    timeout: float | None


def local_of(
    storage: str | None,
    artifacts: str | None,
    data_dir: Path | None,
    device: str,
    workers: str,
    pack: int,
    timeout: str | None,
) -> Local:
    """What the options say that this machine brings.

    Raises:
        UsageError: the number of workers, or the duration, is none.
    """
    return Local(
        storage=storage,
        artifacts=artifacts,
        data_dir=data_dir,
        device=device,
        workers=number_of_workers(workers),
        pack=pack,
        timeout=seconds(timeout),
    )


def resume(console: Console, study: str, local: Local, *, looks: bool = False) -> int:
    """Go on with a study, as its own command would; returns the exit status.

    Args:
        console: where to show it.
        study: its name.
        local: what this machine brings.
        looks: whether the caller itself looks at a race's test images then; else a line says which
            command does.

    Raises:
        UsageError: an option is bad.
    """
    url = storage_url(local.storage)
    with quietly_opened(url, must_exist=True) as storage:
        device_name(local.device)
        place = artifacts_place(local.artifacts)
        load_study(storage, study)
        if place is not None:
            make_ready(place)
        opened, means = _prepared(storage, study, url, local)
        opened.study.set_user_attr(STOP, False)
        keep_artifacts_in(opened.study, means.artifacts)
        keep_images_in(opened.study, means.data_dir)
        status = work_on(console, opened, means, this_command())
        if not looks:
            _say_who_looks(console, opened, url)
        return status


def work(console: Console, study: str | None, local: Local) -> int:
    """Help with a study, or with the only one that is not finished; returns the exit status.

    Raises:
        UsageError: an option is bad, or several studies are unfinished.
    """
    url = storage_url(local.storage)
    chosen = study or _only_unfinished(overview(url))
    with quietly_opened(url, must_exist=True) as storage:
        specification_of(load_study(storage, chosen, "--study"), "--study")
        opened, means = _prepared(storage, chosen, url, local)
        if opened.study.user_attrs.get(STOP):
            raise UsageError(
                f"--study: {chosen!r} was told to stop; go on with it: visweep resume {chosen}"
            )
        status = work_on(console, opened, means, this_command())
        _say_who_looks(console, opened, url)
        if opened.study.user_attrs.get(STOP):
            where = shlex.join(["visweep", "resume", chosen, *storage_arguments(url)])
            text.print_line(console, f"the study was stopped for all; go on with it: {where}")
        return status


def _say_who_looks(console: Console, opened: OpenStudy, url: str) -> None:
    if RACE in opened.study.user_attrs:
        # What decides takes a moment to import.
        from visweep.cli.racing import print_who_looks

        print_who_looks(console, opened, storage_arguments(url))


def _prepared(storage: Storage, study: str, url: str, local: Local) -> tuple[OpenStudy, Means]:
    device = device_name(local.device)
    if local.data_dir is None:
        folder = images_folder(load_study(storage, study))
    else:
        folder = str(local.data_dir.expanduser())
    artifacts = artifacts_place(local.artifacts)
    opened = join_study(storage, study, folder, artifacts)
    require_safe(opened.specification.sampler, url)
    means = Means(
        storage=url,
        dataset=_images(opened),
        data_dir=folder,
        artifacts=artifacts,
        device=device,
        workers=local.workers,
        pack=local.pack,
        timeout=local.timeout,
    )
    return opened, means


def _images(opened: OpenStudy) -> Dataset:
    dataset = data.load(opened.specification.data)
    if dataset.fingerprint != opened.specification.fingerprint:
        raise DataError(f"--data-dir: these are not the images of study {opened.name!r}")
    return dataset


def _only_unfinished(studies: list[StudyOverview]) -> str:
    open_ones = [s.name for s in studies if s.budget is not None and s.finished < s.budget]
    if len(open_ones) != 1:
        found = text.listing(open_ones) if open_ones else "none"
        raise UsageError(f"--study: name the study to work on; unfinished here: {found}")
    return open_ones[0]
