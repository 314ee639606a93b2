"""Who holds a lease, and whether that process is still there."""

from __future__ import annotations

import json
import os
import platform
import sys
import uuid
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

_MACHINE_ID = Path("/etc/machine-id")


@dataclass(frozen=True)
class Owner:
    """A process, told apart from a later one with the same number.

    Attributes:
        host: the machine's name and identity, and that of its space of process numbers (a
            container has one of its own).
        boot: changes with every start of the machine; empty where the system does not tell.
        pid: the process's number.
        start: when it started, in the system's own ticks; empty where the system does not tell.
        place: which of several workers in this process it is.
    """

    host: str
    boot: str
    pid: int
    start: str
    place: int = 0

    def to_text(self) -> str:
        fields = asdict(self)
        if not self.place:
            del fields["place"]
        return json.dumps(fields)

    @classmethod
    def from_text(cls, text: str) -> Owner:
        """What `to_text` wrote.

        Raises:
            ValueError, TypeError: it is something else.
        """
        return cls(**json.loads(text))

    @property
    def machine(self) -> str:
        """The machine's name."""
        return self.host.partition("/")[0]

    def is_here(self) -> bool:
        """Whether it is a process of this machine (and of this container)."""
        return self.host == _host()

    def is_gone(self) -> bool:
        """True if this process ran on this machine and surely no longer does."""
        if not self.is_here():
            return False
        if self.boot != _boot():
            return True
        return not _is_alive(self.pid) or _start(self.pid) != self.start


def this_process(place: int = 0) -> Owner:
    """The calling process, or one of its workers, as an owner of leases."""
    return Owner(_host(), _boot(), os.getpid(), _start(os.getpid()), place)


@cache
def _host() -> str:
    space = Path("/proc/self/ns/pid")
    if _MACHINE_ID.exists():
        identity = _MACHINE_ID.read_text().strip()[:12]
    else:
        card = uuid.getnode()
        # Without a network card it is a random number, another one in each process.
        identity = _boot()[:12] if card >> 40 & 1 else f"{card:012x}"
    return "/".join((platform.node(), identity, str(space.readlink()) if space.exists() else ""))


@cache
def _boot() -> str:
    path = Path("/proc/sys/kernel/random/boot_id")
    return path.read_text().strip() if path.exists() else ""


def _start(pid: int) -> str:
    """Field 22 of /proc/PID/stat; the second field may itself hold spaces and brackets."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    return stat.rpartition(")")[2].split()[19]


def _is_alive(pid: int) -> bool:
    if sys.platform == "win32":
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return not _is_zombie(pid)


def _is_zombie(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] == "Z"
