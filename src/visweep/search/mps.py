"""CUDA MPS, NVIDIA's multi-process service, for the workers of one command that share a GPU.

Without it the driver switches between their kernels; with it these run at the same time. What it
demands (https://docs.nvidia.com/deploy/mps/):

- Daemon and clients meet at sockets in the folder that CUDA_MPS_PIPE_DIRECTORY names. A daemon
  with a folder of its own disturbs no other one, of this user or another's.
- Where CUDA_VISIBLE_DEVICES numbers the daemon's GPUs anew, a client that sets it, too, would
  number them twice. The daemon is not given numbers, then; identifiers of GPUs stay what they are.
- A client that ends while the GPU computes for it may take the others with it; so whoever is
  served waits for the GPU before it ends.
- It may start and yet serve nobody: in a container that hides what it needs, or where another
  user's has the GPU for itself. So a process tries it out before workers are sent there.
"""

from __future__ import annotations

import errno
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cached_property
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType

from visweep.errors import VisweepError
from visweep.search.processes import context_with_torch

PIPES, LOGS = "CUDA_MPS_PIPE_DIRECTORY", "CUDA_MPS_LOG_DIRECTORY"
_CONTROL = "nvidia-cuda-mps-control"
_DEFAULT_PIPES = Path("/tmp/nvidia-mps")
_VISIBLE = "CUDA_VISIBLE_DEVICES"
_LONGEST_FOLDER = 60
"""Bytes of the folder for temporary files: what is added to it must fit, too, into the 108 of a
socket's address."""
_START_SECONDS = 15.0
_LISTEN_SECONDS = 3.0
_END_SECONDS = 20.0
_TRY_SECONDS = 60.0
# It reads until this process closes its end of the pipe, or is killed: no daemon stays behind.
_QUIT_AT_THE_END = f'read _; echo quit | {_CONTROL} >/dev/null 2>&1 && rm -r "${PIPES}"'

Attach = Callable[[str, Mapping[str, str]], None]
"""Tries a device from a process with this environment; raises VisweepError if that fails."""


class Mps:
    """The service of one command, started when it is first asked for and ended with the command.

    Args:
        device: that the workers share.
        tell: is told that it was started, or why it could not be.
        attach: how it is tried out.
    """

    def __init__(
        self, device: str, tell: Callable[[str], object], attach: Attach | None = None
    ) -> None:
        self._device = device
        self._tell = tell
        self._attach = attach or use_from_a_process
        self._daemon: _Daemon | None = None

    def __enter__(self) -> Mps:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end()

    @cached_property
    def environment(self) -> Mapping[str, str] | None:
        """What a process must find in its environment to be served; None where none is.

        A service that runs already serves everybody as they are. One that was given in the
        environment and does not run is not replaced.
        """
        if not self._device.startswith("cuda"):
            return None
        given = os.environ.get(PIPES)
        if _is_listening(Path(given) if given else _DEFAULT_PIPES):
            return {}
        if given is not None or shutil.which(_CONTROL) is None:
            return None
        try:
            self._daemon = _Daemon()
            self._daemon.start()
            self._attach(self._device, self._daemon.environment)
        except (VisweepError, OSError) as e:
            self._end()
            self._tell(f"workers take turns on the GPU, since CUDA MPS is of no use here: {e}")
            return None
        self._tell("CUDA MPS was started: workers that share the GPU use it at the same time")
        return self._daemon.environment

    def _end(self) -> None:
        if self._daemon is not None and not self._daemon.end():
            self._tell(f"CUDA MPS could not be ended: {self._daemon.pipes} may still be in use")
        self._daemon = None


