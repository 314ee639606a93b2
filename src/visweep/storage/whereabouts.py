"""Where the artifacts of a storage's studies lie: where `--artifacts` says, or by default."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from visweep.errors import UsageError
from visweep.folders import cache_dir, data_dir
from visweep.storage.artifacts import folder_name
from visweep.storage.folder import Folder
from visweep.storage.place import Place
from visweep.storage.remote import Remote
from visweep.storage.specification import ARTIFACTS
from visweep.storage.url import parse, sqlite_path
from visweep.storage.waiting import Endurance, reason

_ACCEPTED = "accepted: a folder, or a URL of fsspec's such as s3://BUCKET/FOLDER"
_OF_ONE_PROCESS = ("memory", "data", "zip", "tar", "reference", "generic")
"""Protocols of fsspec's under which another machine would find nothing."""


@dataclass(frozen=True)
class Artifacts:
    """The artifacts of one storage's studies.

    Attributes:
        storage: URL of the storage.
        given: where they lie on this machine, as `accepted_place` returns it; None for where each
            study says.
        answered: whether they have answered this machine before, so that they are waited for.
    """

    storage: str
    given: str | None = None
    answered: bool = False

    def of(self, study: str, attributes: Mapping[str, Any]) -> Place:
        """The place of a study's artifacts.

        Args:
            study: the study's name.
            attributes: the study's user attributes.

        Raises:
            UsageError: this machine cannot look there.
            StorageError: the place cannot be reached.
        """
        return self._within(study, attributes, folder_name(study, attributes))

    def above(self, study: str, attributes: Mapping[str, Any]) -> Place:
        """The place that the folders of studies lie in, with what is attached to them beside.

        Other studies keep theirs here: it is not to be listed or discarded.

        Args:
            study, attributes: as for `of`.

        Raises:
            UsageError, StorageError: as `of`.
        """
        return self._within(study, attributes, "")

    def _within(self, study: str, attributes: Mapping[str, Any], name: str) -> Place:
        place = self.given or attributes.get(ARTIFACTS)
        if place is None:
            return Folder(artifact_folder(self.storage) / name)
        if _is_remote(place):
            return _open(place, name, self.answered)
        if not Path(place).is_dir():
            if self.given is not None:
                raise UsageError(f"--artifacts: there is no folder {place}")
            raise UsageError(
                f"--artifacts: study {study!r} keeps its artifacts in {place}, which is no folder "
                "here; give --artifacts PLACE, as this machine sees it"
            )
        return Folder(Path(place) / name)

    def are_of_this_machine(self, attributes: Mapping[str, Any]) -> bool:
        """Whether other machines work on a study and cannot see its artifacts."""
        named = self.given or attributes.get(ARTIFACTS)
        return named is None and sqlite_path(parse(self.storage)) is None


def accepted_place(given: str | None) -> str | None:
    """What `--artifacts` names, as a study may hold it: an absolute folder, or a URL.

    Raises:
        UsageError: it is none, holds a secret, or what it needs is not installed.
        StorageError: it is a server that cannot be reached.
    """
    if given is None:
        return None
    if given.startswith("file://"):
        given = given.removeprefix("file://")
    if not given.strip():
        raise UsageError(f"--artifacts: the place is empty; {_ACCEPTED}")
    if _is_remote(given):
        _refuse_secrets(given)
        scheme, _, rest = given.partition("://")
        rest = rest.rstrip("/")
        if not scheme or not rest:
            raise UsageError(f"--artifacts: {given!r} names no place; {_ACCEPTED}")
        url = f"{scheme}://{rest}"
        Endurance(url).call(lambda: _filesystem(url))
        return url
    folder = Path(given).expanduser().absolute()
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"--artifacts: {folder} is not a folder; {_ACCEPTED}")
    if not folder.parent.is_dir():
        raise UsageError(f"--artifacts: there is no folder {folder.parent}; create it first")
    return str(folder)


def make_ready(place: str) -> None:
    """Make the folder of an accepted place, and see that it can be used.

    Raises:
        UsageError: it cannot.
        StorageError: it cannot be reached.
    """
    if _is_remote(place):
        _open(place, "").require_usable()
        return
    Folder(Path(place)).require_usable()
    Path(place).mkdir(exist_ok=True)


def _is_remote(place: str) -> bool:
    return "://" in place


def _refuse_secrets(url: str) -> None:
    """A study shows its place to everyone who reads it, and so would this error."""
    scheme, _, rest = url.partition("://")
    if "::" in scheme:
        raise UsageError(f"--artifacts: {scheme}:// chains file systems; {_ACCEPTED}")
    if ":" in rest.rpartition("@")[0] or "?" in rest:
        raise UsageError(
            f"--artifacts: this {scheme}:// URL has a secret or a query in it, which a study must "
            "not hold; accepted: the URL without it, and credentials in the environment (fsspec "
            f"reads FSSPEC_{scheme.upper()}_KEY and the like) or in the driver's own configuration"
        )


def _open(url: str, name: str, answered: bool = False) -> Place:
    where = f"{url}/{name}" if name else url
    # A driver may connect as soon as it is made, and the server be away just then.
    files = Endurance(where, answered).call(lambda: _filesystem(url))
    root = files._strip_protocol(url).rstrip("/")
    place = hashlib.sha256(url.encode()).hexdigest()[:8]
    return Remote(
        files,
        f"{root}/{name}" if name else root,
        where,
        cache_dir() / "artifacts" / f"{name or 'root'}-{place}",
        answered,
    )


def _filesystem(url: str) -> Any:
    """What fsspec reads and writes a URL with.

    Raises:
        UsageError: no such URL can be used.
        Exception: whatever its driver raises if it connects at once and cannot.
    """
    from fsspec.core import url_to_fs
    from fsspec.registry import known_implementations, registry

    scheme = url.partition("://")[0]
    if scheme in _OF_ONE_PROCESS:
        raise UsageError(f"--artifacts: no other process would see {scheme}://; {_ACCEPTED}")
    if scheme not in known_implementations and scheme not in registry:
        raise UsageError(f"--artifacts: unknown scheme {scheme!r}; {_ACCEPTED}")
    try:
        return url_to_fs(url)[0]
    except ImportError as e:
        package = known_implementations.get(scheme, {}).get("class", "").partition(".")[0]
        install = f"; run: pip install {package}" if package not in ("", "fsspec") else ""
        raise UsageError(f"--artifacts: {scheme}:// is not supported yet ({e}){install}") from e
    except (FileNotFoundError, TypeError, ValueError) as e:
        raise UsageError(
            f"--artifacts: {scheme}:// cannot be used ({reason(e)}); {_ACCEPTED}"
        ) from e


def artifact_folder(url: str) -> Path:
    """Where artifacts of this storage's studies lie unless they say otherwise.

    Beside an SQLite file; for a server, in a folder of the user's on this machine.
    """
    path = sqlite_path(parse(url))
    return (data_dir() if path is None else path.parent) / "artifacts"
