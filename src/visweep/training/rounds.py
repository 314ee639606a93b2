"""Runs side by side on one device, those of a bucket in one pass, an epoch of each at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from visweep.data.resident import ResidentData
from visweep.errors import OutOfMemory
from visweep.training.memory import give_back, insist
from visweep.training.passes import Pass, State
from visweep.training.results import EpochResult, FitResult
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
    """Runs that share a pass, which is made for their first epoch."""

    def __init__(
        self, runs: tuple[Run, ...], states: Sequence[State | None], data: ResidentData
    ) -> None:
        self.runs = runs
        self._data = data
        self._states = states
        self._shared: Pass | None = None

    def shared(self) -> Pass:
        if self._shared is None:
            members = [run.member for run in self.runs]
            self._shared, self._states = Pass(members, self._data, self._states), ()
        return self._shared

    def state(self, run: Run) -> State | None:
        index = self.runs.index(run)
        return self._states[index] if self._shared is None else self._shared.state(index)

    def turns(self) -> list[Turn]:
        shared = self.shared()
        results = shared.epoch([run.epoch for run in self.runs])
        return [
            Turn(run, (result, shared.state(index)))
            for index, (run, result) in enumerate(zip(self.runs, results, strict=True))
        ]


class Rounds:
    """Trains runs side by side; they join and leave between any two rounds.

    Args:
        data: what they are trained on.
    """

    def __init__(self, data: ResidentData) -> None:
        self._data = data
        self._runs: list[Run] = []
        self._groups: list[_Group] = []
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
        """
        try:
            return insist(lambda: run.result(self._alone(run)), "the model")
        finally:
            self.drop(run)

    def drop(self, run: Run) -> None:
        """Take a run out; what it has not kept is lost."""
        self._runs = _without(run, self._runs)
        self._apart = _without(run, self._apart)
        self._groups = [group for group in self._groups if group.runs != (run,)]

    def round(self) -> Iterator[Turn]:
        """Train an epoch of each run. A pass is trained when the first turn of it is asked for.

        Where a pass over several runs fails, they go back to what they have kept, and are trained
        in smaller passes from the next round on: only a run that fails alone has failed.
        """
        self._regroup()
        for group in self._groups:
            yield from self._turns(group)

    def _turns(self, group: _Group) -> list[Turn]:
        try:
            return insist(group.turns, "the model")
        except Exception as e:
            error = e
        if len(group.runs) == 1 or not all(run.is_kept for run in group.runs):
            return [Turn(run, error) for run in group.runs]
        self._groups = [other for other in self._groups if other is not group]
        if isinstance(error, OutOfMemory):
            self._most[group.runs[0].member.bucket] = len(group.runs) // 2
        else:
            self._apart += group.runs
        for run in group.runs:
            run.go_back()
        return []

    def _regroup(self) -> None:
        wanted = self._wanted()
        stay = {group.runs: group for group in self._groups if group.runs in wanted}
        states = {run: self._state(run) for runs in wanted if runs not in stay for run in runs}
        # Those that are given up go first, since both may not fit.
        self._groups = list(stay.values())
        if states:
            give_back()
        self._groups = [
            stay.get(runs) or _Group(runs, [states[run] for run in runs], self._data)
            for runs in wanted
        ]

    def _wanted(self) -> list[tuple[Run, ...]]:
        """Who is to share a pass, by who came first."""
        together: dict[Any, list[Run]] = {}
        for run in self._runs:
            apart = run if run in self._apart else None
            together.setdefault((run.member.bucket, apart), []).append(run)
        found = []
        for (bucket, _), runs in together.items():
            most = self._most.get(bucket, len(runs))
            found += [tuple(runs[i : i + most]) for i in range(0, len(runs), most)]
        return found

    def _alone(self, run: Run) -> Pass:
        """A pass of this run only, as it is by now."""
        for group in self._groups:
            if group.runs == (run,):
                return group.shared()
        return Pass([run.member], self._data, [self._state(run)])

    def _state(self, run: Run) -> State | None:
        for group in self._groups:
            if run in group.runs:
                return group.state(run)
        return run.taken_state()


def _without(run: Run, runs: Sequence[Run]) -> list[Run]:
    return [other for other in runs if other is not run]
