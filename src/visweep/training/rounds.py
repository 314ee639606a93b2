"""Runs side by side on one device, those of a bucket in one pass, an epoch of each at a time.

On a GPU all passes are under way at once, in a lane each, and all hold their memory; elsewhere one
follows the other. None waits for another one to end its epoch: that of a small model has done
several when that of a large one has done its first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from visweep.data.resident import ResidentData
from visweep.errors import Crowded, OutOfMemory
from visweep.training.device import wait_for
from visweep.training.estimate import Images
from visweep.training.lanes import Lane, Pieces, Work, until_one_is_done
from visweep.training.memory import give_back, insist
from visweep.training.pacing import seconds_of_a_piece
from visweep.training.passes import Pass, State
from visweep.training.results import EpochResult, FitResult
from visweep.training.room import Room
from visweep.training.run import Run


@dataclass(frozen=True)
class Turn:
    """What a round gave one run: an epoch, or the error that it failed with."""

    run: Run
    outcome: tuple[EpochResult, State] | Exception

    def take(self) -> None:
        """Keep the epoch and tell of it.

        Raises:
            Exception: what the run failed with.
        """
        if isinstance(self.outcome, Exception):
            raise self.outcome
        self.run.advance(*self.outcome)


class _Group:
    """Runs that share a pass, which is made for their first epoch.

    Args:
        runs: that share it.
        states: where each goes on; None for one that begins.
        data: what they are trained on.
        lane: where.
        room: see `Rounds`.
        clock: when it begins; see `Work`.

    Attributes:
        beside: see `Pass.beside`.
        under_way: its epoch, in the midst of which it is.
    """

    def __init__(
        self,
        runs: tuple[Run, ...],
        states: Sequence[State | None],
        data: ResidentData,
        lane: Lane,
        room: Room | None,
        clock: float,
    ) -> None:
        self.runs = runs
        self._members = [run.member for run in runs]
        self._room = room
        self.beside = False
        self.lane = lane
        self._clock = clock
        self.under_way: Work[list[Turn]] | None = None
        self._data = data
        self._states = states
        self._shared: Pass | None = None

    def shared(self) -> Pass:
        if self._shared is None:
            self._shared = Pass(self._members, self._data, self._states, self._room)
            self._states = ()
        return self._shared

    @property
    def is_whole(self) -> bool:
        """Whether no replica has stopped since."""
        return all(
            run.member == member for run, member in zip(self.runs, self._members, strict=True)
        )

    def state(self, run: Run) -> State | None:
        """Of what is left of it."""
        index = self.runs.index(run)
        state = self._states[index] if self._shared is None else self._shared.state(index)
        had, has = self._members[index].train.seeds, run.member.train.seeds
        if state is None or had == has:
            return state
        return state.only([had.index(seed) for seed in has])

    @property
    def clock(self) -> float:
        """How far it is; see `Work`."""
        return self._clock if self.under_way is None else self.under_way.clock

    def begin(self) -> Work[list[Turn]]:
        """An epoch of each, from now on or since it was begun."""
        if self.under_way is None:
            images = Images(len(self._data.train), len(self._data.val))
            configurations = [(member.model, member.train) for member in self._members]
            cost = seconds_of_a_piece(configurations, images)
            self.under_way = Work(self.lane, self._epoch(), cost, self._clock)
        return self.under_way

    def end(self) -> None:
        """Its epoch is over, or has failed."""
        self._clock, self.under_way = self.clock, None

    def share(self, beside: bool) -> None:
        """Say whether it is `beside` others from now on; runs that could not go back are not."""
        self.beside = beside
        if self._shared is not None:
            self._shared.beside = beside and all(run.is_kept for run in self.runs)

    def _epoch(self) -> Pieces[list[Turn]]:
        shared = self.shared()
        self.share(self.beside)
        results = yield from shared.pieces([run.epoch for run in self.runs])
        turns = [
            Turn(run, (result, shared.state(index)))
            for index, (run, result) in enumerate(zip(self.runs, results, strict=True))
        ]
        # What is outside the lane reads the states.
        wait_for(self._data.device)
        return turns

    def release(self) -> None:
        """Hold nothing any more."""
        if self.under_way is not None:
            self.under_way.abandon()
            self.end()
        self._shared, self._states = None, ()


_LANES: dict[torch.device, list[Lane]] = {}
"""Those of this process, whatever is trained in them: each keeps memory for itself."""


class Rounds:
    """Trains runs side by side; they join and leave between any two rounds, and share a pass from
    the end of its epoch on.

    Args:
        data: what they are trained on.
        at_once: whether passes are under way at the same time; None for only on a GPU.
        others_beside: whether other processes train on the device, and could make room.
        room: what each pass may take; None where that is not known.
    """

    def __init__(
        self,
        data: ResidentData,
        *,
        at_once: bool | None = None,
        others_beside: bool = False,
        room: Room | None = None,
    ) -> None:
        self._data = data
        self._at_once = data.device.type == "cuda" if at_once is None else at_once
        self._others_beside = others_beside
        self._room = room
        self._runs: list[Run] = []
        # Where one begins beside which no other stays; see `Work`.
        self._clock = 0.0
        self._groups: list[_Group] = []
        self._lanes = _LANES.setdefault(data.device, [])
        # Of a bucket, so many runs at most fit in memory together.
        self._most: dict[Any, int] = {}
        # A pass failed with them, and it is not known with which.
        self._apart: list[Run] = []

    def join(self, run: Run) -> None:
        """Let a run take part from the next round on."""
        self._runs.append(run)

    def leave(self, run: Run) -> FitResult:
        """Take a run out that is over; returns what came of it.

        Raises:
            OutOfMemory: its last evaluation does not fit in memory.
            Crowded: nor does it, beside others.
        """
        try:
            return insist(lambda: run.result(self._alone(run)), "the model")
        except OutOfMemory as e:
            others = any(other is not run for other in self._runs)
            if run.is_kept and (self._others_beside or others):
                raise Crowded(f"beside others, {e}") from e
            raise
        finally:
            self.drop(run)

    def drop(self, run: Run) -> None:
        """Take a run out; what it has not kept is lost."""
        self._runs = _without(run, self._runs)
        self._apart = _without(run, self._apart)
        kept = [g for g in self._groups if any(other in self._runs for other in g.runs)]
        for group in self._groups:
            if group not in kept:
                group.release()
        self._groups = kept

    def round(self) -> list[Turn]:
        """Train until the next pass is at the end of its epoch; what its runs get.

        Where a pass over several runs fails, they go back to what they have kept, and are trained
        in smaller passes from the next round on: only a run that fails alone has failed. What
        does not fit beside others that hold their memory, too, is `Crowded`.
        """
        self._regroup()
        for group in self._groups:
            group.share(self._beside)
        groups = self._groups
        chosen = groups if self._at_once else sorted(groups, key=lambda group: group.clock)[:1]
        works = [group.begin() for group in chosen]
        if not works:
            return []
        work, outcome = until_one_is_done(works, lambda piece: insist(piece, "the model"))
        group = chosen[works.index(work)]
        group.end()
        self._clock = group.clock
        return self._turns(group, outcome)

    def is_under_way(self, run: Run) -> bool:
        """Whether it is in the midst of an epoch, which would be lost without it."""
        return any(group.under_way and run in group.runs for group in self._groups)

    @property
    def _beside(self) -> bool:
        """Whether memory is held that is not that of one pass."""
        return self._others_beside or (self._at_once and len(self._groups) > 1)

    def _turns(self, group: _Group, outcome: list[Turn] | Exception) -> list[Turn]:
        """Of those of its runs that are still there."""
        runs = [run for run in group.runs if run in self._runs]
        if not isinstance(outcome, Exception):
            return [turn for turn in outcome if turn.run in runs]
        if not all(run.is_kept for run in runs):
            return [Turn(run, outcome) for run in runs]
        if isinstance(outcome, OutOfMemory):
            return self._with_less(group, runs, outcome)
        if len(runs) > 1:
            self._apart += runs
            self._again(group, runs)
            return []
        return [Turn(run, outcome) for run in runs]

    def _with_less(self, group: _Group, runs: Sequence[Run], error: OutOfMemory) -> list[Turn]:
        """What follows where a pass did not fit in memory."""
        half = len(runs) // 2
        if self._beside or (self._at_once and half):
            # In smaller passes they would hold as much. The others are to fit by now.
            self._again(group, runs)
            crowded = Crowded(f"beside others, {error}")
            return [Turn(run, crowded) for run in runs[half:]]
        if not half:
            return [Turn(run, error) for run in runs]
        self._most[runs[0].member.bucket] = half
        self._again(group, runs)
        return []

    def _again(self, group: _Group, runs: Sequence[Run]) -> None:
        """Its runs are to go on from what they have kept, in another pass."""
        self._groups = [other for other in self._groups if other is not group]
        group.release()
        give_back()
        for run in runs:
            run.go_back()

    def _regroup(self) -> None:
        wanted = self._formed()
        same = [g for g in self._groups if g.under_way or (g.runs in wanted and g.is_whole)]
        stay = {group.runs: group for group in same}
        states = {run: self._state(run) for runs in wanted if runs not in stay for run in runs}
        clocks = {run: group.clock for group in self._groups for run in group.runs}
        least = min((group.clock for group in same), default=self._clock)
        # Those that are given up go first, since both may not fit.
        self._groups = list(stay.values())
        if states:
            give_back()
        lanes = self._lanes_for(wanted, stay)
        self._groups = [
            stay.get(runs)
            or _Group(
                runs,
                [states[run] for run in runs],
                self._data,
                lane,
                self._room,
                # Who had turns keeps count of them; who had none has none to catch up on.
                clock=max((clocks[run] for run in runs if run in clocks), default=least),
            )
            for runs, lane in zip(wanted, lanes, strict=True)
        ]

    def _formed(self) -> list[tuple[Run, ...]]:
        """Who shares a pass now. Who is to join one that is in the midst of its epoch waits, and
        has none yet, since runs that could share one do."""
        under_way = [group.runs for group in self._groups if group.under_way]
        busy = {run for runs in under_way for run in runs}
        return under_way + [runs for runs in self._wanted() if busy.isdisjoint(runs)]

    def _lanes_for(
        self, wanted: Sequence[tuple[Run, ...]], stay: Mapping[tuple[Run, ...], _Group]
    ) -> list[Lane]:
        """Those that stay keep theirs; the others take what is free, whose memory is at hand."""
        taken = [group.lane for group in stay.values()]
        free = [lane for lane in self._lanes if lane not in taken]
        while len(taken) + len(free) < len(wanted):
            free.append(Lane(self._data.device))
        chosen = [stay[runs].lane if runs in stay else free.pop(0) for runs in wanted]
        self._lanes[:] = [*chosen, *free]
        return chosen

    def _wanted(self) -> list[tuple[Run, ...]]:
        """Who is to share a pass, by who came first."""
        together: dict[Any, list[Run]] = {}
        for run in self._runs:
            apart = run if run in self._apart else None
            together.setdefault((run.member.bucket, apart), []).append(run)
        found = []
        for (bucket, _), runs in together.items():
            most = self._most.get(bucket, len(runs))
            while runs:
                count = self._fitting(runs[:most])
                found.append(tuple(runs[:count]))
                runs = runs[count:]
        return found

    def _fitting(self, runs: Sequence[Run]) -> int:
        """How many of them, from the first one on, are to share a pass."""
        # Passes that are under way at the same time hold no less than one.
        if self._room is None or self._at_once:
            return len(runs)
        return self._room.together([(run.member.model, run.member.train) for run in runs])

    def _alone(self, run: Run) -> Pass:
        """A pass of this run only, as it is by now."""
        for group in self._groups:
            if group.runs == (run,) and group.is_whole:
                return group.shared()
        made = Pass([run.member], self._data, [self._state(run)], self._room)
        made.is_over = True
        return made

    def _state(self, run: Run) -> State | None:
        for group in self._groups:
            if run in group.runs:
                return group.state(run)
        return run.taken_state()


def _without(run: Run, runs: Sequence[Run]) -> list[Run]:
    return [other for other in runs if other is not run]
