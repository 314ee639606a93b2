"""A friendly stop: the first Ctrl-C ends the sweep at the next safe point, the second at once."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupt:
    """Whether and why to stop at the next safe point.

    Args:
        seconds: stop by itself after this long; never when None.
    """

    def __init__(self, seconds: float | None = None) -> None:
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
        self.ask("interrupted" if number == signal.SIGINT else "terminated")
