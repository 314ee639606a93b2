"""The server that processes with torch are forked from, so that each starts in a moment."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext

_PRELOADED = ["visweep.search.preloaded"]
_TUNABLES = "GLIBC_TUNABLES"
_SETTINGS = {
    # The C library keeps small pieces apart for the next object of their size. Those that aligning
    # a tensor leaves beside it then part it from its neighbours for good: ConvNets held half as
    # much memory again, by chance more or less of it, and no step was faster for it (RESULTS.md).
    "glibc.malloc.tcache_count": "0",
    "glibc.malloc.mxfast": "0",
    # Pages of 2 MiB, where the system has them: every step goes through all the memory that it
    # holds, and is 2 to 11 % faster the fewer pages that is (RESULTS.md).
    "glibc.malloc.hugetlb": "1",
}


def context_with_torch() -> ForkServerContext:
    """Starts processes that have imported what a worker needs; its server runs from now on.

    Ctrl-C reaches every process of a terminal's group; these leave it to whoever starts them.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with tuned():
            forkserver.ensure_running()
    finally:
        signal.signal(signal.SIGINT, before)
    return context


@contextmanager
def tuned() -> Iterator[None]:
    """Processes that are begun meanwhile have the settings of workers.

    The C library reads them when a process begins; what the user has set stays.
    """
    given = os.environ.get(_TUNABLES)
    chosen = given.split(":") if given else []
    named = {setting.partition("=")[0] for setting in chosen}
    added = [f"{name}={value}" for name, value in _SETTINGS.items() if name not in named]
    os.environ[_TUNABLES] = ":".join([*chosen, *added])
    try:
        yield
    finally:
        if given is None:
            del os.environ[_TUNABLES]
        else:
            os.environ[_TUNABLES] = given
