"""The file that a command writes: what `--output` names."""

from __future__ import annotations

import os
from pathlib import Path

from visweep.errors import UsageError


def output_of(study: str, given: Path | None, suffix: str) -> Path:
    """The file that a command makes of a study: the given one, or one named after the study.

    Raises:
        UsageError: it cannot be written there.
    """
    path = given or Path(f"{study.replace('/', '_')}{suffix}")
    check_output(path)
    return path


def check_output(path: Path) -> None:
    """See that a file can be written, before the work that it takes to make it.

    Raises:
        UsageError: it cannot.
    """
    if path.is_dir():
        raise UsageError(f"--output: {path} is a folder; accepted: a file in it")
    if not path.parent.is_dir():
        raise UsageError(f"--output: there is no folder {path.parent}; create it first")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise UsageError(f"--output: the folder {path.parent} cannot be written")
