"""Running a prepared search to its end, or until it is stopped."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

import optuna
from rich.console import Console

from visweep import text
from visweep.cli.errors import StoppedAtOnce
from visweep.cli.options import missing_folder, storage_arguments
from visweep.cli.prepare import Prepared
from visweep.data.dataset import Dataset
from visweep.data.shared import SharedData, shared
from visweep.errors import DataError
from visweep.search.crew import Crew, Job
from visweep.search.expectation import Expectation, expectation, memory_expectation
from visweep.search.gpu_workers import workers_on
from visweep.search.interrupt import Interrupt
from visweep.search.live import view_for
from visweep.search.making import TrainerMaker
from visweep.search.mps import Mps
from visweep.search.packing import make_worker
from visweep.search.room import free_memory, room_of_each, workers_with_room
from visweep.search.study import OpenStudy, open_study
from visweep.search.summary import print_summary
from visweep.search.threads import (
    THREADS,
    cores,
    default_workers,
    pinned_threads,
    usual_threads,
)
from visweep.search.versions import note_of_others
from visweep.search.watch import Watcher
from visweep.storage.engine import Storage
from visweep.storage.failures import storage_errors
from visweep.storage.opening import open_storage
from visweep.storage.specification import RACE
from visweep.storage.whereabouts import Artifacts, make_ready
from visweep.training.estimate import Images

_STATUS = {"interrupted": 130, "terminated": 143}


@dataclass(frozen=True, kw_only=True)
class Means:
    """What this machine works on a study with.

    Attributes:
        storage: URL of the storage.
        dataset: the study's images.
        data_dir: folder that they came from, where one was given.
        artifacts: where this machine finds the study's artifacts; None for where the study says.
        device: that trains.
        workers: how many processes; None for as many as suit the device.
        pack: how many trials each of them trains at the same time.
        timeout: seconds after which to stop; None for never.
    """

    storage: str
    dataset: Dataset
    data_dir: str | None
    artifacts: str | None
    device: str
    workers: int | None
    pack: int
    timeout: float | None


def search_until_done(console: Console, prepared: Prepared, command: str) -> int:
    """Search, show it, and say at the end what came of it; returns the exit status.

    Args:
        console: where to show it.
        prepared: the search.
        command: how this was called; shown as the way to resume.
    """
    asked = prepared.asked
    if asked.artifacts is not None:
        make_ready(asked.artifacts)
    missing = missing_folder(asked.storage)
    if missing is not None:
        missing.mkdir(exist_ok=True)
    means = Means(
        storage=asked.storage,
        dataset=prepared.dataset,
        data_dir=asked.data.data_dir,
        artifacts=asked.artifacts,
        device=prepared.device,
        workers=asked.workers,
        pack=asked.pack,
        timeout=asked.timeout,
    )
    with quietly_opened(asked.storage) as storage:
        opened = open_study(
            storage,
            prepared.name,
            prepared.specification,
            asked.trials,
            asked.artifacts,
            prepared.attributes,
            renewed=prepared.renewed,
            option=prepared.renamed_by,
        )
        done = opened.progress().finished
        if done > asked.trials:
            finished = text.plural(done, "finished trial")
            less = "fewer seeds take" if opened.specification.arms else "--trials takes"
            said = f"{opened.name} has {finished}, more than {asked.trials}; {less} none away"
            text.print_line(console, said)
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
    view = view_for(console, _expected(opened, means))
    try:
        with (
            Interrupt(means.timeout, heard=view.stopping).listening() as interrupt,
            Mps(means.device, view.note) as mps,
            _working(opened, means, view, interrupt, mps) as work,
        ):
            goes_on = _deciding(opened, view.note)
            work()
            while not interrupt.reason and goes_on():
                work()
    except KeyboardInterrupt as e:
        # Typer would turn it into a status without a word.
        raise StoppedAtOnce(
            f"stopped at once; the running epoch is lost, nothing else is; resume: {command}"
        ) from e
    finally:
        view.close()
    _print_outcome(console, opened, means)
    if interrupt.reason:
        text.print_line(console, f"stopped: {interrupt.reason}. resume: {command}")
    return _STATUS.get(interrupt.reason, 0)


def _deciding(opened: OpenStudy, note: Callable[[str], None]) -> Callable[[], bool]:
    """Tells, whenever all that there was room for is finished, whether there is more to train.

    Args:
        opened: the study; only one that races ever wants more.
        note: hears of what is decided.
    """
    if RACE not in opened.study.user_attrs:
        return lambda: False
    # What decides takes a moment to import.
    from visweep.cli.racing import Deciding

    return Deciding(opened, note).goes_on


def _print_outcome(console: Console, opened: OpenStudy, means: Means) -> None:
    where = storage_arguments(means.storage)
    if opened.specification.arms:
        # What judges them takes a moment to import.
        if RACE in opened.study.user_attrs:
            from visweep.cli.racing import print_race

            print_race(console, opened, where)
            return
        from visweep.cli.verdicts import print_verdicts

        specification = opened.specification
        trained = replace(specification, arms=specification.taking_part(opened.study.user_attrs))
        print_verdicts(console, opened.name, trained, opened.trials(), where)
        return
    print_summary(
        console,
        opened.name,
        opened.trials(),
        opened.specification.train.epochs,
        where=where,
        images=_images(means),
    )


def _expected(opened: OpenStudy, means: Means) -> Expectation | None:
    """What trials will take here, if that is known without training any."""
    images = Images(len(means.dataset.train), len(means.dataset.val))
    return expectation(opened.specification, images, means.device, _threads(opened, means))


def _memory_expected(opened: OpenStudy, means: Means) -> Expectation:
    """The same where only memory matters: always known, more or less."""
    images = Images(len(means.dataset.train), len(means.dataset.val))
    return memory_expectation(opened.specification, images, means.device, _threads(opened, means))


def _threads(opened: OpenStudy, means: Means) -> int:
    """Of each worker: the study's, or what it would get."""
    wanted = means.workers or default_workers(means.device)
    return opened.study.user_attrs.get(THREADS) or usual_threads(wanted, means.device)


