"""Downloads that either succeed or leave nothing behind."""

from __future__ import annotations

import http.client
import logging
import os
import shutil
import socket
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from visweep.errors import DataError

TIMEOUT = 30.0
"""Seconds without an answer after which a server counts as unreachable."""

_FAILURES = (
    OSError,
    RuntimeError,
    EOFError,
    http.client.HTTPException,
    tarfile.TarError,
    zlib.error,
)
_log = logging.getLogger(__name__)


def obtain(
    name: str, root: Path, files: Sequence[str], download: Callable[[Path], object]
) -> None:
    """Download a published data set into `root`.

    Args:
        name: the data set's.
        root: made if it is missing.
        files: what to put into `root` by hand where nothing can be downloaded.
        download: downloads and unpacks into the folder that it is given.

    Raises:
        DataError: that failed; `root` is as it was.
    """
    _log.info("downloading %s into %s", name, root)
    try:
        with _timeout(TIMEOUT), _staging(root) as staging:
            download(staging)
            _publish(staging, root)
    except _FAILURES as e:
        raise DataError(
            f"--dataset {name}: no intact copy in {root}, and the download failed "
            f"({_line(e)}); put {', '.join(files)} there, or take "
            "--dataset cluttered-digits, which needs no download"
        ) from e


def unpack(archive: Path, root: Path) -> None:
    """Unpack an archive into `root`.

    Raises:
        DataError: the archive is damaged; `root` is as it was.
    """
    from torchvision.datasets.utils import extract_archive

    try:
        with _staging(root) as staging:
            extract_archive(archive, staging)
            _publish(staging, root)
    except _FAILURES as e:
        raise DataError(
            f"--data-dir: the archive {archive} cannot be unpacked ({_line(e)}); "
            "expected the file as it was published"
        ) from e


@contextmanager
def _staging(root: Path) -> Iterator[Path]:
    """A folder for what is unfinished, on the same disk as `root` will be; then removed."""
    parent = root.absolute()
    while not parent.is_dir():
        parent = parent.parent
    with tempfile.TemporaryDirectory(prefix=".visweep-", dir=parent) as folder:
        yield Path(folder)


def _publish(staging: Path, root: Path) -> None:
    """Move what was downloaded to its place; what is there already gives way, file by file."""
    root.mkdir(parents=True, exist_ok=True)
    for entry in staging.iterdir():
        target = root / entry.name
        if target.is_dir():
            shutil.copytree(entry, target, copy_function=os.replace, dirs_exist_ok=True)
        else:
            entry.replace(target)


@contextmanager
def _timeout(seconds: float) -> Iterator[None]:
    # torchvision passes no timeout on, so the default of new connections has to change.
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
