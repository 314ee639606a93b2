"""The shared trainer: what trains the trials of a worker, on one resident copy of the images."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from visweep.config import ModelConfig, TrainConfig
from visweep.data.resident import ResidentData
from visweep.search.packing import Engine, Place
from visweep.search.worker import Trainer
from visweep.training.device import free_memory, insisting_that_it_works, use
from visweep.training.estimate import Calibration
from visweep.training.fit import fit, require_fit
from visweep.training.memory import give_back
from visweep.training.passes import Member
from visweep.training.results import FitResult, OnEpoch
from visweep.training.room import Room
from visweep.training.rounds import Rounds, Turn
from visweep.training.run import Run


class SharedTrainer(Trainer):
    """Trains one trial after the other on the same images.

    Args:
        data: the images, on the training device.
        room: what a pass may take; None where that is not known.
        on_gpu: estimates what passes take on a GPU, which itself tells how much that may be.
    """

    def __init__(
        self, data: ResidentData, room: Room | None = None, on_gpu: Calibration | None = None
    ) -> None:
        self._data = data
        self._room = room
        self._on_gpu = on_gpu

    @property
    def device(self) -> str:
        return str(self._data.device)

    @property
    def threads(self) -> int:
        return torch.get_num_threads()

    def engine(self) -> PassEngine:
        return PassEngine(self._data, others_beside=self.others_beside, room=self._room_now())

    def fit(
        self, model: ModelConfig, train: TrainConfig, *, on_epoch: OnEpoch, checkpoint: Path
    ) -> FitResult:
        with self._at_the_device():
            return fit(
                model,
                train,
                self._data,
                on_epoch=on_epoch,
                checkpoint=checkpoint,
                others_beside=self.others_beside,
                room=self._room_now(),
            )

    def _room_now(self) -> Room | None:
        if self._on_gpu is None:
            return self._room
        free = free_memory(self._data.device, others_beside=self.others_beside)
        return Room(free, self._on_gpu)

    @contextmanager
    def _at_the_device(self) -> Iterator[None]:
        with insisting_that_it_works(self._data.device):
            try:
                yield
            finally:
                # The next model may be smaller, and other workers share this machine's memory.
                give_back()


class PassEngine(Engine[Turn]):
    """Trains the trials of several places side by side, those of a bucket in one pass.

    Args:
        data: the images, on the training device.
        others_beside: whether other processes train on it, and could make room.
        room: what a pass may take; None where that is not known.
    """

    def __init__(
        self, data: ResidentData, *, others_beside: bool = False, room: Room | None = None
    ) -> None:
        self.data = data
        self.rounds = Rounds(data, others_beside=others_beside, room=room)
        self._place_of: dict[Run, Place[Turn]] = {}

    def trainer(self, place: Place[Turn]) -> Trainer:
        return _PlaceTrainer(self, place)

    def is_training(self, place: Place[Turn]) -> bool:
        return any(
            self.rounds.is_under_way(run) for run, of in self._place_of.items() if of is place
        )

    def round(self) -> Iterator[tuple[Place[Turn], Turn]]:
        with insisting_that_it_works(self.data.device):
            for turn in self.rounds.round():
                yield self._place_of[turn.run], turn

    def train(self, run: Run, place: Place[Turn]) -> FitResult:
        """A run to its end; called by the place."""
        if run.over:
            return self.rounds.leave(run)
        self._place_of[run] = place
        self.rounds.join(run)
        try:
            while not run.over:
                place.wait().take()
            return self.rounds.leave(run)
        finally:
            del self._place_of[run]
            self.rounds.drop(run)


class _PlaceTrainer(SharedTrainer):
    """Trains one trial after the other, beside those of the other places."""

    def __init__(self, engine: PassEngine, place: Place[Turn]) -> None:
        super().__init__(engine.data)
        self._engine = engine
        self._place = place

    def fit(
        self, model: ModelConfig, train: TrainConfig, *, on_epoch: OnEpoch, checkpoint: Path
    ) -> FitResult:
        use(self._data.device)  # each thread has its own
        require_fit(model, train, self._data)
        with self._at_the_device():
            run = Run(Member(model, train), self._data, on_epoch, checkpoint)
            return self._engine.train(run, self._place)
