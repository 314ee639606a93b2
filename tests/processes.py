"""What the system tells of processes, also of those that are no children of ours."""

from __future__ import annotations

from pathlib import Path


def is_alive(pid: int) -> bool:
    """Whether it is there; one that has ended and was not waited for is not."""
    try:
        state = _stat(pid)[0]
    except OSError:
        return False
    return state != "Z"


def parent(pid: int) -> int:
    """The process that started it.

    Raises:
        OSError: it is gone.
    """
    return int(_stat(pid)[1])


def _stat(pid: int) -> list[str]:
    """Its state, its parent and more; see proc(5)."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
