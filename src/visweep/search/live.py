"""What a person sees while a sweep runs: a live view in a terminal, plain lines elsewhere."""

from __future__ import annotations

import os
import sys
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import replace
from statistics import fmean
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from visweep import text
from visweep.search.expectation import Expectation
from visweep.search.watch import Progress, TrialView, Watcher
from visweep.training.results import OUT_OF_MEMORY

_RECENT = 6
_QUIET_SECONDS = 20.0
"""After so long without a line a log gets one for an epoch, too."""
_FINISHING = "the running epoch is being finished; Ctrl-C again stops at once"
_STYLES = {"complete": "green", "pruned": "yellow", "failed": "red", "running": "cyan"}


class Pace:
    """Predicts the time left from the trials that ended while we watched.

    Until then it says how long it takes if no trial is pruned: by the epochs so far, or else by
    what is expected.

    Args:
        expected: what trials are expected to take, where that is known.
    """

    def __init__(self, expected: Expectation | None = None) -> None:
        self._began = time.monotonic()
        self._finished_before = 0
        self._expected = expected
        self._running: dict[int, TrialView] = {}

    def start(self, progress: Progress) -> None:
        self._began = time.monotonic()
        self._finished_before = progress.finished

    def seconds_left(self, progress: Progress) -> float | None:
        """None until a first trial has ended."""
        done = progress.finished - self._finished_before
        if done <= 0:
            return None
        each = (time.monotonic() - self._began) / done
        return each * max(0, progress.budget - progress.finished)

    def goes_on(self, trial: TrialView) -> None:
        """A trial began, or has finished an epoch."""
        self._running[trial.number] = trial

    def is_over(self, number: int) -> None:
        """A trial goes on here no longer."""
        self._running.pop(number, None)

    def seconds_at_most(self, progress: Progress) -> float | None:
        """If no trial is pruned; None as long as nothing is known of any."""
        running = list(dict(self._running).values())
        begun = [trial for trial in running if trial.curve]
        each = self._seconds_of_a_trial(begun)
        if each is None or not running:
            return None
        waiting = max(0, progress.budget - progress.finished - len(running))
        rest = sum(self._seconds_to_come(trial, each) for trial in running)
        return (rest + waiting * each) / len(running)

    def at_most(self, progress: Progress, before: str) -> str:
        """`up to 5 min left` after `before`; empty where nothing is known."""
        seconds = self.seconds_at_most(progress)
        return f"{before}up to {text.duration(seconds)} left" if seconds else ""

    def _seconds_of_a_trial(self, begun: list[TrialView]) -> float | None:
        """Of one that nobody knows yet; those that have begun tell how the estimates err here."""
        if self._expected is None:
            return fmean(map(_whole, begun)) if begun else None
        if not begun:
            return self._expected.mean_seconds
        estimated = sum(self._expected.seconds(trial.parameters) for trial in begun)
        return self._expected.mean_seconds * sum(map(_whole, begun)) / estimated

    def _seconds_to_come(self, trial: TrialView, usual: float) -> float:
        if trial.curve:
            return _whole(trial) - trial.seconds
        return usual if self._expected is None else self._expected.seconds(trial.parameters)


def _whole(trial: TrialView) -> float:
    """Seconds of all its epochs, by those that it has finished."""
    return trial.seconds / len(trial.curve) * trial.epochs


class PlainView(Watcher):
    """One line per finished trial, for logs and pipes; one per epoch where epochs take long."""

    def __init__(self, console: Console, expected: Expectation | None = None) -> None:
        self._console = console
        self._pace = Pace(expected)
        self._last_line = time.monotonic()
        self._opened = self._any_began = self._any_ended = False
        self._progress = Progress(budget=0)

    def opened(self, name: str, progress: Progress) -> None:
        self._pace.start(progress)
        if not self._opened:
            self._opened = True
            self._print(f"study {name}: {progress.finished} of {progress.budget} trials finished")

    def began(self, trial: TrialView, progress: Progress) -> None:
        self._progress = progress
        self._pace.goes_on(trial)
        # Until the first one ends, a log would be silent for long.
        if not self._any_began:
            self._any_began = True
            self._print(f"trial {trial.number} runs: {text.parameters(trial.parameters)}")

    def ended(self, trial: TrialView, progress: Progress) -> None:
        self._any_ended = True
        self._pace.is_over(trial.number)
        last = text.percent(trial.curve[-1]) if trial.curve else "—"
        left = self._pace.seconds_left(progress)
        self._print(
            f"[{progress.finished}/{progress.budget}] trial {trial.number}: {last} "
            f"{trial.ended}, {text.duration(trial.seconds)}, {text.parameters(trial.parameters)}"
            + (f" | best {text.percent(progress.best[1])}" if progress.best else "")
            + (f" | {text.duration(left)} left" if left else "")
        )

    def left(self, number: int) -> None:
        self._pace.is_over(number)

    def advanced(self, trial: TrialView) -> None:
        self._pace.goes_on(trial)
        now = time.monotonic()
        if now - self._last_line < _QUIET_SECONDS:
            return
        self._print(
            f"trial {trial.number}: epoch {len(trial.curve)} of {trial.epochs}, "
            f"{text.percent(trial.curve[-1])}"
            + ("" if self._any_ended else self._pace.at_most(self._progress, " | "))
        )

    def note(self, message: str) -> None:
        self._print(message)

    def stopping(self, reason: str) -> None:
        os.write(sys.stderr.fileno(), f"{reason}: {_FINISHING}\n".encode())

    def _print(self, line: str) -> None:
        text.print_line(self._console, line)
        self._last_line = time.monotonic()


