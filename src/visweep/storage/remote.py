"""The artifacts of a study in a file system of fsspec's: an object store, or a server of files."""

from __future__ import annotations

import secrets
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

from visweep.errors import StorageError, UsageError
from visweep.storage.folder import Folder
from visweep.storage.place import Place
from visweep.storage.waiting import Endurance, reason

Method = TypeVar("Method", bound=Callable[..., Any])

_OBJECT_STORES = frozenset(
    {"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "oci", "oss", "tos", "hf", "memory"}
)
"""Protocols of fsspec's under which a file is seen whole or not at all, whoever is writing it."""


def _enduring(method: Method) -> Method:
    """Repeat a method while the place is away; it is harmless twice."""

    @wraps(method)
    def waiting(self: Remote, *args: Any) -> Any:
        return self._endurance.call(lambda: method(self, *args))

    return waiting  # type: ignore[return-value]


class Remote(Place):
    """A folder of a remote file system; files are worked on in a folder of this machine.

    A file that is uploaded is seen when it is complete: object stores see to that, and elsewhere
    it has another name until then.

    Args:
        filesystem: fsspec's.
        root: the folder there.
        where: the same, as it may be shown.
        copies: the folder of this machine in which files are worked on.
        answered: whether the place has answered this machine before; see `Endurance`.
    """

    def __init__(
        self, filesystem: Any, root: str, where: str, copies: Path, answered: bool = False
    ) -> None:
        self._files = filesystem
        self._root = root.rstrip("/")
        self._where = where
        self._copies = Folder(copies)
        self._endurance = Endurance(where, answered)
        spoken = filesystem.protocol
        spoken = {spoken} if isinstance(spoken, str) else set(spoken)
        self._is_object_store = not _OBJECT_STORES.isdisjoint(spoken)

    @property
    def where(self) -> str:
        return self._where

    @property
    def copies(self) -> Place:
        return self._copies

    def names(self) -> list[str]:
        return [name for name in self._found() if not any(p.startswith(".") for p in _parts(name))]

    def unfinished(self) -> list[str]:
        return [name for name in self._found() if name.startswith(".")]

    def path(self, name: str) -> Path:
        return self._copies.path(name)

    @_enduring
    def fetch(self, name: str) -> Path:
        target = self.path(name)
        target.parent.mkdir(parents=True, exist_ok=True)
        arriving = target.with_name(f".{target.name}.arriving")
        try:
            self._files.get_file(self._at(name), str(arriving))
            arriving.replace(target)
        except FileNotFoundError:
            target.unlink(missing_ok=True)
        finally:
            arriving.unlink(missing_ok=True)
        return target

    def keep(self, name: str) -> None:
        self._upload(self.path(name), name)

    @_enduring
    def read(self, name: str) -> bytes:
        return bytes(self._files.cat_file(self._at(name)))

    @_enduring
    def rename(self, name: str, new: str) -> None:
        try:
            self._move(self._at(name), self._at(new))
        except FileNotFoundError:
            # It may have happened, and its answer been lost.
            if not self._files.exists(self._at(new)):
                raise
        self.path(name).unlink(missing_ok=True)

    @_enduring
    def remove(self, name: str) -> None:
        with suppress(FileNotFoundError):
            self._files.rm_file(self._at(name))
        self.path(name).unlink(missing_ok=True)

    def copy_to(self, folder: Path) -> None:
        for name in self.names():
            self._download(name, folder / name)

    @contextmanager
    def filling(self) -> Iterator[Path]:
        with tempfile.TemporaryDirectory(prefix="visweep-") as scratch:
            made = Path(scratch)
            yield made
            try:
                for path in sorted(made.rglob("*")):
                    if path.is_file():
                        self._upload(path, path.relative_to(made).as_posix())
            except BaseException:
                self.discard()
                raise

    @_enduring
    def discard(self) -> None:
        # fsspec's own recursive deletion takes brackets in a name for a pattern.
        for name in self._found():
            with suppress(FileNotFoundError):
                self._files.rm_file(self._at(name))
        if not self._is_object_store:
            self._delete_folders()
        self._copies.discard()

    def require_usable(self) -> None:
        try:
            self._try_out(f".probe-{secrets.token_hex(4)}")
        except UsageError:
            raise
        except (FileNotFoundError, PermissionError, NotImplementedError, ValueError) as e:
            raise UsageError(f"--artifacts: {self._where} cannot be used ({reason(e)})") from e
        except Exception as e:
            raise StorageError(f"artifacts {self._where}: {reason(e)}") from e
        self._endurance.has_answered()

    def _try_out(self, name: str) -> None:
        moved = f"{name}-moved"
        with tempfile.TemporaryDirectory(prefix="visweep-") as scratch:
            probe = Path(scratch) / "probe"
            probe.write_bytes(b"first")
            self._write(probe, name)
            self._require_content(name, b"first", "does not give back what it was given")
            self._require_replacing(probe, name)
        self._move(self._at(name), self._at(moved))
        self._require_content(moved, b"second", "does not give back what it was given")
        self._files.rm_file(self._at(moved))

    def _require_replacing(self, probe: Path, name: str) -> None:
        """Some servers refuse to rename to a name that is taken, and some do nothing instead."""
        probe.write_bytes(b"second")
        refused: Exception | None = None
        try:
            self._write(probe, name)
        except Exception as e:
            refused = e  # whether the server is there at all, the next call tells
        try:
            self._require_content(name, b"second", "does not replace a file by one of its name")
        except UsageError as e:
            for left in (name, _growing(name)):
                with suppress(FileNotFoundError):
                    self._files.rm_file(self._at(left))
            raise e from refused

    def _require_content(self, name: str, content: bytes, fault: str) -> None:
        if bytes(self._files.cat_file(self._at(name))) != content:
            raise UsageError(f"--artifacts: {self._where} {fault}")

    def _delete_folders(self) -> None:
        """Delete what is left of folders that are empty."""
        self._files.invalidate_cache()
        with suppress(FileNotFoundError):
            for folder in sorted(self._files.find(self._root, withdirs=True), reverse=True):
                self._files.rmdir(folder)
            self._files.rmdir(self._root)

    @_enduring
    def _found(self) -> list[str]:
        # What other machines wrote meanwhile must be seen.
        self._files.invalidate_cache()
        try:
            found = self._files.find(self._root)
        except FileNotFoundError:
            return []
        within = f"{self._root.lstrip('/')}/"
        return sorted(path.lstrip("/").removeprefix(within) for path in found)

    @_enduring
    def _upload(self, path: Path, name: str) -> None:
        self._write(path, name)

    def _write(self, path: Path, name: str) -> None:
        """Upload a file; what had its name is replaced."""
        if self._is_object_store:
            self._put(path, self._at(name))
            return
        self._put(path, self._at(_growing(name)))
        self._files.mv(self._at(_growing(name)), self._at(name))

    @_enduring
    def _download(self, name: str, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._files.get_file(self._at(name), str(target))
        except FileNotFoundError:
            target.unlink(missing_ok=True)

    def _put(self, path: Path, target: str) -> None:
        if not self._is_object_store:
            self._files.makedirs(target.rpartition("/")[0], exist_ok=True)
        self._files.put_file(str(path), target)

    def _move(self, source: str, target: str) -> None:
        if self._is_object_store:
            self._files.cp_file(source, target)
            self._files.rm_file(source)
        else:
            self._files.mv(source, target)

    def _at(self, name: str) -> str:
        return f"{self._root}/{name}"


def _growing(name: str) -> str:
    """What a file is called until it is complete."""
    parent, _, last = name.rpartition("/")
    return f"{parent}/.{last}.growing" if parent else f".{last}.growing"


def _parts(name: str) -> list[str]:
    return name.split("/")
