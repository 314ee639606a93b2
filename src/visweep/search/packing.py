"""Several trials of a study at once in one process, so that their models can share passes.

Each place is a worker like any other: a slot, lease, curve, checkpoint and pruning decision of its
own for every trial. They take turns: either one of them runs, or all wait while the process trains
until one pass is at the end of an epoch. So nothing in a place knows of the others, and what they
do in which order is as repeatable as with a single worker.

A pass is made anew, and on a GPU captured anew, where a trial of it begins or ends, a seed of one
leaves, or it turns out not to fit; else it stays from epoch to epoch.
"""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Generic, TypeVar

from visweep.config import bucket_parameters
from visweep.search.interrupt import Interrupt
from visweep.search.study import OpenStudy
from visweep.search.watch import Watcher
from visweep.search.worker import Company, Trainer, Worker
from visweep.storage.owner import this_process
from visweep.storage.slots import Slots

TURNOVER = 2
"""A bucket takes in so many trials per place before the sampler chooses freely again."""
_POLL_SECONDS = 1.0
_PATIENCE_SECONDS = 10.0

Turn = TypeVar("Turn")


class Engine(ABC, Generic[Turn]):
    """Trains what the places of a process wait for."""

    @abstractmethod
    def trainer(self, place: Place[Turn]) -> Trainer:
        """What the worker of a place trains its trials with: it waits by `Place.wait`."""

    @abstractmethod
    def round(self) -> Iterable[tuple[Place[Turn], Turn]]:
        """Train until some of the places that wait have an epoch; what each of them gets, one by
        one."""

    @abstractmethod
    def is_training(self, place: Place[Turn]) -> bool:
        """Whether an epoch is under way for it, which would be lost if it ended now."""


class _Dismissed(BaseException):
    """The place is to give its trial back and end."""


