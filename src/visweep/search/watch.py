"""What a sweep tells whoever watches it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class TrialView:
    """A trial as it is shown.

    Attributes:
        number: its number in the study.
        parameters: what it is trained with.
        epochs: how many epochs it may run.
        curve: validation accuracy after each epoch so far.
        state: `running`, `complete`, `pruned` or `failed`.
        ended: why it ended; empty while it runs.
        seconds: spent on it so far.
        adopted: it goes on from where another worker left it.
    """

    number: int
    parameters: Mapping[str, Any]
    epochs: int
    curve: tuple[float, ...] = ()
    state: str = "running"
    ended: str = ""
    seconds: float = 0.0
    adopted: bool = False


@dataclass(frozen=True)
class Progress:
    """How far a study is.

    Attributes:
        budget: trials that it is to finish.
        complete, pruned, failed, running: trials by state.
        elsewhere: how many of those that run are held by workers on other machines.
        beside: those that other workers of this machine held when this was read, the ones that
            the watcher hears of included; their state is the process.
        best: number, validation accuracy and parameters of the best completed trial so far.
    """

    budget: int
    complete: int = 0
    pruned: int = 0
    failed: int = 0
    running: int = 0
    elsewhere: int = 0
    beside: tuple[TrialView, ...] = ()
    best: tuple[int, float, Mapping[str, Any]] | None = field(default=None)

    @property
    def finished(self) -> int:
        return self.complete + self.pruned


class Watcher:
    """Hears of everything that happens in a sweep; each method may be overridden."""

    def opened(self, name: str, progress: Progress) -> None:
        """The study is open; nothing has been trained yet."""

    def began(self, trial: TrialView, progress: Progress) -> None:
        """A trial begins or is continued."""

    def advanced(self, trial: TrialView) -> None:
        """A trial has finished an epoch."""

    def ended(self, trial: TrialView, progress: Progress) -> None:
        """A trial was completed, pruned or failed."""

    def left(self, number: int) -> None:
        """A trial that began here goes on elsewhere, or later."""

    def note(self, message: str) -> None:
        """Something that the user should know."""

    def stopping(self, reason: str) -> None:
        """A signal asked to stop; heard from its handler, so no lock and no buffer may be used."""

    def close(self) -> None:
        """Nothing more will be heard."""
