"""The artifacts of a study in a folder: of this machine, or one that several machines mount."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from visweep.errors import UsageError
from visweep.sealed import sync_folder
from visweep.storage.place import Place


class Folder(Place):
    """A folder, which is made when the first file is written.

    Whoever writes a file does so atomically (see `visweep.sealed`).
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def where(self) -> str:
        return str(self.folder)

    def names(self) -> list[str]:
        found = (p.relative_to(self.folder) for p in self.folder.rglob("*") if p.is_file())
        return sorted(p.as_posix() for p in found if not _is_hidden(p))

    def unfinished(self) -> list[str]:
        return sorted(path.name for path in self.folder.glob(".*"))

    def path(self, name: str) -> Path:
        return self.folder / name

    def fetch(self, name: str) -> Path:
        return self.path(name)

    def keep(self, name: str) -> None:
        """Nothing is left to do."""

    def read(self, name: str) -> bytes:
        return self.path(name).read_bytes()

    def rename(self, name: str, new: str) -> None:
        self.path(name).replace(self.path(new))

    def remove(self, name: str) -> None:
        self.path(name).unlink(missing_ok=True)

    def copy_to(self, folder: Path) -> None:
        for name in self.names():
            copied = folder / name
            copied.parent.mkdir(parents=True, exist_ok=True)
            try:
                shutil.copyfile(self.path(name), copied)
            except FileNotFoundError:
                copied.unlink(missing_ok=True)

    @contextmanager
    def filling(self) -> Iterator[Path]:
        parent = self.folder.parent
        parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".filling-", dir=parent) as scratch:
            made = Path(scratch) / self.folder.name
            made.mkdir()
            yield made
            if not any(made.iterdir()):
                return
            for path in (made, *made.rglob("*")):
                _sync(path)
            made.rename(self.folder)
        sync_folder(parent)

    def discard(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def require_usable(self) -> None:
        above = next(p for p in (self.folder, *self.folder.parents) if p.exists())
        if not above.is_dir():
            raise UsageError(f"--artifacts: {above} is not a folder")
        if not os.access(above, os.W_OK | os.X_OK):
            raise UsageError(f"--artifacts: the folder {above} cannot be written")


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _sync(path: Path) -> None:
    """See that a file, or the names in a folder, are on the disk."""
    if path.is_dir():
        sync_folder(path)
        return
    with path.open("rb") as file:
        os.fsync(file.fileno())
