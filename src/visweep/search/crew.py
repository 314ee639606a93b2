"""Several workers on this machine: processes that share the images and tell one view.

Each is a worker like any other, with leases of its own: what one of them was at when it was killed
is taken over by another. They come from a server process that has imported what they need, so
that each starts in a moment; but its study has to be opened, and a GPU takes seconds to be got
ready. So a worker that finds nothing left to do rests, until the crew says that there is more, or
that it may end: a race has a few runs for it at each of its looks.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from queue import Empty, SimpleQueue
from typing import Any

import optuna

from visweep.errors import (
    Crowded,
    DataError,
    DeviceLost,
    StorageError,
    UsageError,
    VisweepError,
)
from visweep.search.interrupt import Interrupt
from visweep.search.packing import make_worker
from visweep.search.processes import context_with_torch
from visweep.search.study import STOP, OpenStudy, join_study
from visweep.search.watch import Progress, TrialView, Watcher
from visweep.search.worker import MOST_LOST, SweepFailed, Trainer
from visweep.storage.failures import storage_errors
from visweep.storage.opening import open_storage

_PATIENCE_SECONDS = 10.0
"""A worker that was told to stop at once has so long to give its lease back."""
MOST_KILLS = 2 * MOST_LOST
"""A worker and those in its place are killed so often, without an epoch in between, before there
is no other: what ends each of them would end the next one, too."""
_UNKNOWN = 255
"""What multiprocessing takes for the exit status of each process whose server is gone."""
_HEED_SECONDS = 0.2
"""So soon a worker that rests hears that it is to stop."""
_GO_ON, _END = "go on", "end"
"""What a worker that rests is told."""
_ERRORS: dict[str, type[VisweepError]] = {
    kind.__name__: kind for kind in (SweepFailed, StorageError, UsageError, DataError)
}


@dataclass(frozen=True, kw_only=True)
class Job:
    """What the workers of a crew are to do.

    Attributes:
        storage: URL of the storage.
        study: name of the study.
        data_dir: folder of its images on this machine.
        artifacts: where this machine finds its artifacts; None for where the study says.
        pack: how many trials each worker trains at the same time.
        others_beside: whether they share the memory of one device; see `Trainer.others_beside`.
        make_trainer: called in each worker's process; see `visweep.search.making`.
        served: what CUDA MPS demands of their environment; None where it serves none of them.
    """

    storage: str
    study: str
    data_dir: str | None
    artifacts: str | None
    make_trainer: Callable[[], Trainer]
    pack: int = 1
    others_beside: bool = False
    served: Mapping[str, str] | None = None


@dataclass
class _Member:
    """One worker process, as the crew knows it."""

    process: BaseProcess
    pipe: Connection
    trials: set[int] = field(default_factory=set)
    error: VisweepError | None = None
    kills: int = 0
    made_room: bool = False
    alone: bool = False
    rests: bool = False
    called: bool = False
    """It was put to work again, and has not been heard of since."""

    @property
    def works(self) -> bool:
        return not (self.rests or self.pipe.closed)

    @property
    def lives(self) -> bool:
        """Whether it can be signalled; what its server cannot tell any more, its pipe tells."""
        if self.process.exitcode == _UNKNOWN:
            return not self.pipe.closed
        return self.process.is_alive()

    def tell(self, order: str) -> None:
        self.rests = False
        self.called = order == _GO_ON
        # Should it have been killed just now, that is heard as of any other.
        with suppress(OSError):
            self.pipe.send(order)


@dataclass
class Crew:
    """Runs workers, each time until the study is finished or the interrupt has a reason.

    As a context it keeps them in between, and ends them when it is left.

    Attributes:
        opened: the study, as this process sees it.
        job: what they are to do.
        count: how many there are to be at most.
        watcher: hears of every step of each of them.
        interrupt: asks them to stop.
    """

    opened: OpenStudy
    job: Job
    count: int
    watcher: Watcher
    interrupt: Interrupt
    _members: list[_Member] = field(default_factory=list)

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._dismiss()
        finally:
            self._end_all()

    def run(self) -> None:
        """Work once, and end them; see `work`."""
        with self:
            self.work()

    def work(self) -> None:
        """Have as many of them work as there are trials for, and wait for the last of them.

        Raises:
            SweepFailed: see `Worker.run`; or all workers died.
            StorageError: the storage failed; every finished trial is kept.
        """
        with storage_errors(self.opened.storage):
            self.watcher.opened(self.opened.name, self.opened.progress())
            self._forget_the_dead()
            self._call(min(self.count, -(-self.opened.slots.unfinished() // self.job.pack)))
            self._follow()
            self._conclude()

    def _forget_the_dead(self) -> None:
        for member in self._members:
            if member.rests and not member.process.is_alive():
                if code := member.process.exitcode:
                    self.watcher.note(f"worker {member.process.pid} {_how(code)} while it rested")
                member.pipe.close()
        self._members = [m for m in self._members if not m.pipe.closed]

    def _call(self, number: int) -> None:
        """Put so many to work: those that rest, and others where they are not enough."""
        resting = [m for m in self._members if m.rests][: max(0, number)]
        for member in resting:
            member.tell(_GO_ON)
        for _ in range(number - len(resting)):
            if not self.interrupt.reason:
                self._members.append(_start(context_with_torch(), self.job))

    def _follow(self) -> None:
        told = False
        while working := [m for m in self._members if m.works]:
            for ready in wait([m.pipe for m in working], timeout=0.2):
                member = next(m for m in working if m.pipe is ready)
                self._hear(member)
            hopeless = any(isinstance(m.error, SweepFailed) for m in self._members)
            if not told and (self.interrupt.reason or hopeless):
                told = True
                self._signal(signal.SIGTERM)

    def _hear(self, member: _Member) -> None:
        try:
            kind, *content = member.pipe.recv()
        except (EOFError, OSError):
            member.pipe.close()
            member.process.join()
            self._bury(member)
            return
        member.called = False
        if kind == "error":
            name, message = content
            member.error = _ERRORS.get(name, VisweepError)(message)
            self.watcher.note(f"worker {member.process.pid} gave up: {message}")
        elif kind == "made_room":
            member.made_room = True
        elif kind == "rests":
            member.rests = True
        else:
            _note_trial(member, kind, content)
            if kind in ("advanced", "ended"):
                member.kills = 0
            getattr(self.watcher, kind)(*content)
            if kind == "ended" and member.alone:
                member.alone = False
                self._fill_up()

    def _bury(self, member: _Member) -> None:
        """Say how a worker ended, and start another in place of one that was killed, or that had
        ended at rest when it was called."""
        code = member.process.exitcode or 0
        is_missed = code < 0 or member.made_room or member.called
        another = self._another(member) if is_missed else None
        if code:
            held = f" while it trained {_listed(member.trials)}" if member.trials else ""
            then = "" if another is None else "; a new one takes its place"
            self.watcher.note(f"worker {member.process.pid} {_how(code)}{held}{then}")
        for trial in member.trials:
            self.watcher.left(trial)
        if another is not None:
            self._members[self._members.index(member)] = another

    def _fill_up(self) -> None:
        """The trial that needed the device for itself has ended: others may fit again, if not as
        many as before."""
        self.count = max(1, self.count // 2)
        if not self.interrupt.reason:
            self._call(min(self.count, self.opened.slots.unfinished()) - 1)

    def _another(self, member: _Member) -> _Member | None:
        """One in its place; None where it would be in vain, or cannot be had."""
        hopeless = any(isinstance(m.error, SweepFailed) for m in self._members)
        if hopeless or self.interrupt.reason or member.kills + 1 >= MOST_KILLS:
            return None
        alone = not any(m.works for m in self._members)
        if member.made_room and not alone:
            return None
        if not self.opened.slots.unfinished():
            return None
        if member.made_room:
            # Those that rest hold memory that it needs.
            self._dismiss()
        try:
            job = replace(self.job, others_beside=self.job.others_beside and not member.made_room)
            another = _start(context_with_torch(), job)
        except (SweepFailed, OSError) as e:
            self.watcher.note(f"no worker can be started: {e}")
            return None
        another.kills = member.kills + 1
        another.alone = member.made_room
        return another

    def _signal(self, number: signal.Signals) -> None:
        for member in self._members:
            if member.lives and member.process.pid is not None:
                # It is not our child but the server's, so its number may be free by now.
                with suppress(ProcessLookupError):
                    os.kill(member.process.pid, number)

    def _dismiss(self) -> None:
        """Those that rest may end."""
        for member in self._members:
            if member.rests:
                member.tell(_END)
        self._wait_for_the_end()

    def _end_all(self) -> None:
        """After a second Ctrl-C, or an error of our own: nobody stays behind."""
        self._signal(signal.SIGUSR1)
        self._wait_for_the_end()
        self._signal(signal.SIGKILL)
        for member in self._members:
            member.process.join()
            member.pipe.close()

    def _wait_for_the_end(self) -> None:
        deadline = time.monotonic() + _PATIENCE_SECONDS
        for member in self._members:
            member.process.join(max(0.0, deadline - time.monotonic()))

    def _conclude(self) -> None:
        if self.opened.study.user_attrs.get(STOP):
            self.interrupt.ask("`visweep stop` was called")
        if self.interrupt.reason or not self.opened.slots.unfinished():
            return
        for member in self._members:
            if member.error is not None:
                raise member.error
        raise SweepFailed("all workers were ended from outside; run it again to go on")


def _note_trial(member: _Member, kind: str, content: Sequence[Any]) -> None:
    if kind == "began":
        member.trials.add(content[0].number)
    elif kind == "ended":
        member.trials.discard(content[0].number)
    elif kind == "left":
        member.trials.discard(content[0])


def _how(code: int) -> str:
    """How a process with this exit status came to its end."""
    return f"was ended by {_signal_name(-code)}" if code < 0 else f"ended ({code})"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # most real-time signals have none
        return f"signal {number}"


def _listed(trials: Collection[int]) -> str:
    return f"trial{'s' * (len(trials) > 1)} {', '.join(map(str, sorted(trials)))}"


def _start(context: ForkServerContext, job: Job) -> _Member:
    ours, theirs = context.Pipe()
    process = context.Process(target=work, args=(job, theirs), daemon=True)
    try:
        process.start()
    except (EOFError, ConnectionError) as e:
        raise SweepFailed("the process that starts workers was ended from outside") from e
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

    def left(self, number: int) -> None:
        self.tell("left", number)

    def note(self, message: str) -> None:
        self.tell("note", message)


class _Orders:
    """What the crew says to a worker.

    A worker whose crew was killed ends, too; its trial is taken over at once by the next.
    """

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self._orders: SimpleQueue[str] = SimpleQueue()
        threading.Thread(target=self._listen, daemon=True).start()

    def next(self, interrupt: Interrupt) -> str:
        """Wait for the next one; to end, where the interrupt has a reason."""
        while not interrupt.reason:
            with suppress(Empty):
                return self._orders.get(timeout=_HEED_SECONDS)
        return _END

    def _listen(self) -> None:
        try:
            while True:
                self._orders.put(self._pipe.recv())
        except (EOFError, OSError):
            os._exit(1)


class _Notes(logging.Handler):
    """What a worker logs becomes a note of the view."""

    def __init__(self, teller: _Teller) -> None:
        super().__init__(logging.WARNING)
        self._teller = teller

    def emit(self, record: logging.LogRecord) -> None:
        self._teller.note(record.getMessage())


def work(job: Job, pipe: Connection) -> None:
    """A worker's process, from its beginning to its end."""
    os.setpgid(0, 0)
    os.environ.update(job.served or {})
    orders = _Orders(pipe)
    teller = _Teller(pipe)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    logging.basicConfig(handlers=[_Notes(teller)], level=logging.WARNING)
    try:
        _work(job, teller, orders)
    except KeyboardInterrupt:
        pass  # the lease has been given back
    except Crowded as e:
        teller.note(str(e))
        teller.tell("made_room")
    except DeviceLost as e:
        teller.note(str(e))
        # Like one that was killed: its trial counts that, and another worker takes its place.
        os.kill(os.getpid(), signal.SIGKILL)
    except VisweepError as e:
        teller.tell("error", type(e).__name__, str(e))
    except Exception as e:
        traceback.print_exc()
        last = traceback.format_exception_only(e)[-1].strip()
        teller.tell("error", SweepFailed.__name__, f"a worker crashed: {last}")
    finally:
        if job.served is not None:
            _wait_for_gpu()