class LiveView(Watcher):
    """One panel that is redrawn in place; nothing scrolls away."""

    def __init__(self, console: Console, expected: Expectation | None = None) -> None:
        self._console = console
        self._pace = Pace(expected)
        self._name = ""
        self._progress = Progress(budget=0)
        self._running: dict[int, TrialView] = {}
        self._recent: deque[TrialView] = deque(maxlen=_RECENT)
        self._notes: deque[str] = deque(maxlen=2)
        self._live = Live(get_renderable=self.render, console=console, refresh_per_second=2)

    def opened(self, name: str, progress: Progress) -> None:
        self._name, self._progress = name, progress
        self._pace.start(progress)
        self._live.start()

    def began(self, trial: TrialView, progress: Progress) -> None:
        self._progress = progress
        self._running[trial.number] = trial
        self._pace.goes_on(trial)

    def advanced(self, trial: TrialView) -> None:
        self._running[trial.number] = trial
        self._pace.goes_on(trial)

    def ended(self, trial: TrialView, progress: Progress) -> None:
        self._progress = progress
        self._running.pop(trial.number, None)
        self._pace.is_over(trial.number)
        self._recent.append(trial)

    def left(self, number: int) -> None:
        self._running.pop(number, None)
        self._pace.is_over(number)
        beside = tuple(t for t in self._progress.beside if t.number != number)
        self._progress = replace(self._progress, beside=beside)

    def note(self, message: str) -> None:
        self._notes.append(message)

    def stopping(self, reason: str) -> None:
        self._notes.append(f"{reason}: {_FINISHING}")

    def close(self) -> None:
        self._live.stop()

    def render(self) -> RenderableType:
        """The whole view."""
        parts: list[RenderableType] = [self._totals(), self._trials()]
        for trial in self._now():
            shown = text.parameters(trial.parameters)
            parts.append(Text.assemble(("now  ", "bold"), f"trial {trial.number}  {shown}"))
        if self._progress.best is not None:
            parts.append(self._best(*self._progress.best))
        # The view is drawn by a thread of its own.
        notes = tuple(self._notes)
        parts += [Text(note, "yellow", no_wrap=True, overflow="ellipsis") for note in notes]
        parts.append(Text("Ctrl-C stops after this epoch; nothing is lost.", style="dim"))
        return Panel(Group(*parts), title=f"visweep · {self._name}", title_align="left")

    def _now(self) -> list[TrialView]:
        # The view is drawn by a thread of its own.
        return sorted(dict(self._running).values(), key=lambda t: t.number)

    def _beside(self) -> list[TrialView]:
        """What workers that other commands started on this machine are at."""
        heard_of = {*dict(self._running), *(trial.number for trial in tuple(self._recent))}
        return [t for t in self._progress.beside if t.number not in heard_of]

    def _totals(self) -> RenderableType:
        progress = self._progress
        left = self._pace.seconds_left(progress)
        at_most = "" if left is not None else self._pace.at_most(progress, " · ")
        bar = Table.grid(padding=(0, 2), expand=True)
        bar.add_column(ratio=1)
        bar.add_column(justify="right", no_wrap=True)
        bar.add_row(
            ProgressBar(total=max(1, progress.budget), completed=progress.finished),
            Text(f"{progress.finished} of {progress.budget}", "bold"),
        )
        states = Text(
            f"{progress.complete} complete · {progress.pruned} pruned · {progress.running} running"
            + (f" · {progress.elsewhere} on other machines" if progress.elsewhere else "")
            + (f" · {progress.failed} failed" if progress.failed else "")
            + (f" · about {text.duration(left)} left" if left else "")
            + at_most,
            justify="right",
        )
        return Group(bar, states)

    def _trials(self) -> RenderableType:
        table = Table(box=None, expand=True, padding=(0, 1), header_style="dim")
        table.add_column("trial", justify="right")
        table.add_column("epoch", justify="right")
        table.add_column("curve", no_wrap=True)
        table.add_column("accuracy", justify="right", no_wrap=True)
        table.add_column("state", no_wrap=True)
        table.add_column("parameters", ratio=1, no_wrap=True, overflow="ellipsis")
        for trial in (*self._recent, *self._now(), *self._beside()):
            table.add_row(
                str(trial.number),
                f"{len(trial.curve)}/{trial.epochs}",
                text.sparkline(trial.curve, trial.epochs),
                text.percent(trial.curve[-1]) if trial.curve else "—",
                _state(trial),
                text.parameters(trial.parameters),
                style=_STYLES.get(trial.state, ""),
            )
        return table

    def _best(self, number: int, accuracy: float, parameters: Mapping[str, Any]) -> RenderableType:
        return Text.assemble(
            ("best ", "bold"),
            f"trial {number}: ",
            (text.percent(accuracy), "bold green"),
            f"  {text.parameters(parameters)}",
        )


def _state(trial: TrialView) -> str:
    if trial.ended in ("diverged", OUT_OF_MEMORY):
        return trial.ended
    return "continued" if trial.adopted and trial.state == "running" else trial.state


def view_for(console: Console, expected: Expectation | None = None) -> Watcher:
    """The live view in a terminal, plain lines elsewhere."""
    return (LiveView if console.is_terminal else PlainView)(console, expected)
