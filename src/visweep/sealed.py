"""Files that are written whole or not at all, and sealed: a checksum tells whether they are whole.

A sealed file is a line that names the format, a line with the SHA-256 of the rest, and the rest.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path

from visweep.errors import CheckpointError

CHECKPOINT = b"visweep checkpoint 1\n"


def write_sealed(path: Path, content: bytes | memoryview) -> None:
    """Write a checkpoint's content: after this returns, it is on the disk, complete."""
    seal = hashlib.sha256(content).hexdigest().encode() + b"\n"
    write_atomically(path, CHECKPOINT, seal, content)


def read_sealed(path: Path) -> bytes:
    """A checkpoint's content.

    Raises:
        CheckpointError: it is no checkpoint, damaged or half-written.
    """
    return unseal(path.read_bytes(), str(path))


def unseal(sealed: bytes, where: str) -> bytes:
    """The content of a checkpoint that was read already.

    Raises:
        CheckpointError: it is no checkpoint, damaged or half-written; the message says where.
    """
    checksum, _, payload = sealed[len(CHECKPOINT) :].partition(b"\n")
    if not sealed.startswith(CHECKPOINT):
        raise CheckpointError(f"{where}: not a visweep checkpoint")
    if hashlib.sha256(payload).hexdigest().encode() != checksum:
        raise CheckpointError(f"{where}: damaged or half-written (its checksum does not match)")
    return payload


def write_atomically(path: Path, *parts: bytes | memoryview) -> None:
    """Write a file that is either the old one or the complete new one, even after a power cut."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            for part in parts:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """See that the names in a folder are on the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
