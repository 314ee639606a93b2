"""A place for the artifacts of one study: files by name, each seen whole or not at all."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from pathlib import Path


class Place(ABC):
    """Where the artifacts of one study lie.

    A name may have slashes in it. What begins with a dot, or lies in a folder that does, is not
    finished and not among the names.

    Whoever works on a file does so on this machine, at its `path`, and then keeps it in the
    place. Where the place is a folder, that is the same file.

    Raises:
        FileNotFoundError: there is no file of that name.
        OSError: this machine's disk fails.
        StorageError: the place cannot be reached, by any method.
    """

    @property
    @abstractmethod
    def where(self) -> str:
        """The place, as it may be shown."""

    @abstractmethod
    def names(self) -> list[str]:
        """The names of all its files."""

    @abstractmethod
    def unfinished(self) -> list[str]:
        """What somebody is writing, or was when they were killed: `.NAME.` and some letters."""

    @abstractmethod
    def path(self, name: str) -> Path:
        """Where this machine works on a file; it need not be there."""

    @abstractmethod
    def fetch(self, name: str) -> Path:
        """`path`, where the file now is what the place has of it: none, if it has none."""

    @abstractmethod
    def keep(self, name: str) -> None:
        """See that the place has what is at `path`: after this returns, it does."""

    @abstractmethod
    def read(self, name: str) -> bytes:
        """A file's content."""

    @abstractmethod
    def rename(self, name: str, new: str) -> None:
        """Give a file another name; what had that name is replaced."""

    @abstractmethod
    def remove(self, name: str) -> None:
        """Delete a file, if it is there."""

    @abstractmethod
    def copy_to(self, folder: Path) -> None:
        """Copy all files into a folder; what vanishes meanwhile is left out."""

    @abstractmethod
    def filling(self) -> AbstractContextManager[Path]:
        """An empty folder of this machine, whose files are in the place afterwards: all, or none.

        The place must be empty.
        """

    @abstractmethod
    def discard(self) -> None:
        """Delete everything."""

    @abstractmethod
    def require_usable(self) -> None:
        """See that files can be written, read, renamed and deleted.

        Raises:
            UsageError: they cannot.
        """

    @property
    def copies(self) -> Place | None:
        """This machine's own copies of the files that it works on, where it needs some."""
        return None
