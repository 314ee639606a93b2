"""A pass: one forward, backward and optimiser step over the stacked models of one or more runs.

Each run keeps its own draws, schedule, clipping and update, and its own state, laid out as if it
were alone: so it may join and leave a pass between any two epochs, and its result does not depend
on what it shared a pass with (but for how sums are rounded).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Literal, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from visweep import models
from visweep.config import ModelConfig, TrainConfig
from visweep.data.resident import Augmenter, ResidentData, ResidentSplit
from visweep.draws import Draws, Part
from visweep.models.layers import initialise
from visweep.training.device import (
    compute_dtype,
    master_dtype,
    replays,
    reset_peak_memory,
    wait_for,
)
from visweep.training.evaluate import Evaluation, Seen, Tally, tally
from visweep.training.graphs import Forward, Graph, captured
from visweep.training.lanes import Pieces, all_of
from visweep.training.memory import attempt, insist, keep_pages, trim
from visweep.training.micro import MicroBatches
from visweep.training.optimizer import AdamW, FlatParameters, schedule
from visweep.training.results import EpochResult
from visweep.training.room import Room
from visweep.training.shares import Share, in_shares
from visweep.training.stopwatch import Stopwatch
from visweep.training.unattended import Unattended

_T = TypeVar("_T")

FIRST_STEPS = 2
"""Of a pass are not replayed: in them all that a step makes once is made."""


@dataclass(frozen=True)
class Member:
    """What one run of a pass trains: a configuration, with a replica per seed of `train`."""

    model: ModelConfig
    train: TrainConfig

    @property
    def bucket(self) -> tuple[ModelConfig, TrainConfig]:
        """Members whose buckets are equal can share a pass."""
        return self.model.bucket, self.train.bucket

    @property
    def replicas(self) -> int:
        return len(self.train.seeds)


@dataclass(frozen=True)
class State:
    """What a member is between two epochs.

    Attributes:
        values: (K, P), its parameters; see `FlatParameters.rows`.
        buffers: the statistics of its norms, by name, each (K, …).
        optimizer: see `AdamW.state`.
        micro_batch: images of the parts that its batches were divided into.
        at_once: replicas of the shares that it was divided into.
    """

    values: Tensor
    buffers: Mapping[str, Tensor]
    optimizer: Sequence[Mapping[str, Tensor]]
    micro_batch: int
    at_once: int

    def only(self, replicas: Sequence[int]) -> State:
        """Of some of the replicas, such as are left when the others have stopped."""
        rows = list(replicas)
        return State(
            values=self.values[rows],
            buffers={name: buffer[rows] for name, buffer in self.buffers.items()},
            optimizer=[self.optimizer[2 * row + half] for row in rows for half in (0, 1)],
            micro_batch=self.micro_batch,
            at_once=min(self.at_once, len(rows)),
        )


class Pass:
    """The moving parts: stacked model, optimiser, data and draws.

    Args:
        members: of one bucket.
        data: what they are trained on.
        states: where each goes on; None for one that begins. None for all that.
        room: what it may take; None where that is not known.

    Attributes:
        members: in the order in which results are given.
        at_once: so many replicas are under way at a time in a step or an evaluation: all, unless
            they do not fit in memory.
        rows: which replicas of the stack are each member's.
        beside: others share the memory and could make room: then what does not fit is an error,
            and not divided.
        is_over: its run is, and it is made for what is still to be evaluated, once.
    """

    beside = False
    is_over = False

    def __init__(
        self,
        members: Sequence[Member],
        data: ResidentData,
        states: Sequence[State | None] | None = None,
        room: Room | None = None,
    ) -> None:
        if data.device.type == "cpu":
            keep_pages()
        self.members = tuple(members)
        self.data = data
        order = sorted(range(len(members)), key=lambda m: members[m].model.stack_order)
        stacked = [members[m] for m in order for _ in members[m].train.seeds]
        self._member_of = [m for m in order for _ in members[m].train.seeds]
        self.rows = [_rows_of(m, self._member_of) for m in range(len(members))]
        self.replicas = len(stacked)
        self.config = members[0].train
        self.dtype = compute_dtype(self.config, data.device)
        self.micro = MicroBatches(members[0].model, self.config.batch_size, data.device)
        self._seeds = [seed for m in order for seed in members[m].train.seeds]
        self.draws = Draws(self._seeds, data.device, ())
        self._configs = [member.model for member in stacked]
        self.model = models.stack(self._configs)
        states = [None] * len(members) if states is None else states
        self._begin(states)
        master = master_dtype(self.dtype)
        self.model.to(device=data.device, dtype=master)
        self.flat = FlatParameters(self.model, master, data.device, self.dtype)
        self.optimizer = AdamW(
            self.flat,
            [member.train.lr for member in stacked],
            [member.train.weight_decay for member in stacked],
        )
        norms = [[member.train.clip_norm] for member in stacked]
        self._clip_norms = torch.tensor(norms, dtype=master, device=data.device)
        self.augmenter = Augmenter(data.train, self.config.translate, self.config.flip)
        self.steps_per_epoch = len(data.train) // self.config.batch_size
        self.factors = [schedule(member.train, self.steps_per_epoch) for member in members]
        self._graph: Graph | Literal[False] | None = None
        self._forwards: dict[tuple[int, bool], Forward] = {}
        self._validated: Tally | None = None
        self._take_at_once(self.replicas)
        if room is not None and len(members) == 1:
            division = room.division(members[0].model, members[0].train)
            self._take_at_once(division.replicas)
            self.micro.shrink_to(division.images)
        for member, state in enumerate(states):
            if state is not None:
                self._go_on(member, state)

    @classmethod
    def of(cls, model: ModelConfig, train: TrainConfig, data: ResidentData) -> Pass:
        """That of one run alone, at its beginning."""
        return cls([Member(model, train)], data)

    def _begin(self, states: Sequence[State | None]) -> None:
        begin = [r for r, m in enumerate(self._member_of) if states[m] is None]
        initialise(self.model, Draws(self._seeds, torch.device("cpu"), ("init",)), begin)

    def epoch(self, numbers: Sequence[int]) -> list[EpochResult]:
        """Train and evaluate one epoch.

        Args:
            numbers: which epoch it is of each member, from 1.

        Raises:
            OutOfMemory: it does not fit; of several members, none has moved on in a way that may
                be used.
        """
        return all_of(self.pieces(numbers))

    def pieces(self, numbers: Sequence[int]) -> Pieces[list[EpochResult]]:
        """The same step by step, none of which waits for a GPU but the last one, and those that
        capture a graph."""
        clock = Stopwatch(self.data.device)
        losses = yield from self.training(numbers)
        self._trim()
        clock.lap()
        counted = yield from self._count(numbers)
        clock.lap()
        yield True
        train_loss = tuple(losses.tolist())
        val, *training = (each.read() for each in counted)
        plain, augmented = (each.accuracy for each in training) if training else ((), ())
        self._trim()
        seconds = clock.seconds()
        return [
            EpochResult(
                epoch=number,
                train_loss=train_loss[rows.start : rows.stop],
                val_loss=val.loss[rows.start : rows.stop],
                val_accuracy=val.accuracy[rows.start : rows.stop],
                train_seconds=seconds[0] * len(rows) / self.replicas,
                val_seconds=seconds[1] * len(rows) / self.replicas,
                images=self.steps_per_epoch * self.config.batch_size * len(rows),
                seeds=member.train.seeds,
                plain_train_accuracy=plain[rows.start : rows.stop],
                augmented_train_accuracy=augmented[rows.start : rows.stop],
            )
            for member, number, rows in zip(self.members, numbers, self.rows, strict=True)
        ]

    def _trim(self) -> None:
        """So that neither an evaluation nor a checkpoint comes on top of a step."""
        if self.data.device.type == "cpu":
            trim()

    def training(self, numbers: Sequence[int]) -> Pieces[Tensor]:
        """An epoch's steps without its evaluation, one by one; returns the losses, (K,), still on
        the device."""
        size = self.config.batch_size
        draws = self.draws.at_each("epoch", self._by_row(numbers))
        order = draws.permutation(len(self.data.train), "order")
        first = [(number - 1) * self.steps_per_epoch for number in numbers]
        total = torch.zeros(self.replicas, dtype=torch.float64, device=self.data.device)
        for share in self._shares:
            share.model.train()
        for index in range(self.steps_per_epoch):
            steps = [step + index for step in first]
            if (self._graph or index == FIRST_STEPS) and (graph := self._captured()):
                left = self.steps_per_epoch - index
                total = yield from self._replayed(graph, steps, left, order, total)
                break
            total += self.step(steps, order[:, index * size : (index + 1) * size])
            yield False
        return total / self.steps_per_epoch

    def _captured(self) -> Graph | None:
        """The steps to come as a graph, which is captured once; None where there is none."""
        device = self.data.device
        wanted = replays(device) and not self.micro.divided
        if wanted and self._graph is None:
            step, generators = partial(self._unattended.step, self.draws), self.draws.generators
            self._graph = captured(step, device, generators, or_fail=self.beside) or False
        return (wanted and self._graph) or None

    def _replayed(
        self, graph: Graph, steps: Sequence[int], count: int, order: Tensor, total: Tensor
    ) -> Pieces[Tensor]:
        """So many steps of every replica; returns the sum of all losses of the epoch, (K,)."""
        self._unattended.begin(self._by_row(steps), order, total)
        for index in range(count):
            # A replay draws from the generators as they are seeded then.
            self.draws.at_each("step", self._by_row([step + index for step in steps]))
            graph.replay()
            yield False
        return self._unattended.losses.clone()

    @cached_property
    def _unattended(self) -> Unattended:
        return Unattended(
            self._gradient,
            self._update,
            self._by_row(self.factors),
            len(self.data.train),
            self.config.batch_size,
            self.data.device,
        )

    def step(self, steps: Sequence[int], indices: Tensor) -> Tensor:
        """One update of every replica; returns their losses (K,), still on the device.

        What does not fit in memory is tried again in smaller parts, also in the steps to come,
        unless members, or others, could be taken out instead.

        Args:
            steps: which step it is of each member, from 0.
            indices: (K, B), the images of each replica.

        Raises:
            OutOfMemory: nothing smaller is left to be tried.
        """
        statistics = [buffer.clone() for buffer in self.model.buffers()]
        while (losses := self._try(steps, indices)) is None:
            self._divide()
            reset_peak_memory(self.data.device)
            for buffer, before in zip(self.model.buffers(), statistics, strict=True):
                buffer.copy_(before)
        self._update(self._by_row([self.factors[m][step] for m, step in enumerate(steps)]))
        return losses

    def _divide(self) -> None:
        """Have less under way at a time: fewer replicas, then fewer images, whose gradients are
        summed up in another order."""
        if self.at_once > 1:
            self._take_at_once(-(-self.at_once // 2))
        else:
            self.micro.halve()
            self._forwards = {}

    def _take_at_once(self, replicas: int) -> None:
        self.at_once = min(replicas, self.replicas)
        self._shares = in_shares(self.model, self._configs, self.flat, self.at_once)
        self._forwards = {}

    def _update(self, factors: Sequence[float] | Tensor) -> None:
        self.flat.clip(self._clip_norms)
        self.optimizer.step(factors)
        self.flat.refresh()

    def _by_row(self, values: Sequence[_T]) -> list[_T]:
        """One value per member as one per replica."""
        return [values[member] for member in self._member_of]

    def _try(self, steps: Sequence[int], indices: Tensor) -> Tensor | None:
        """The losses of a step, its gradient in `flat`; None if smaller parts may fit."""
        # An attempt that failed has drawn from what a GPU's draws come from.
        draws = self.draws.at_each("step", self._by_row(steps))
        gradient = partial(self._gradient, draws, indices)
        if self.beside or len(self.members) > 1:
            return insist(gradient, f"a pass over {len(self.members)} run(s)")
        if self.at_once > 1 or not self.micro.smallest:
            return attempt(gradient)
        what = f"a pass over {self.micro.size} of {self.config.batch_size} images"
        return insist(gradient, what)

    def _gradient(self, draws: Draws, indices: Tensor) -> Tensor:
        return torch.cat([self._gradient_of(share, draws, indices) for share in self._shares])

    def _gradient_of(self, share: Share, draws: Draws, indices: Tensor) -> Tensor:
        mine = draws.rows(share.rows)
        losses: list[Tensor] = []
        for part in self.micro.parts:
            if part is None:
                loss = self._loss(share, indices[share.slice], mine)
            else:
                loss = self._loss(share, indices[share.slice][:, part.images], mine.of(part))
            share.gradients.backward(loss.sum(), add=bool(losses))
            losses.append(loss.detach())
        return torch.stack(losses).sum(0)

    def _loss(self, share: Share, indices: Tensor, draws: Draws) -> Tensor:
        """What these images add to the mean loss of the whole batch, one per replica."""
        images, labels = self.augmenter.batch(indices, draws)
        logits = share.model(self.data.normalise(images, self.dtype), draws)
        losses = F.cross_entropy(
            logits.flatten(0, 1).to(self.flat.values.dtype),
            labels.flatten(),
            label_smoothing=self.config.label_smoothing,
            reduction="none",
        )
        return losses.view(len(indices), -1).sum(1) / self.config.batch_size

    def evaluate(self, split: ResidentSplit) -> Evaluation:
        """Of every replica, on images that it does not learn from now."""
        return self._tally(split).read()

    def validated(self) -> Tensor:
        """(K, images) bool: which validation images every replica classifies correctly now, as
        after its last epoch."""
        # Another pass may have trained it until now.
        return (self._validated or self._tally(self.data.val)).correct

    def _count(self, numbers: Sequence[int]) -> Pieces[list[Tally]]:
        """What is evaluated after an epoch: validation images, and where training curves are
        wanted the probe, plain and augmented."""
        self._validated = self._tally(self.data.val)
        counted = [self._validated]
        if self.config.train_curves:
            yield False
            counted.append(self._tally(self.data.probe))
            yield False
            counted.append(self._tally(self.data.probe, numbers))
        return counted

    def _as_trained(self, draws: Draws) -> Seen:
        """The images of the probe under the training transform, drawn for each replica by its own
        seed and epoch, however they are divided into batches."""
        probe, device = self.data.probe, self.data.device
        augmenter = Augmenter(probe, self.config.translate, self.config.flip)

        def seen(batch: range) -> Tensor:
            indices = torch.arange(batch.start, batch.stop, device=device)
            part = draws.of(Part(indices, len(probe)))
            return augmenter.batch(indices.expand(len(draws), -1), part)[0]

        return seen

    def _tally(self, split: ResidentSplit, numbers: Sequence[int] | None = None) -> Tally:
        """
        Args:
            split: the images.
            numbers: which epoch it is of each member, where they are seen as in training.
        """
        draws = None if numbers is None else self.draws.at_each("probe", self._by_row(numbers))
        counted = [self._tally_of(share, split, draws) for share in self._shares]
        return Tally(
            torch.cat([each.loss for each in counted]),
            torch.cat([each.correct for each in counted]),
        )

    def _tally_of(self, share: Share, split: ResidentSplit, draws: Draws | None) -> Tally:
        seen = None if draws is None else self._as_trained(draws.rows(share.rows))
        arguments = share.model, self.data, split, len(share.rows), self.dtype
        # Images of each replica's own have another shape than those that all of them see.
        key = share.rows.start, seen is None
        forward = self._forwards.get(key)
        # What is evaluated once is not worth capturing; and each graph would hold memory of its
        # own where there is little.
        equal = replays(self.data.device)
        divided = self.micro.divided or len(self._shares) > 1
        if not equal or forward is None or divided or self.is_over:
            self._forwards[key] = Forward()
            return tally(*arguments, seen=seen, equal=equal)
        return tally(*arguments, forward, seen, equal)

    def state(self, member: int) -> State:
        """What a member is by now. Its optimiser's tensors are those in use."""
        rows = self.rows[member]
        alone = len(self.members) == 1
        return State(
            values=self.flat.rows(rows),
            buffers={n: b[rows.start : rows.stop] for n, b in self.model.named_buffers()},
            optimizer=self.optimizer.state(rows),
            # How a pass is divided is no member's own.
            micro_batch=self.micro.size if alone else self.config.batch_size,
            at_once=min(self.at_once, len(rows)),
        )

    def _go_on(self, member: int, state: State) -> None:
        rows = self.rows[member]
        with torch.no_grad():
            self.flat.load_rows(rows, state.values)
            for name, buffer in self.model.named_buffers():
                buffer[rows.start : rows.stop] = state.buffers[name]
        self.flat.refresh()
        self.optimizer.load_state(rows, state.optimizer)
        # What it was copied from may be another lane's, which uses that memory again.
        wait_for(self.data.device)
        if len(self.members) == 1:
            # It is no other sum of gradients, but rounded otherwise.
            self.micro.shrink_to(state.micro_batch)
            if state.at_once < self.at_once:
                self._take_at_once(state.at_once)


def _rows_of(member: int, member_of: Sequence[int]) -> range:
    """They lie side by side."""
    first = member_of.index(member)
    return range(first, first + member_of.count(member))
