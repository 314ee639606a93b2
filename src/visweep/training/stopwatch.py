"""How long a device was at what it was given to do, without waiting for it in between."""

from __future__ import annotations

import time
from itertools import pairwise

import torch


class Stopwatch:
    """Begins now.

    Args:
        device: that is watched. On a GPU moments are marked in the current stream, and come when
            what was queued before is done.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._times: list[float] = []
        self._events: list[torch.cuda.Event] = []
        self.lap()

    def lap(self) -> None:
        """A lap ends, and the next one begins."""
        if self._on_gpu:
            event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            event.record()
            self._events.append(event)
        else:
            self._times.append(time.perf_counter())

    def seconds(self) -> list[float]:
        """Of each lap that has ended; waits for the last of them."""
        if not self._on_gpu:
            return [after - before for before, after in pairwise(self._times)]
        self._events[-1].synchronize()
        return [before.elapsed_time(after) / 1000 for before, after in pairwise(self._events)]
