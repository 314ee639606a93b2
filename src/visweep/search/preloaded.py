"""Imported once by the process from which workers are forked: all that they need, torch too.

What they share with it costs memory once, as long as nobody writes to it. Python's collector
would: it keeps its marks in the objects themselves.
"""

from __future__ import annotations

import gc
import os

import visweep.search.crew
import visweep.search.trainer  # noqa: F401

gc.collect()
gc.freeze()

# A signal to the command's group (of `timeout`, say, or of a service manager) is for the command,
# which could neither stop workers nor hear how they ended without this process.
os.setpgid(0, 0)
