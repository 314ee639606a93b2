"""Real commands in real processes, started fast: see `launcher.py`."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
import pytest
from hypothesis import settings

pytest_plugins = ["postgres", "s3", "searches"]

# How long an example takes says more of the machine than of the code.
settings.register_profile("visweep", deadline=None)
settings.load_profile("visweep")

ROOT = Path(__file__).resolve().parents[1]
PATIENCE = 90.0
"""Seconds after which a command that should have ended is taken for hung."""

TINY_SEARCH = '''\
"""A search small enough for tests."""

from optuna.distributions import CategoricalDistribution as Choice
from optuna.distributions import FloatDistribution as Float
from optuna.distributions import IntDistribution as Int

from visweep import Recipe, TrainConfig, ViTConfig, patch_sizes, run


def tiny(image_size):
    return {
        "drop": Float(0.0, 0.3),
        "patch_size": patch_sizes(image_size, [8, 16]),
        "depth": Int(1, 2),
        "num_heads": Choice([1, 2]),
    }


SEARCH = Recipe(
    name="tiny",
    baseline=ViTConfig(patch_size=16, embed_dim=16, depth=1, num_heads=2),
    spaces={"tiny": tiny},
    train=TrainConfig(epochs=4, precision="float32"),
)

if __name__ == "__main__":
    run(SEARCH)
'''


_IN_MEMORY = Path("/dev/shm")
_ROOM = 4 * 2**30
"""Bytes that files of tests may take, which they come nowhere near."""


def pytest_configure() -> None:
    """Files lie in memory where there is room: what is stored is synchronised again and again, and
    a disk takes longer for it than most tests for all else."""
    if _IN_MEMORY.is_dir() and os.access(_IN_MEMORY, os.W_OK):
        found = os.statvfs(_IN_MEMORY)
        runs_programs = not found.f_flag & os.ST_NOEXEC
        if runs_programs and found.f_bavail * found.f_frsize >= _ROOM:
            os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(_IN_MEMORY))


@dataclass
class Process:
    """A command that was started.

    Attributes:
        pid: of the process.
        folder: holds its output.
        poll: its exit status, negative for a signal; None while it runs.
    """

    pid: int
    folder: Path
    poll: Callable[[], int | None]
    status: int | None = field(default=None, init=False)

    @property
    def stdout(self) -> str:
        return (self.folder / "stdout").read_text()

    @property
    def stderr(self) -> str:
        return (self.folder / "stderr").read_text()

    def ended(self) -> bool:
        if self.status is None:
            self.status = self.poll()
        return self.status is not None

    def wait(self, timeout: float = PATIENCE) -> Process:
        _wait_for(self.ended, timeout, self)
        return self

    def refusal(self, after: str = "") -> str:
        """The one line with which it refused bad input; there must be nothing else.

        Args:
            after: a line that it may say before.
        """
        assert self.status == 2, (self.status, self.stdout, self.stderr)
        assert self.stdout in ("", after and f"{after}\n")
        assert "Traceback" not in self.stderr
        (line,) = self.stderr.splitlines()
        assert line.startswith("error: ")
        return line.removeprefix("error: ")

    def signal(self, number: int) -> None:
        if not self.ended():
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        self.wait()


def _wait_for(
    condition: Callable[[], object], timeout: float = PATIENCE, about: Process | None = None
) -> None:
    """Wait until the condition holds; fail if it never does."""
    deadline = time.monotonic() + timeout
    while not condition():
        gone = about is not None and about.ended() and not condition()
        if gone or time.monotonic() > deadline:
            said = f"\n{about.stdout}\n{about.stderr}" if about else ""
            pytest.fail(f"waited in vain{said}")
        time.sleep(0.01)


class Launcher:
    """Starts commands by forking a process that has imported everything."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self._folder = folder
        self._environment = dict(environment)
        self._started: list[Process] = []
        self._server = subprocess.Popen(
            [sys.executable, str(ROOT / "tests" / "launcher.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=self._environment,
        )

    def start(
        self,
        *argv: object,
        cwd: Path | None = None,
        stdin: str = "",
        terminal: str | None = None,
        **environment: str,
    ) -> Process:
        folder = self._folder / str(len(self._started))
        folder.mkdir()
        (folder / "stdin").write_text(stdin)
        files = [str(folder / name) for name in ("stdin", "stdout", "stderr")]
        pid = self._ask(
            argv=[str(argument) for argument in argv],
            cwd=str(cwd or folder),
            env={**self._environment, **environment},
            files=[terminal] * 3 if terminal else files,
        )
        for name in ("stdout", "stderr"):
            (folder / name).touch()
        process = Process(pid, folder, lambda: self._ask(poll=pid))
        self._started.append(process)
        return process

    def start_apart(self, *argv: object, cwd: Path | None = None, **environment: str) -> Process:
        """Start what cannot be forked: a program, or a command in another environment."""
        folder = self._folder / str(len(self._started))
        folder.mkdir()
        with (folder / "stdout").open("wb") as out, (folder / "stderr").open("wb") as errors:
            started = subprocess.Popen(
                [str(argument) for argument in argv],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=errors,
                cwd=cwd or folder,
                env={**self._environment, **environment},
                start_new_session=True,
            )
        process = Process(started.pid, folder, started.poll)
        self._started.append(process)
        return process

    def run(self, *argv: object, **arguments: Any) -> Process:
        return self.start(*argv, **arguments).wait()

    def end_all(self) -> None:
        for process in self._started:
            process.kill()

    def close(self) -> None:
        self.end_all()
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.kill()
        self._server.wait()
        self._server.stdin.close()
        self._server.stdout.close()

    def _ask(self, **request: Any) -> Any:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        print(json.dumps(request), file=self._server.stdin, flush=True)
        return json.loads(self._server.stdout.readline())


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """Optuna says only what matters."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    yield
    optuna.logging.set_verbosity(before)


@pytest.fixture(scope="session", autouse=True)
def _migrations_are_loaded_once() -> Iterator[None]:
    """Optuna loads the scripts of all its migrations anew for each storage that is opened, which
    takes longer than what most tests do with it."""
    manager = optuna.storages._rdb.storage._VersionManager
    load = manager._create_alembic_script
    loaded: list[Any] = []

    def once(self: Any) -> Any:
        if not loaded:
            loaded.append(load(self))
        return loaded[0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(manager, "_create_alembic_script", once)
        yield


@pytest.fixture
def wait_for() -> Callable[..., None]:
    return _wait_for


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What commands find: one thread, folders of this test run, no storage of the user's."""
    base = tmp_path_factory.getbasetemp()
    run = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    kept = {k: v for k, v in os.environ.items() if not k.startswith("VISWEEP_")}
    return {
        **kept,
        "OMP_NUM_THREADS": "1",
        "VISWEEP_CACHE": str(run / "cache"),
        "XDG_DATA_HOME": str(run / "data"),
        "COLUMNS": "100",
    }


@pytest.fixture(scope="session", autouse=True)
def _folders_of_this_run(environment: dict[str, str]) -> Iterator[None]:
    """What a study on a server keeps on this machine does not go to the user's own folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_DATA_HOME", environment["XDG_DATA_HOME"])
        yield


@pytest.fixture(scope="session")
def _launcher(
    tmp_path_factory: pytest.TempPathFactory, environment: dict[str, str]
) -> Iterator[Launcher]:
    launcher = Launcher(tmp_path_factory.mktemp("commands"), environment)
    yield launcher
    launcher.close()


@pytest.fixture
def launcher(_launcher: Launcher) -> Iterator[Launcher]:
    """Starts commands; those still running at the end of the test are killed."""
    yield _launcher
    _launcher.end_all()


@pytest.fixture(scope="session")
def bound_by_permissions() -> list[str]:
    """What to put before a command so that file permissions bind it, even if we are root."""
    if os.geteuid() != 0:
        return []
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        pytest.skip("root may write anywhere, and there is no setpriv to change that")
    return [setpriv, "--bounding-set=-dac_override,-dac_read_search"]


@pytest.fixture(scope="session")
def tiny_search(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep script of a user's own, whose trials take a fraction of a second."""
    script = tmp_path_factory.mktemp("sweeps") / "tiny_search.py"
    script.write_text(TINY_SEARCH)
    return script