def _images(means: Means) -> Sequence[str]:
    return [] if means.data_dir is None else ["--data-dir", means.data_dir]


@contextmanager
def _working(
    opened: OpenStudy, means: Means, view: Watcher, interrupt: Interrupt, mps: Mps
) -> Iterator[Callable[[], None]]:
    """Trains whatever there is room for, whenever it is called. What that takes is got ready once,
    when there is something to train, and what is to be said of it is said once."""
    with ExitStack() as stack:
        workers: list[Callable[[], None]] = []

        def work() -> None:
            opened.make_room()
            if not opened.slots.unfinished():
                view.opened(opened.name, opened.progress())
                return
            if not workers:
                _say_what_is_worth_knowing(opened, means, view)
                workers.append(_workers(stack, opened, means, view, interrupt, mps))
            workers[0]()

        yield work


def _say_what_is_worth_knowing(opened: OpenStudy, means: Means, view: Watcher) -> None:
    of_others = note_of_others(opened.trials())
    if of_others is not None:
        view.note(of_others)
    opened.checkpoints.place.require_usable()
    if Artifacts(means.storage, means.artifacts).are_of_this_machine(opened.study.user_attrs):
        view.note(
            f"checkpoints lie in {opened.checkpoints.place.where}, on this machine alone: another "
            "one that takes over a trial begins it anew, unless --artifacts names a place that "
            "all see"
        )
    others = opened.slots.working_here()
    threads = _threads(opened, means)
    wanted = means.workers or default_workers(means.device)
    if others and means.device == "cpu" and (others + wanted) * threads > cores():
        view.note(
            f"{text.plural(others, 'worker')} of other commands train on this machine already; "
            f"with {text.plural(threads, 'thread')} each, as the study began, all crowd its cores "
            "and become slower"
        )


def _workers(
    stack: ExitStack,
    opened: OpenStudy,
    means: Means,
    view: Watcher,
    interrupt: Interrupt,
    mps: Mps,
) -> Callable[[], None]:
    """One worker in this process, or a crew of processes that share the images."""
    # A race may have more for them to do at its next look.
    several = opened.slots.unfinished() > means.pack or RACE in opened.study.user_attrs
    expected = _memory_expected(opened, means)
    wanted = means.workers or _suitable(opened, means, view, mps, several, expected)
    maker = TrainerMaker(
        images=means.dataset,
        margin=opened.specification.most_translation,
        device=means.device,
        threads=pinned_threads(opened, wanted, means.device),
    )
    images = None
    if several and wanted > 1:
        images = _shared_images(stack, means, maker.margin, view)
    maker = _with_room(maker, None if images is None else wanted, expected, view)
    if images is None:
        trainer = maker()
        return lambda: make_worker(opened, trainer, view, interrupt, means.pack).run()
    job = Job(
        storage=means.storage,
        study=opened.name,
        data_dir=means.data_dir,
        artifacts=means.artifacts,
        pack=means.pack,
        others_beside=means.device != "cpu",
        make_trainer=replace(maker, images=images),
        served=mps.environment,
    )
    return stack.enter_context(Crew(opened, job, wanted, view, interrupt)).work


def _with_room(
    maker: TrainerMaker, workers: int | None, expected: Expectation, view: Watcher
) -> TrainerMaker:
    """The same with what its passes may take.

    Args:
        maker: of each worker's trainer.
        workers: processes of their own; None for a single one in the command's process.
        expected: of the trials.
        view: is told where they will be divided.
    """
    if maker.device != "cpu":
        return replace(maker, on_gpu=expected.calibration)
    return replace(maker, room=room_of_each(workers, expected, free_memory(), view))


def _suitable(
    opened: OpenStudy,
    means: Means,
    view: Watcher,
    mps: Mps,
    several: bool,
    expected: Expectation,
) -> int:
    usual = default_workers(means.device)
    if not several:
        return usual
    if means.device == "cpu":
        return workers_with_room(usual, means.pack, expected, free_memory(), view)
    found = workers_on(opened.specification, means.device, view.note, mps.environment)
    return max(1, found // means.pack)


def _shared_images(
    stack: ExitStack, means: Means, margin: int, view: Watcher
) -> SharedData | None:
    """None where they do not fit into shared memory and no number of workers was asked for."""
    try:
        return stack.enter_context(shared(means.dataset, margin))
    except DataError as e:
        if means.workers is not None:
            raise
        view.note(f"one worker only: {e}")
        return None
