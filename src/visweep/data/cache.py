"""Arrays that take a while to make, kept in a file in the user's cache folder."""

from __future__ import annotations

import hashlib
import io
import logging
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from visweep.folders import cache_dir

Arrays = Mapping[str, npt.NDArray[Any]]

_log = logging.getLogger(__name__)
_CHECKSUM = 32  # bytes of a SHA-256


def cached(name: str, make: Callable[[], Arrays]) -> Arrays:
    """What `make` returns, read from the file `name`.npz in the cache folder if it is there.

    A damaged file is made anew. Where nothing can be read or written, nothing is cached, and
    one line in the log says so.
    """
    path = cache_dir() / f"{name}.npz"
    try:
        return _read(path)
    except FileNotFoundError:
        pass
    except (OSError, _DamagedError) as e:
        _log.warning("%s is made anew: %s", path, e)
    arrays = make()
    try:
        _write(path, arrays)
    except OSError as e:
        _log.warning("%s is not cached: %s", path, e)
    return arrays


class _DamagedError(Exception):
    pass


def _read(path: Path) -> Arrays:
    content = path.read_bytes()
    body, checksum = content[:-_CHECKSUM], content[-_CHECKSUM:]
    if hashlib.sha256(body).digest() != checksum:
        raise _DamagedError("its checksum is wrong")
    with np.load(io.BytesIO(body)) as arrays:
        return dict(arrays)


def _write(path: Path, arrays: Arrays) -> None:
    buffer = io.BytesIO()
    members: dict[str, Any] = dict(arrays)
    np.savez(buffer, **members)
    body = buffer.getvalue()
    path.parent.mkdir(parents=True, exist_ok=True)
    # Renamed when complete: another process never sees half a file.
    handle, unfinished = tempfile.mkstemp(prefix=f".{path.stem}-", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            # Readers of .npz look for the end of the archive and skip what follows it.
            file.write(body + hashlib.sha256(body).digest())
        Path(unfinished).replace(path)
    except BaseException:
        Path(unfinished).unlink()
        raise
