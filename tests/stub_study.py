"""A study that `stub_worker.py` trains: its workers, and the log in which they write."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial

from stub_worker import STUDY, value
from visweep.storage.check import check
from visweep.storage.opening import open_storage

WORKER = Path(__file__).with_name("stub_worker.py")


@dataclass
class StubStudy:
    """A study, and the processes that work on it.

    Attributes:
        launcher: starts them.
        url: the storage, as this process reaches it.
        folder: holds the log.
        trials: the budget.
        epochs: of each trial.
        seconds: that an epoch takes.
        lease: seconds after which a silent worker is taken for dead.
        processes: the workers so far.
    """

    launcher: Any
    url: str
    folder: Path
    trials: int
    epochs: int
    seconds: float
    lease: float = 60.0
    processes: list[Any] = field(default_factory=list)

    def start(self) -> Any:
        process = self.launcher.start(
            WORKER, *self._arguments(), cwd=self.folder, VISWEEP_STORAGE=self.url
        )
        self.processes.append(process)
        return process

    def start_apart(self, *before: object, folder: Path | None = None, **environment: str) -> Any:
        """Start a worker elsewhere: with a command before its own, or in another environment."""
        environment = {"VISWEEP_STORAGE": self.url, **environment}
        command = [*before, sys.executable, WORKER, *self._arguments()]
        process = self.launcher.start_apart(*command, cwd=folder or self.folder, **environment)
        self.processes.append(process)
        return process

    def _arguments(self) -> tuple[object, ...]:
        return self.log, self.trials, self.epochs, self.seconds, self.lease

    def alive(self) -> list[Any]:
        return [p for p in self.processes if not p.ended()]

    @property
    def log(self) -> Path:
        return self.folder / "log"

    def trained(self) -> list[tuple[int, int, int]]:
        """Every epoch that was trained: trial, generation and epoch, in order."""
        return [(number, generation, epoch) for number, generation, epoch, _ in self.lines()]

    def lines(self) -> list[tuple[int, int, int, int]]:
        """The same, with the process that trained it."""
        # A line that is being written has no end yet.
        text = self.log.read_text() if self.log.exists() else ""
        lines = text.rpartition("\n")[0].splitlines()
        return [(int(n), int(g), int(e), int(p)) for n, g, e, p in map(str.split, lines)]

    def workers(self) -> set[int]:
        """The processes that have trained an epoch."""
        return {process for *_, process in self.lines()}

    def read(self) -> list[FrozenTrial]:
        storage = open_storage(self.url)
        try:
            return optuna.load_study(study_name=STUDY, storage=storage).get_trials()
        finally:
            storage.close()

    def require_exact(self) -> None:
        """See that each trial was trained to its end once, as far as anything tells."""
        self.require_finished()
        for number in range(self.trials):
            self._require_handed_over([(g, e) for n, g, e in self.trained() if n == number])
        assert [f.what for f in check(self.url) if f.wrong] == []

    def require_finished(self) -> None:
        """See that there are as many trials as were wanted, each complete and whole."""
        trials = self.read()
        assert [t.state.name for t in trials] == ["COMPLETE"] * self.trials
        for trial in trials:
            self.require_whole(trial)

    def require_whole(self, trial: FrozenTrial) -> None:
        """See that a curve has every epoch, as the last worker that trained it has reported it."""
        last: dict[int, int] = {}
        for number, generation, epoch in self.trained():
            if number == trial.number:
                last[epoch] = max(generation, last.get(epoch, 0))
        expected = {e: value(trial.number, e, last[e]) for e in range(1, self.epochs + 1)}
        assert trial.intermediate_values == expected
        assert trial.value == expected[self.epochs]
        assert trial.user_attrs["ended"] == "completed"

    def _require_handed_over(self, epochs: list[tuple[int, int]]) -> None:
        """Each generation goes on where the one before it was, but for an unfinished epoch."""
        assert [g for g, _ in epochs] == sorted(g for g, _ in epochs)
        done = 0
        for generation in sorted({g for g, _ in epochs}):
            its = [e for g, e in epochs if g == generation]
            assert its == list(range(its[0], its[0] + len(its)))
            assert its[0] in (done, done + 1)
            done = its[-1]
        assert done == self.epochs
