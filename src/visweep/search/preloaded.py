"""Imported once by the process from which workers are forked: all that they need, torch too.

What they share with it costs memory once, as long as nobody writes to it. Python's collector
would: it keeps its marks in the objects themselves.
"""

from __future__ import annotations

import gc

import visweep.search.crew
import visweep.search.trainer  # noqa: F401

gc.collect()
gc.freeze()
