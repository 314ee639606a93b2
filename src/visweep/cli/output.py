"""The file, or folder, that a command writes: what `--output` names."""

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
    _check_place(path)


def check_new_folder(path: Path) -> None:
    """See that a folder can be made, before the work that it takes to fill it.

    Raises:
        UsageError: it cannot, or something is there already.
    """
    if path.exists() and not path.is_dir():
        raise UsageError(f"--output: {path} is a file; accepted: a new folder")
    if path.is_dir() and any(path.iterdir()):
        raise UsageError(f"--output: {path} is not empty; accepted: a new folder")
    _check_place(path)


def _check_place(path: Path) -> None:
    parent = path.absolute().parent
    if not parent.is_dir():
        raise UsageError(f"--output: there is no folder {path.parent}; create it first")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise UsageError(f"--output: the folder {path.parent} cannot be written")
