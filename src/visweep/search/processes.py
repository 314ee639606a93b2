"""The server that processes with torch are forked from, so that each starts in a moment."""

from __future__ import annotations

import multiprocessing
import signal
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext

_PRELOADED = ["visweep.search.preloaded"]


def context_with_torch() -> ForkServerContext:
    """Starts processes that have imported what a worker needs; its server runs from now on.

    Ctrl-C reaches every process of a terminal's group; these leave it to whoever starts them.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        forkserver.ensure_running()
    finally:
        signal.signal(signal.SIGINT, before)
    return context
