"""One run under way: how far it is, where it is kept, and who hears of it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from visweep.config import to_json
from visweep.data.resident import ResidentData
from visweep.data.sampling import mean_error
from visweep.training import checkpoint as checkpoints
from visweep.training.device import peak_memory, resolve_precision
from visweep.training.passes import Member, Pass, State
from visweep.training.results import TRAINER_VERSION, EpochResult, FitResult, OnEpoch


class Run:
    """A run, from its first epoch or its checkpoint on.

    Args:
        member: what is trained.
        data: what on.
        on_epoch: see `visweep.training.fit.fit`.
        checkpoint: see there.

    Attributes:
        member: what is still trained of it: without the replicas that have stopped.
        history: a result per epoch so far.
        over: whether it has come to its end, or was stopped.

    Raises:
        CheckpointError: the checkpoint is damaged or belongs to another run.
    """

    def __init__(
        self,
        member: Member,
        data: ResidentData,
        on_epoch: OnEpoch | None = None,
        checkpoint: Path | None = None,
    ) -> None:
        self.member = self._whole = member
        self._data = data
        self._on_epoch = on_epoch
        self._checkpoint = checkpoint
        self.history: list[EpochResult] = []
        self._state: State | None = None
        self.go_back()
        self.over = self._deliver()

    @property
    def epoch(self) -> int:
        """The one that comes next."""
        return len(self.history) + 1

    @property
    def is_kept(self) -> bool:
        """Whether its last epoch is in a checkpoint, or it has none yet."""
        return self._checkpoint is not None or not self.history

    def go_back(self) -> None:
        """Go on from the last epoch that was kept.

        Raises:
            CheckpointError: it is damaged or belongs to another run.
        """
        # Which replicas were stopped after that epoch is not kept.
        left = self.member.train.seeds
        self.history, self._state, self.member = [], None, self._whole
        if self._checkpoint is not None and self._checkpoint.exists():
            # A GPU may have no room for it yet.
            self.history, tensors = checkpoints.read(
                self._checkpoint, self._identity(), EpochResult, torch.device("cpu")
            )
            if self.history[-1].seeds:
                self._keep(self.history[-1].seeds)
            whole = {"micro_batch": self.member.train.batch_size, "at_once": self.member.replicas}
            self._state = State(**{**whole, **tensors})
            self._keep([seed for seed in self.member.train.seeds if seed in left])

    def taken_state(self) -> State | None:
        """Where it goes on, which it holds no longer; None if it begins."""
        state, self._state = self._state, None
        return state

    def advance(self, result: EpochResult, state: State) -> None:
        """Keep an epoch, then tell of it."""
        self.history.append(result)
        if self._checkpoint is not None:
            tensors = {name: getattr(state, name) for name in State.__dataclass_fields__}
            checkpoints.write(self._checkpoint, self._identity(), self.history, tensors)
        self.over = self._heed(self._on_epoch and self._on_epoch(result)) or self._at_its_end

    def result(self, trained: Pass) -> FitResult:
        """What came of it.

        Args:
            trained: a pass of this run alone, after its last epoch.
        """
        if self._diverged:
            ended = "diverged"
        else:
            complete = len(self.history) == self.member.train.epochs
            ended = "completed" if complete else "stopped"
        measured = self.history[-1].plain_train_accuracy
        train_accuracy = measured or trained.evaluate(self._data.probe).accuracy
        # In the precision that it was trained with, as after every epoch.
        val_error = self._val_error(trained.validated())
        trained.flat.widen()
        return FitResult(
            history=tuple(self.history),
            ended=ended,
            train_accuracy=train_accuracy,
            val_error=val_error,
            num_params=trained.flat.values.shape[1],
            peak_memory=peak_memory(self._data.device),
            model=trained.model.eval(),
            micro_batch=trained.micro.size if trained.micro.divided else None,
            replicas_at_once=trained.at_once if trained.at_once < trained.replicas else None,
        )

    def _val_error(self, correct: Tensor) -> float | None:
        """Of the images, whose mistakes the replicas share."""
        groups = self._data.dataset.val.groups
        independent = correct.shape[1] if groups is None else len(set(groups.tolist()))
        if independent < 2:
            return None
        return mean_error(correct.double().mean(0).cpu().numpy(), groups)

    @property
    def _at_its_end(self) -> bool:
        return self._complete or self._diverged

    @property
    def _complete(self) -> bool:
        return len(self.history) == self.member.train.epochs

    @property
    def _diverged(self) -> bool:
        """Whether a replica that goes on has no finite loss any more."""
        if not self.history:
            return False
        last = self.history[-1]
        had = last.seeds or self.member.train.seeds
        return last.diverged_for(had.index(seed) for seed in self.member.train.seeds)

    def _deliver(self) -> bool:
        stop = False
        for result in self.history:
            answer = self._on_epoch and self._on_epoch(result)
            stop = not result.replayed and self._heed(answer)
        return stop or self._at_its_end

    def _heed(self, answer: bool | Collection[int] | None) -> bool:
        """Stop what is to be stopped; returns whether that is all."""
        if not isinstance(answer, list | tuple | set | frozenset | range):
            return bool(answer)
        if unknown := set(answer).difference(self._whole.train.seeds):
            raise ValueError(f"on_epoch returned {unknown}, which are no seeds of this run")
        left = [seed for seed in self.member.train.seeds if seed not in answer]
        if left and not self._complete:
            self._keep(left)
        return not left

    def _keep(self, seeds: Sequence[int]) -> None:
        """Go on with these replicas alone."""
        before = self.member.train.seeds
        if tuple(seeds) == before:
            return
        self.member = replace(self.member, train=self.member.train.replace(seeds=tuple(seeds)))
        if self._state is not None:
            self._state = self._state.only([before.index(seed) for seed in seeds])

    def _identity(self) -> dict[str, Any]:
        # What is only measured is no part of what is trained.
        train = self._whole.train.replace(train_curves=False)
        precision = resolve_precision(train.precision, self._data.device)
        return {
            "trainer": TRAINER_VERSION,
            "model": to_json(self._whole.model),
            "train": {**to_json(train), "precision": precision},
            "data": self._data.dataset.fingerprint,
        }