class _Daemon:
    """A daemon in a folder of its own, that ends at the latest with this process."""

    def __init__(self) -> None:
        fits = len(os.fsencode(tempfile.gettempdir())) <= _LONGEST_FOLDER
        self._folder = tempfile.TemporaryDirectory(
            prefix="visweep-mps-", dir=None if fits else "/tmp", ignore_cleanup_errors=True
        )
        self.pipes = Path(self._folder.name)
        self.environment = {PIPES: self._folder.name, LOGS: self._folder.name}
        self._guard = subprocess.Popen(
            ["/bin/sh", "-c", _QUIT_AT_THE_END],
            stdin=subprocess.PIPE,
            env=self._own_environment(),
            start_new_session=True,
        )

    def _own_environment(self) -> dict[str, str]:
        kept = dict(os.environ)
        visible = kept.get(_VISIBLE, "").split(",")
        if not all(name.startswith(("GPU-", "MIG-")) for name in visible):
            kept.pop(_VISIBLE, None)
        return {**kept, **self.environment}

    def start(self) -> None:
        """Raises:
        VisweepError: it does not start.
        """
        said = self.pipes / "start.txt"
        try:
            # Into a file: the daemon would keep a pipe open for as long as it runs.
            with said.open("wb") as output:
                status = subprocess.run(
                    [_CONTROL, "-d"],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    env=self._own_environment(),
                    start_new_session=True,
                    timeout=_START_SECONDS,
                ).returncode
        except subprocess.TimeoutExpired as e:
            raise VisweepError(f"it did not start within {_START_SECONDS:g} s") from e
        except OSError as e:
            raise VisweepError(f"{_CONTROL} cannot be run ({e.strerror})") from e
        if status:
            words = said.read_text(errors="replace").split()
            raise VisweepError(" ".join(words) or f"{_CONTROL} ended with status {status}")
        deadline = time.monotonic() + _LISTEN_SECONDS
        while not _is_listening(self.pipes):
            if time.monotonic() > deadline:
                raise VisweepError("it has ended as soon as it was started")
            time.sleep(0.02)

    def end(self) -> bool:
        """Returns whether it has ended."""
        assert self._guard.stdin is not None
        self._guard.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            self._guard.wait(_END_SECONDS)
        if self._guard.poll() is None:
            self._guard.kill()
            self._guard.wait()
        has_ended = not _is_listening(self.pipes)
        self._folder.cleanup()
        return has_ended


def _is_listening(pipes: Path) -> bool:
    """Whether a daemon takes clients in this folder; one that has ended may leave it behind."""
    if not hasattr(socket, "AF_UNIX"):
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
        client.settimeout(1.0)
        try:
            client.connect(str(pipes / "control"))
        except TimeoutError:
            return True
        except OSError as e:
            # Of another type than ours is only a socket that someone has opened.
            return e.errno in (errno.EPROTOTYPE, errno.EAGAIN)
    return True


def use_from_a_process(device: str, environment: Mapping[str, str]) -> None:
    """Compute something on a device in a process with this environment.

    Raises:
        VisweepError: that fails, or takes too long.
    """
    context = context_with_torch()
    ours, theirs = context.Pipe()
    process = context.Process(
        target=_compute, args=(device, dict(environment), theirs), daemon=True
    )
    process.start()
    theirs.close()
    try:
        if not ours.poll(_TRY_SECONDS):
            raise VisweepError(f"a process that tried it out has waited {_TRY_SECONDS:g} s for it")
        problem = ours.recv()
    except (EOFError, OSError) as e:
        raise VisweepError("a process that tried it out has ended") from e
    finally:
        ours.close()
        process.join(1.0)
        process.kill()
        process.join()
    if problem:
        raise VisweepError(problem)


def _compute(device: str, environment: dict[str, str], pipe: Connection) -> None:
    """In a process of its own: says what is wrong, or nothing."""
    os.environ.update(environment)
    import torch

    try:
        found = int(torch.ones(2, device=device).sum())
    except (RuntimeError, AssertionError) as e:
        pipe.send(f"{type(e).__name__}: {e}".splitlines()[0])
        return
    pipe.send("" if found == 2 else f"1 + 1 was found to be {found}")
