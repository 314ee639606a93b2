"""Timing what is computed on a device whose speed changes meanwhile.

Others use the same processor, share its caches and its memory, and its clock follows the load: by
the minute it may be half as fast, also where CPU time is what is measured. So what is timed at
different moments is compared by what a fixed piece of work took beside it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

from visweep.training.device import replays

_LEAST_TIMES, _MOST_TIMES = 2, 10
_SECONDS = 0.05
"""For so long a computation is repeated, between these bounds."""
_UNTIL_REPLAYED = 2
"""Calls: then all is captured that will be."""


class Stopwatch:
    """Times computations on one device; on the CPU in units of a fixed piece of work.

    Args:
        device: that computes. A GPU's units are seconds.
        clock: seconds.

    Attributes:
        unit: seconds that the piece of work took at the quickest moment so far.
    """

    def __init__(self, device: torch.device, clock: Callable[[], float] | None = None) -> None:
        self._device = device
        # On one thread, what others take is told from what this takes.
        alone = device.type == "cpu" and torch.get_num_threads() == 1
        self._clock = clock or (time.process_time if alone else time.perf_counter)
        self._work = _piece_of_work() if device.type == "cpu" else None
        self.unit = math.inf if self._work else 1.0

    def time(self, compute: Callable[[], object]) -> float:
        """One call, in units: the fastest of several, by the fastest of the work between them."""
        for _ in range(_UNTIL_REPLAYED if replays(self._device) else 0):
            compute()
        self._wait()
        taken: list[float] = []
        unit = math.inf if self._work else 1.0
        while len(taken) < _LEAST_TIMES or (sum(taken) < _SECONDS and len(taken) < _MOST_TIMES):
            if self._work:
                unit = min(unit, self._seconds(self._work))
            taken.append(self._seconds(compute))
        self.unit = min(self.unit, unit)
        return min(taken) / unit

    def _seconds(self, compute: Callable[[], object]) -> float:
        started = self._clock()
        compute()
        self._wait()
        return self._clock() - started

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


def _piece_of_work() -> Callable[[], object]:
    """Some milliseconds of what models do: products in bfloat16, and what goes over all elements,
    in more memory than the nearest cache holds."""
    generator = torch.Generator().manual_seed(0)
    rows, width, hidden = 1024, 96, 384

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).bfloat16()

    x, up, down = drawn(rows, width), drawn(hidden, width), drawn(width, hidden)

    @torch.inference_mode()
    def work() -> None:
        y = x
        for _ in range(3):
            y = F.layer_norm(y + F.linear(F.gelu(F.linear(y, up)), down), (width,))

    work()  # what is compiled for the shapes
    return work