class Place(Generic[Turn]):
    """One worker of a process, in a thread that only goes on when it is its turn.

    Args:
        number: which one it is, from 0.

    Attributes:
        trains: it waits for an epoch.
        ended: it has nothing more to do.
        error: what it failed with.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self.trains = False
        self.ended = False
        self.error: BaseException | None = None
        self._turn: Turn | None = None
        self._dismissed = False
        self._running = False
        self._go = threading.Semaphore(0)
        self._stands = threading.Semaphore(0)
        self._thread: threading.Thread | None = None

    def start(self, work: Callable[[], None]) -> None:
        """Let it do its work, as soon as it is its turn."""
        name = f"place {self.number}"
        self._thread = threading.Thread(target=self._work, args=(work,), name=name, daemon=True)
        self._thread.start()

    def go_on(self, turn: Turn | None = None) -> None:
        """Let it run until it waits again, or has ended.

        Args:
            turn: what it waited for.

        Raises:
            BaseException: what it failed with.
        """
        self._turn = turn
        self._running = True
        self._go.release()
        self._stands.acquire()
        self._running = False
        if self.error is not None:
            raise self.error

    def dismiss(self) -> None:
        """Have it give its trial back, and end it."""
        if self._thread is None or self.ended:
            return
        self._dismissed = True
        if not self._running or self._stands.acquire(timeout=_PATIENCE_SECONDS):
            self._go.release()
            # Where the storage is away, it ends with this process, which frees its lease, too.
            self._thread.join(_PATIENCE_SECONDS)

    def wait(self) -> Turn:
        """Called by the place: an epoch of what it trains."""
        with self._training():
            self._stand()
        turn, self._turn = self._turn, None
        if turn is None:
            raise RuntimeError("it was no turn of this place")
        return turn

    def pause(self) -> None:
        """Called by the place: let the others go on."""
        self._stand()

    @contextmanager
    def _training(self) -> Iterator[None]:
        self.trains = True
        try:
            yield
        finally:
            self.trains = False

    def _stand(self) -> None:
        self._stands.release()
        self._go.acquire()
        if self._dismissed:
            raise _Dismissed

    def _work(self, work: Callable[[], None]) -> None:
        self._go.acquire()
        try:
            if not self._dismissed:
                work()
        except _Dismissed:
            pass  # the lease has been given back
        except BaseException as e:
            self.error = e
        finally:
            self.ended = True
            self._stands.release()


class Bucket(Company):
    """Which bucket is being filled, as all places of a process know it.

    A place that is free when none is being filled proposes freely, and its proposal is the bucket
    that the next ones keep to, until `TURNOVER` trials for each place have begun in it.
    """

    def __init__(self, opened: OpenStudy, places: int) -> None:
        spec = opened.specification
        # Of arms, those of the same seed already come one after the other.
        self._names = set() if spec.arms else bucket_parameters(spec.model, spec.train, spec.space)
        self._most = TURNOVER * places
        self._taken = 0
        self._values: Mapping[str, Any] = {}

    def keep_to(self) -> Mapping[str, Any]:
        return self._values if self._taken < self._most else {}

    def began(self, parameters: Mapping[str, Any]) -> None:
        values = {name: parameters[name] for name in self._names if name in parameters}
        if values == self._values and self._taken < self._most:
            self._taken += 1
        elif not self.keep_to():
            self._values, self._taken = values, 1


class _InPlace(Company):
    def __init__(self, bucket: Bucket, place: Place[Any]) -> None:
        self._bucket = bucket
        self._place = place
        self.first = place.number == 0

    def keep_to(self) -> Mapping[str, Any]:
        return self._bucket.keep_to()

    def began(self, parameters: Mapping[str, Any]) -> None:
        self._bucket.began(parameters)

    def pause(self, seconds: float) -> None:
        self._place.pause()


class PackedWorker:
    """Runs trials of one study, several at once, until none is left or it is interrupted.

    Args:
        opened: the study.
        engine: trains the trials.
        places: how many at once.
        watcher: hears of every step.
        interrupt: asks to stop.
    """

    def __init__(
        self,
        opened: OpenStudy,
        engine: Engine[Any],
        places: int,
        watcher: Watcher,
        interrupt: Interrupt,
    ) -> None:
        self._opened = opened
        self._engine = engine
        self._watcher = watcher
        self._interrupt = interrupt
        self._bucket = Bucket(opened, places)
        self._places = [Place[Any](number) for number in range(places)]
        self._workers = [self._worker(place) for place in self._places]

    @property
    def made_room(self) -> bool:
        """Whether a place has ended since its trial did not fit in memory beside others."""
        return any(worker.made_room for worker in self._workers)

    def run(self) -> None:
        """Work until every slot is finished, or the interrupt has a reason.

        Raises:
            SweepFailed, StorageError: see `Worker.run`.
        """
        for place, worker in zip(self._places, self._workers, strict=True):
            place.start(worker.run)
        try:
            while waiting := [place for place in self._places if not place.ended]:
                self._go_round(waiting)
        finally:
            for place in self._places:
                place.dismiss()

    def _worker(self, place: Place[Any]) -> Worker:
        company = _InPlace(self._bucket, place)
        trainer = self._engine.trainer(place)
        return Worker(self._seen_by(place), trainer, self._watcher, self._interrupt, company)

    def _seen_by(self, place: Place[Any]) -> OpenStudy:
        """The study, with leases that are this place's own."""
        opened = self._opened
        slots = Slots(
            opened.storage,
            opened.study_id,
            this_process(place.number),
            opened.slots.lease_seconds,
        )
        return replace(opened, slots=slots)

    def _go_round(self, places: Iterable[Place[Any]]) -> None:
        for place in places:
            if not place.trains:
                place.go_on()
            elif self._interrupt.reason and not self._engine.is_training(place):
                place.dismiss()
        if not any(place.trains for place in places):
            # Others are at the trials that are left; should they die, these are adopted here.
            if not all(place.ended for place in places):
                time.sleep(_POLL_SECONDS)
            return
        for place, turn in self._engine.round():
            place.go_on(turn)


def make_worker(
    opened: OpenStudy, trainer: Trainer, watcher: Watcher, interrupt: Interrupt, pack: int
) -> Worker | PackedWorker:
    """A worker that trains so many trials of a study at the same time."""
    if pack == 1:
        return Worker(opened, trainer, watcher, interrupt)
    return PackedWorker(opened, trainer.engine(), pack, watcher, interrupt)
