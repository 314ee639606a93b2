"""How many workers a machine gets, and how many threads each of them."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from visweep.search.study import OpenStudy

THREADS = "visweep:threads"
"""Study attribute: threads of each worker. Sums are rounded by it, so it stays as it was."""

MOST_WORKERS = 8
"""More than so many proposals at once tell a sampler too little of each other."""


def default_workers(device: str) -> int:
    """One per core on the CPU: two of one thread are faster than one of two (RESULTS.md). On a GPU
    one; how many more are worth it is tried, see `visweep.search.gpu_workers`."""
    return min(cores(), MOST_WORKERS) if device == "cpu" else 1


def pinned_threads(opened: OpenStudy, workers: int, device: str) -> int:
    """Threads of each worker: on the CPU as in the study's first session, which chooses them."""
    threads = usual_threads(workers, device)
    if device != "cpu":
        # They round nothing there, and a CPU that joins must not inherit them.
        return threads
    opened.storage.set_study_attributes_once(opened.study_id, {THREADS: threads})
    return int(opened.study.user_attrs[THREADS])


def usual_threads(workers: int | None, device: str) -> int:
    """Threads of each of so many workers (None for the default number) in a new study."""
    chosen = os.environ.get("OMP_NUM_THREADS", "")
    if chosen.isdecimal():
        return max(1, int(chosen))
    return max(1, cores() // (workers or default_workers(device)))


def cores() -> int:
    """Those that this process may use; a container may allow less than it shows."""
    if not hasattr(os, "sched_getaffinity"):
        return os.cpu_count() or 1
    return min(len(os.sched_getaffinity(0)), _quota())


def _quota() -> int:
    try:
        allowed, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
    except (OSError, ValueError):
        return sys.maxsize
    return sys.maxsize if allowed == "max" else max(1, int(allowed) // int(period))
