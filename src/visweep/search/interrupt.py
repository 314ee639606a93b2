"""A friendly stop: the first Ctrl-C ends the sweep at the next safe point, the second at once."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupt:
    """Whether and why to stop at the next safe point.

    Args:
        seconds: stop by itself after this long; never when None.
        heard: called at once when a signal asks to stop, from the signal's handler: it must
            neither wait for a lock nor print through a buffer.
    """

    def __init__(
        self, seconds: float | None = None, heard: Callable[[str], None] | None = None
    ) -> None:
        self._on_signal = heard
        self._deadline = None if seconds is None else time.monotonic() + seconds
        self._reason = ""

    @property
    def reason(self) -> str:
        """Why to stop; empty to go on."""
        if not self._reason and self._deadline is not None and time.monotonic() > self._deadline:
            self._reason = "the time-out was reached"
        return self._reason

    def ask(self, reason: str) -> None:
        """Stop at the next safe point."""
        self._reason = self._reason or reason

    @contextmanager
    def listening(self) -> Iterator[Interrupt]:
        """Take SIGINT and SIGTERM; a second SIGINT raises KeyboardInterrupt."""
        before = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}
        for number in before:
            signal.signal(number, self._heard)
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _heard(self, number: int, _: FrameType | None) -> None:
        if self._reason and number == signal.SIGINT:
            raise KeyboardInterrupt
        if not self._reason:
            self.ask("interrupted" if number == signal.SIGINT else "terminated")
            if self._on_signal is not None:
                self._on_signal(self._reason)
