"""Whether a process is there, as the system tells."""

from __future__ import annotations

from pathlib import Path


def is_alive(pid: int) -> bool:
    """Also one that is no child of ours; not one that has ended and was not waited for."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"
