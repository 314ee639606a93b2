"""Which file system a path is on: SQLite's locks do not hold on one that machines share."""

from __future__ import annotations

import os
import re
from pathlib import Path

from visweep.errors import UsageError

_MOUNTS = Path("/proc/self/mountinfo")
_SHARED = re.compile(
    r"nfs\d?|cifs|smb\d?|smbfs|9p|afs|ceph|lustre|gpfs|beegfs|glusterfs|ncpfs|davfs|"
    r"fuse\.(sshfs|s3fs|rclone|glusterfs|ceph(-fuse)?|gcsfuse|juicefs|smbnetfs|davfs2?)"
)


def shared_file_system(mountinfo: str, path: str) -> str | None:
    """The type of the file system that a path is on, if machines share it over a network.

    Args:
        mountinfo: the text of Linux's /proc/self/mountinfo.
        path: absolute, without symbolic links.
    """
    found, longest = None, -1
    for line in mountinfo.splitlines():
        before, separator, after = line.partition(" - ")
        fields = before.split(" ")
        if not separator or len(fields) < 5:
            continue
        # The kernel writes a space in a name as \040, and so on.
        place = re.sub(r"\\(\d{3})", lambda m: chr(int(m[1], 8)), fields[4])
        within = path == place or path.startswith(place.rstrip("/") + "/")
        # Of two mounts on one place, the later hides the earlier.
        if within and len(place) >= longest:
            found, longest = after.split(" ")[0], len(place)
    return found if found is not None and _SHARED.fullmatch(found) else None


def refuse_network(path: Path) -> None:
    """See that an SQLite file is not on a network file system.

    Raises:
        UsageError: it is, with the ways out.
    """
    try:
        mountinfo = _MOUNTS.read_text(errors="replace")
    except OSError:  # another system than Linux
        return
    kind = shared_file_system(mountinfo, os.path.realpath(path))
    if kind is not None:
        raise UsageError(
            f"--storage: {path} is on a network file system ({kind}), where SQLite breaks; "
            "accepted: a local file, moved by visweep pack, or "
            "postgresql+psycopg://USER@HOST/DATABASE"
        )
