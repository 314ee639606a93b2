"""The files and folders that a command writes: what `--output` and the like name."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

from visweep.errors import UsageError
from visweep.sealed import sync_folder
from visweep.storage.folder import Folder


def output_of(study: str, given: Path | None, suffix: str) -> Path:
    """The file that a command makes of a study: the given one, or one named after the study.

    Raises:
        UsageError: it cannot be written there.
    """
    path = given or Path(f"{study.replace('/', '_')}{suffix}")
    check_output(path)
    return path


def check_output(path: Path, option: str = "--output") -> None:
    """See that a file can be written, before the work that it takes to make it.

    Raises:
        UsageError: it cannot.
    """
    if path.is_dir():
        raise UsageError(f"{option}: {path} is a folder; accepted: a file in it")
    _check_place(path, option)


def check_folder(path: Path, option: str) -> None:
    """See that files can be written into a folder, or it be made, before the work on them.

    Raises:
        UsageError: they cannot.
    """
    if path.exists() and not path.is_dir():
        raise UsageError(f"{option}: {path} is a file; accepted: a folder")
    _check_place(path / "file" if path.is_dir() else path, option)


def check_new_folder(path: Path) -> None:
    """See that a folder can be made, before the work that it takes to fill it.

    Raises:
        UsageError: it cannot, or something is there already.
    """
    if path.exists() and not path.is_dir():
        raise UsageError(f"--output: {path} is a file; accepted: a new folder")
    if path.is_dir() and any(path.iterdir()):
        raise UsageError(f"--output: {path} is not empty; accepted: a new folder")
    _check_place(path, "--output")


def write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write files into a folder: a new one is there with all of them, or not at all.

    In one that has files already those of the same name are replaced, once the new ones are all
    written, and the others are left alone.

    Raises:
        OSError: they cannot be written.
    """
    absolute = folder.absolute()
    if not absolute.is_dir() or not any(absolute.iterdir()):
        with Folder(absolute).filling() as made:
            for name, content in files.items():
                (made / name).write_bytes(content)
        return
    with tempfile.TemporaryDirectory(prefix=".filling-", dir=absolute) as scratch:
        for name, content in files.items():
            with (Path(scratch) / name).open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        for name in files:
            (Path(scratch) / name).replace(absolute / name)
    sync_folder(absolute)


def _check_place(path: Path, option: str) -> None:
    parent = path.absolute().parent
    if not parent.is_dir():
        raise UsageError(f"{option}: there is no folder {path.parent}; create it first")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise UsageError(f"{option}: the folder {path.parent} cannot be written")
