"""How many workers fit in this machine's memory, and how much of it each of them has.

Linux grants a process what it asks for and kills one when pages run out, so what does not fit had
better not begin.
"""

from __future__ import annotations

from pathlib import Path

from visweep import text
from visweep.search.expectation import Expectation
from visweep.search.watch import Watcher
from visweep.training.estimate import usual_memory
from visweep.training.room import Room

_MEMINFO = Path("/proc/meminfo")
_GROUP = Path("/sys/fs/cgroup")
_WORKER = 2**28
"""Bytes that a worker takes besides its trial: what it does not share with the others."""
_LEAST = 2**26
"""Bytes that a pass may take however little is free: single images for want of a few megabytes
would help nobody."""
_OWN_PROCESS = 1.5
"""Times as much as estimated is taken by a trial that is trained in the command's own process."""


def free_memory() -> int | None:
    """Bytes that this machine, or the container that this is, has to give; None where it does not
    tell."""
    found = [bytes_ for bytes_ in (_of_the_machine(), _of_the_group()) if bytes_ is not None]
    return min(found, default=None)


def _of_the_machine() -> int | None:
    if not _MEMINFO.exists():
        return None
    words = (line.split() for line in _MEMINFO.read_text().splitlines())
    return next((1024 * int(w[1]) for w in words if w[0] == "MemAvailable:"), None)


def _of_the_group() -> int | None:
    try:
        most = (_GROUP / "memory.max").read_text()
        held = (_GROUP / "memory.current").read_text()
        told = (_GROUP / "memory.stat").read_text()
        if most.strip() == "max":
            return None
        # Files that nobody reads just now are given up where memory is wanted.
        counted = dict(line.split() for line in told.splitlines())
        return max(0, int(most) - int(held) + int(counted.get("inactive_file", 0)))
    except (OSError, ValueError):
        return None


def room_of_each(
    workers: int | None, expected: Expectation, free: int | None, view: Watcher
) -> Room | None:
    """What each worker has for a pass; None where that is not known.

    Args:
        workers: processes of their own; None for a single one in the command's process.
        expected: of the trials.
        free: bytes; None where it is not known.
        view: is told where batches will be divided.
    """
    if free is None:
        return None
    bytes_ = _for_one(free) if workers is None else max(free / workers - _WORKER, _LEAST)
    if expected.most_memory > bytes_:
        view.note(
            f"models that are estimated to take more than {text.memory(bytes_)} train in parts, "
            "fewer seeds or images at a time: each worker has no more memory"
        )
    return Room(bytes_, expected.calibration)


def room_for_one(device: str, precision: str, threads: int) -> Room | None:
    """What a run has that is trained in the command's own process, by itself; None where that is
    not known.

    Args:
        device: that trains.
        precision: of the forward and backward pass.
        threads: of the processor, that compute.
    """
    if device != "cpu":
        import torch

        from visweep.training.device import free_memory as free_on_gpu

        return Room(free_on_gpu(torch.device(device)), usual_memory(device, precision, 0))
    free = free_memory()
    return None if free is None else Room(_for_one(free), usual_memory(device, precision, threads))


def _for_one(free: int) -> float:
    """See `visweep.training.estimate` on what the command's own process takes more."""
    return max(free / _OWN_PROCESS, _LEAST)


def workers_with_room(
    wanted: int, pack: int, expected: Expectation, free: int | None, view: Watcher
) -> int:
    """So many of the wanted workers as may train the largest models at the same time.

    Args:
        wanted: how many there would be, at least one of which is kept.
        pack: trials that each of them trains at once.
        expected: of the trials.
        free: bytes; None where it is not known.
        view: is told where there are fewer.
    """
    if free is None or wanted == 1:
        return wanted
    largest = expected.most_memory
    fitting = min(wanted, max(1, int(free / (_WORKER + pack * largest))))
    if fitting < wanted:
        view.note(
            f"{text.plural(fitting, 'worker')} instead of {wanted}: the largest models of this "
            f"space take an estimated {text.memory(largest)} each, and {text.memory(free)} of "
            "memory are free; --workers overrules it"
        )
    return fitting
