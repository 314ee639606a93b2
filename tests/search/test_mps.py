"""NVIDIA's MPS, for which an executable stands in; that it serves anyone takes a GPU."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from visweep.errors import VisweepError
from visweep.search import mps
from visweep.search.mps import LOGS, PIPES, Mps, use_from_a_process

STAND_IN = Path(__file__).with_name("mps_stand_in.py")


@dataclass
class StandIn:
    """How the stand-in was called, and what was told and tried meanwhile.

    Attributes:
        log: what it writes.
        told: what Mps told.
        tried: the devices and environments that were tried out.
        problem: what is wrong with each that is tried.
    """

    log: Path
    told: list[str] = field(default_factory=list)
    tried: list[tuple[str, Mapping[str, str]]] = field(default_factory=list)
    problem: str = ""

    def mps(self, device: str = "cuda:0") -> Mps:
        return Mps(device, self.told.append, self.attach)

    def attach(self, device: str, environment: Mapping[str, str]) -> None:
        self.tried.append((device, environment))
        if self.problem:
            raise VisweepError(self.problem)

    def calls(self) -> list[tuple[str, int, dict[str, str]]]:
        if not self.log.exists():
            return []
        return [tuple(json.loads(line)) for line in self.log.read_text().splitlines()]

    def events(self) -> list[str]:
        return [event for event, *_ in self.calls()]


@pytest.fixture(autouse=True)
def _none_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(PIPES, raising=False)
    monkeypatch.setattr(mps, "_DEFAULT_PIPES", tmp_path / "default")


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    """It is what the name of NVIDIA's daemon means, until the test ends."""
    folder = tmp_path / "bin"
    folder.mkdir()
    program = folder / "nvidia-cuda-mps-control"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -S -E {STAND_IN} "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    made = StandIn(tmp_path / "calls")
    monkeypatch.setenv("STAND_IN_LOG", str(made.log))
    yield made
    for event, pid, _ in made.calls():
        if event == "daemon":
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@pytest.fixture
def listen(tmp_path: Path) -> Iterator[Callable[[Path], None]]:
    """Opens the socket of a daemon in a folder."""
    opened: list[socket.socket] = []

    def listening(folder: Path) -> None:
        folder.mkdir()
        opened.append(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
        opened[-1].bind(str(folder / "control"))
        opened[-1].listen()

    yield listening
    for each in opened:
        each.close()


def test_it_is_started_when_it_is_asked_for_and_ended_with_the_command(stand_in: StandIn) -> None:
    before = dict(os.environ)
    with stand_in.mps() as service:
        assert stand_in.calls() == []
        served = service.environment
        assert served is not None
        assert set(served) == {PIPES, LOGS}
        folder = Path(served[PIPES])
        assert folder.stat().st_mode & 0o777 == 0o700
        assert len(str(folder / "control")) < 108
        assert stand_in.events() == ["start", "daemon"]
        assert all(set(environment) == {PIPES, LOGS} for *_, environment in stand_in.calls())
        assert service.environment is served
        assert stand_in.tried == [("cuda:0", served)]
        assert os.environ == before
    assert stand_in.events() == ["start", "daemon", "quit", "end"]
    assert not folder.exists()
    assert len(stand_in.told) == 1
    assert stand_in.told[0].startswith("CUDA MPS was started")
    assert os.environ == before


def test_nothing_is_started_for_workers_that_nobody_asks_for(stand_in: StandIn) -> None:
    with stand_in.mps():
        pass
    assert (stand_in.calls(), stand_in.told) == ([], [])


def test_nothing_is_started_for_the_processor(stand_in: StandIn) -> None:
    with stand_in.mps("cpu") as service:
        assert service.environment is None
    assert (stand_in.calls(), stand_in.told) == ([], [])


def test_where_there_is_no_such_program_nothing_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    told: list[str] = []
    with Mps("cuda", told.append) as service:
        assert service.environment is None
    assert told == []


def test_one_that_runs_serves_everybody_as_they_are(
    stand_in: StandIn, tmp_path: Path, listen: Callable[[Path], None]
) -> None:
    listen(tmp_path / "default")
    with stand_in.mps() as service:
        assert service.environment == {}
    assert (stand_in.calls(), stand_in.told, stand_in.tried) == ([], [], [])


def test_what_one_that_has_ended_left_behind_serves_nobody(
    stand_in: StandIn, tmp_path: Path, listen: Callable[[Path], None]
) -> None:
    (tmp_path / "default").mkdir()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as ended:
        ended.bind(str(tmp_path / "default" / "control"))
    with stand_in.mps() as service:
        assert service.environment


def test_what_the_user_has_set_stays(
    stand_in: StandIn,
    tmp_path: Path,
    listen: Callable[[Path], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(PIPES, str(tmp_path / "own"))
    with stand_in.mps() as service:
        assert service.environment is None
    listen(tmp_path / "own")
    with stand_in.mps() as service:
        assert service.environment == {}
    assert stand_in.calls() == []


@pytest.mark.parametrize(
    ("visible", "of_the_daemon"),
    [("1", None), ("0,2", None), ("", None), ("GPU-8e0,GPU-11", "GPU-8e0,GPU-11")],
)
def test_gpus_are_not_numbered_twice(
    stand_in: StandIn,
    monkeypatch: pytest.MonkeyPatch,
    visible: str,
    of_the_daemon: str | None,
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    with stand_in.mps() as service:
        assert service.environment is not None
        assert "CUDA_VISIBLE_DEVICES" not in service.environment
        *_, environment = stand_in.calls()[-1]
        assert environment.get("CUDA_VISIBLE_DEVICES") == of_the_daemon


def test_temporary_files_may_lie_deep_down(
    stand_in: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = tmp_path / ("d" * 90)
    deep.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(deep))
    with stand_in.mps() as service:
        assert service.environment is not None
        assert service.environment[PIPES].startswith("/tmp/visweep-mps-")


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("fails", "An instance of this daemon is not permitted here"),
        ("hangs", "it did not start within 0.5 s"),
        ("dies", "it has ended as soon as it was started"),
    ],
)
def test_where_it_does_not_start_workers_take_turns(
    stand_in: StandIn, monkeypatch: pytest.MonkeyPatch, wrong: str, said: str
) -> None:
    monkeypatch.setenv("STAND_IN", wrong)
    monkeypatch.setattr(mps, "_START_SECONDS", 0.5)
    monkeypatch.setattr(mps, "_LISTEN_SECONDS", 0.1)
    with stand_in.mps() as service:
        assert service.environment is None
        assert service.environment is None
    reason = "workers take turns on the GPU, since CUDA MPS is of no use here: "
    assert stand_in.told == [reason + said]
    assert stand_in.events().count("start") == 1
    assert stand_in.tried == []


def test_what_cannot_be_run_is_told(stand_in: StandIn, tmp_path: Path) -> None:
    (tmp_path / "bin" / "nvidia-cuda-mps-control").write_bytes(b"\x7fELF of another machine")
    with stand_in.mps() as service:
        assert service.environment is None
    (told,) = stand_in.told
    assert told.endswith("cannot be run (Exec format error)")


def test_one_that_serves_nobody_is_ended_at_once(stand_in: StandIn) -> None:
    stand_in.problem = "CUDA error: MPS client failed to connect"
    with stand_in.mps() as service:
        assert service.environment is None
        assert stand_in.events() == ["start", "daemon", "quit", "end"]
    (told,) = stand_in.told
    assert told.endswith(stand_in.problem)


def test_one_that_does_not_end_is_told(stand_in: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAND_IN", "stays")
    monkeypatch.setattr(mps, "_END_SECONDS", 0.5)
    with stand_in.mps() as service:
        assert service.environment is not None
    assert stand_in.told[-1].startswith("CUDA MPS could not be ended: ")


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_it_ends_with_a_command_that_is_stopped(
    stand_in: StandIn, error: type[BaseException]
) -> None:
    def stopped() -> None:
        with stand_in.mps() as service:
            assert service.environment is not None
            raise error

    with pytest.raises(error):
        stopped()
    assert stand_in.events()[-1] == "end"


def test_it_ends_with_a_command_that_is_killed(stand_in: StandIn, wait_for: Any) -> None:
    command = (
        "import time\n"
        "from visweep.search.mps import Mps\n"
        "service = Mps('cuda', print, lambda *_: None)\n"
        "print(service.environment, flush=True)\n"
        "time.sleep(60)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", command], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert "started" in process.stdout.readline()
        process.kill()
    wait_for(lambda: stand_in.events()[-1] == "end")
    folder = Path(stand_in.calls()[0][2][PIPES])
    wait_for(lambda: not folder.exists())


SERVED_SEARCH = """
from visweep import run
from visweep.cli import search
from visweep.search.mps import Mps

if __name__ == "__main__":
    from tiny_search import SEARCH

    search.Mps = lambda device, tell: Mps("cuda", tell, lambda *_: None)
    run(SEARCH)
"""


@pytest.mark.parametrize(
    "interrupted", [pytest.param(False, marks=pytest.mark.slow), pytest.param(True)]
)
def test_it_ends_with_a_sweep(
    stand_in: StandIn,
    launcher: Any,
    tiny_search: Path,
    tmp_path: Path,
    wait_for: Any,
    interrupted: bool,
) -> None:
    shutil.copy(tiny_search, tmp_path)
    script = tmp_path / "served_search.py"
    script.write_text(SERVED_SEARCH)
    options = ("--workers", 2, "--train-size", 300, "--epochs", 2000 if interrupted else 2)
    process = launcher.start(
        script,
        *("--trials", 3, "--pruner", "none", "--storage", f"sqlite:///{tmp_path}/studies.db"),
        *options,
        PATH=os.environ["PATH"],
        STAND_IN_LOG=str(stand_in.log),
    )
    if interrupted:
        wait_for(lambda: (tmp_path / "artifacts").exists(), about=process)
        assert stand_in.events() == ["start", "daemon"]
        process.signal(signal.SIGINT)
    process.wait()
    assert process.status == (130 if interrupted else 0), process.stderr
    assert stand_in.events() == ["start", "daemon", "quit", "end"]
    assert process.stdout.count("CUDA MPS was started") == 1
    assert not Path(stand_in.calls()[0][2][PIPES]).exists()


def test_ctrl_c_reaches_neither_the_daemon_nor_what_ends_it(stand_in: StandIn) -> None:
    with stand_in.mps() as service:
        assert service.environment is not None
        daemon = next(pid for event, pid, _ in stand_in.calls() if event == "daemon")
        assert os.getpgid(daemon) != os.getpgrp()
        assert service._daemon is not None
        assert os.getpgid(service._daemon._guard.pid) != os.getpgrp()


def test_a_device_is_tried_from_a_process_with_that_environment() -> None:
    use_from_a_process("cpu", {})
    with pytest.raises(VisweepError, match=r"^RuntimeError: ") as caught:
        use_from_a_process("cpu:nonsense", {})
    assert "\n" not in str(caught.value)


def test_what_is_tried_may_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mps, "_TRY_SECONDS", 0.0)
    began = time.monotonic()
    with pytest.raises(VisweepError, match=r"has waited 0 s for it$"):
        use_from_a_process("cpu", {})
    assert time.monotonic() - began < 30