def _wait_for_gpu() -> None:
    """A client of MPS that ends while the GPU computes for it may take the others with it."""
    import torch

    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        with suppress(RuntimeError):  # one that has failed computes no more, and has been told
            torch.cuda.synchronize()


def _work(job: Job, teller: _Teller, orders: _Orders) -> None:
    signal.signal(signal.SIGUSR1, _at_once)
    with Interrupt().listening() as interrupt:
        storage = open_storage(job.storage, must_exist=True)
        try:
            # The crew's own process has tried the place of the artifacts out.
            opened = join_study(storage, job.study, job.data_dir, job.artifacts, answered=True)
            trainer = _made_trainer(job)
            trainer.others_beside = job.others_beside
            order = _GO_ON
            while order == _GO_ON:
                worker = make_worker(opened, trainer, teller, interrupt, job.pack)
                worker.run()
                if worker.made_room:
                    teller.tell("made_room")
                if worker.made_room or interrupt.reason:
                    break
                teller.tell("rests")
                order = orders.next(interrupt)
        finally:
            storage.close()


def _made_trainer(job: Job) -> Trainer:
    """The trainer of this process.

    Raises:
        Crowded: not even the images fit in memory beside the other workers.
    """
    try:
        return job.make_trainer()
    except RuntimeError as e:
        from visweep.training.memory import is_out_of_memory

        if job.others_beside and is_out_of_memory(e):
            raise Crowded(f"no room for another worker: {e}") from e
        raise


def _at_once(*_: Any) -> None:
    raise KeyboardInterrupt
