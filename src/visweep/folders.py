"""The folders that this system has for what a user's programs keep."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs


def cache_dir() -> Path:
    """`$VISWEEP_CACHE`, or else the folder that this system has for caches."""
    return Path(os.environ.get("VISWEEP_CACHE") or platformdirs.user_cache_dir("visweep"))


def data_dir() -> Path:
    """The folder that this system has for what a user wants to keep: `$XDG_DATA_HOME/visweep` on
    Linux, `~/.local/share/visweep` without it."""
    return Path(platformdirs.user_data_dir("visweep"))
