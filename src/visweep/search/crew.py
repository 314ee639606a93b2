"""Several workers on this machine: processes that share the images and tell one view.

Each is a worker like any other, with leases of its own: what one of them was at when it was killed
is taken over by another. They come from a server process that has imported what they need, so
that each starts in a moment.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

import optuna

from visweep.errors import StorageError, VisweepError
from visweep.search.interrupt import Interrupt
from visweep.search.study import STOP, OpenStudy, join_study
from visweep.search.watch import Progress, TrialView, Watcher
from visweep.search.worker import SweepFailed, Trainer, Worker
from visweep.storage.engine import open_storage

_PRELOADED = ["visweep.search.crew", "visweep.search.trainer", "sklearn.datasets"]
_PATIENCE_SECONDS = 10.0
"""A worker that was told to stop at once has so long to give its lease back."""
_ERRORS: dict[str, type[VisweepError]] = {
    kind.__name__: kind for kind in (SweepFailed, StorageError)
}


@dataclass(frozen=True, kw_only=True)
class Job:
    """What the workers of a crew are to do.

    Attributes:
        storage: URL of the storage.
        study: name of the study.
        data_dir: folder of its images on this machine.
        make_trainer: called in each worker's process; what it holds is shared, not copied, where
            it is tensors in shared memory.
    """

    storage: str
    study: str
    data_dir: str | None
    make_trainer: Callable[[], Trainer]


@dataclass
class _Member:
    """One worker process, as the crew knows it."""

    process: BaseProcess
    pipe: Connection
    trial: int | None = None
    error: VisweepError | None = None
    crash: str = ""


@dataclass
class Crew:
    """Runs workers until the study is finished or the interrupt has a reason.

    Attributes:
        opened: the study, as this process sees it.
        job: what they are to do.
        count: how many there are to be.
        watcher: hears of every step of each of them.
        interrupt: asks them to stop.
    """

    opened: OpenStudy
    job: Job
    count: int
    watcher: Watcher
    interrupt: Interrupt
    _members: list[_Member] = field(default_factory=list)

    def run(self) -> None:
        """Start the workers and wait for the last of them.

        Raises:
            SweepFailed: see `Worker.run`; or all workers died.
            StorageError: the storage failed; every finished trial is kept.
        """
        self.watcher.opened(self.opened.name, self.opened.progress())
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(_PRELOADED)
        try:
            for _ in range(self.count):
                self._members.append(_start(context, self.job))
            self._follow()
        finally:
            self._end_all()
        self._conclude()

    def _follow(self) -> None:
        told = False
        while running := [m for m in self._members if not m.pipe.closed]:
            for ready in wait([m.pipe for m in running], timeout=0.2):
                member = next(m for m in running if m.pipe is ready)
                self._hear(member)
            if not told and (self.interrupt.reason or any(m.error for m in self._members)):
                told = True
                self._signal(signal.SIGTERM)

    def _hear(self, member: _Member) -> None:
        try:
            kind, *content = member.pipe.recv()
        except (EOFError, OSError):
            member.pipe.close()
            member.process.join()
            self._tell_of_death(member)
            return
        if kind == "error":
            name, message = content
            member.error = _ERRORS.get(name, VisweepError)(message)
        elif kind == "crash":
            member.crash = content[0]
        else:
            _note_trial(member, kind, content)
            getattr(self.watcher, kind)(*content)

    def _tell_of_death(self, member: _Member) -> None:
        code = member.process.exitcode or 0
        if code >= 0:
            return
        held = "" if member.trial is None else f" while it trained trial {member.trial}"
        self.watcher.note(
            f"worker {member.process.pid} was ended by {signal.Signals(-code).name}{held}"
        )

    def _signal(self, number: signal.Signals) -> None:
        for member in self._members:
            if member.process.is_alive() and member.process.pid is not None:
                os.kill(member.process.pid, number)

    def _end_all(self) -> None:
        """After a second Ctrl-C, or an error of our own: nobody stays behind."""
        self._signal(signal.SIGTERM)
        self._signal(signal.SIGINT)
        for member in self._members:
            member.process.join(_PATIENCE_SECONDS)
            member.process.kill()
            member.process.join()
            member.pipe.close()

    def _conclude(self) -> None:
        for member in self._members:
            if member.crash:
                raise RuntimeError(f"a worker crashed:\n{member.crash}")
            if member.error is not None:
                raise member.error
        if self.opened.study.user_attrs.get(STOP):
            self.interrupt.ask("`visweep stop` was called")
        died = [m for m in self._members if m.process.exitcode]
        if len(died) == len(self._members) and not self.interrupt.reason:
            raise SweepFailed("all workers were ended from outside; run it again to go on")


def _note_trial(member: _Member, kind: str, content: Sequence[Any]) -> None:
    if kind == "began":
        member.trial = content[0].number
    elif kind == "ended":
        member.trial = None


def _start(context: multiprocessing.context.ForkServerContext, job: Job) -> _Member:
    ours, theirs = context.Pipe()
    process = context.Process(target=work, args=(job, theirs), daemon=True)
    process.start()
    theirs.close()
    return _Member(process, ours)


class _Teller(Watcher):
    """Passes everything on to the crew."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self._lock = threading.Lock()

    def tell(self, *message: Any) -> None:
        with self._lock:
            self._pipe.send(message)

    def began(self, trial: TrialView, progress: Progress) -> None:
        self.tell("began", trial, progress)

    def advanced(self, trial: TrialView) -> None:
        self.tell("advanced", trial)

    def ended(self, trial: TrialView, progress: Progress) -> None:
        self.tell("ended", trial, progress)

    def note(self, message: str) -> None:
        self.tell("note", message)


class _Notes(logging.Handler):
    """What a worker logs becomes a note of the view."""

    def __init__(self, teller: _Teller) -> None:
        super().__init__(logging.WARNING)
        self._teller = teller

    def emit(self, record: logging.LogRecord) -> None:
        self._teller.note(record.getMessage())


def work(job: Job, pipe: Connection) -> None:
    """A worker's process, from its beginning to its end."""
    # Ctrl-C reaches every process of a terminal's group; the crew passes it on, once.
    os.setpgid(0, 0)
    threading.Thread(target=_end_with, args=(pipe,), daemon=True).start()
    teller = _Teller(pipe)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    logging.basicConfig(handlers=[_Notes(teller)], level=logging.WARNING)
    try:
        _work(job, teller)
    except KeyboardInterrupt:
        pass  # the lease has been given back
    except VisweepError as e:
        teller.tell("error", type(e).__name__, str(e))
    except Exception:
        teller.tell("crash", traceback.format_exc())


def _work(job: Job, teller: _Teller) -> None:
    with Interrupt().listening() as interrupt:
        storage = open_storage(job.storage, must_exist=True)
        try:
            opened = join_study(storage, job.study, job.data_dir)
            Worker(opened, job.make_trainer(), teller, interrupt).run()
        finally:
            storage.close()


def _end_with(pipe: Connection) -> None:
    """A worker whose crew was killed ends, too; its trial is taken over at once by the next."""
    try:
        pipe.recv()
    except (EOFError, OSError):
        os._exit(1)
