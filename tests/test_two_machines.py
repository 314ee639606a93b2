"""One study on two machines, between which the cable is pulled.

The other machine is a network namespace: a name, an address and a disk of its own, and one cable
to this one, where the PostgreSQL server is.
"""

from __future__ import annotations

import os
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest

from postgres import PASSWORD, Server
from stub_study import StubStudy

LEASE = 3.0


@dataclass(frozen=True)
class OtherMachine:
    """Attributes:
    name: of it.
    cable: this machine's end of the cable.
    address: of this machine, as it is known there.
    """

    name: str
    cable: str
    address: str

    def make(self) -> None:
        """Set it up.

        Raises:
            OSError, subprocess.CalledProcessError: the system does not let us.
        """
        theirs, there = f"{self.cable}t", IPv4Address(self.address) + 1
        self._ip("netns", "add", self.name)
        self._ip(
            "link", "add", self.cable, "type", "veth", "peer", "name", theirs, "netns", self.name
        )
        self._ip("address", "add", f"{self.address}/30", "dev", self.cable)
        self._ip("link", "set", self.cable, "up")
        self._ip("-n", self.name, "address", "add", f"{there}/30", "dev", theirs)
        self._ip("-n", self.name, "link", "set", theirs, "up")

    def remove(self) -> None:
        for arguments in (("link", "delete", self.cable), ("netns", "delete", self.name)):
            subprocess.run(["ip", *arguments], capture_output=True, check=False)

    @property
    def command(self) -> tuple[str, ...]:
        """What runs the command after it there."""
        rename = 'echo "$0" > /proc/sys/kernel/hostname && exec "$@"'
        into = ("ip", "netns", "exec", self.name)
        return (*into, "unshare", "--uts", "sh", "-c", rename, self.name)

    def pull_cable(self) -> None:
        self._ip("link", "set", self.cable, "down")

    def plug_in(self) -> None:
        self._ip("link", "set", self.cable, "up")

    @staticmethod
    def _ip(*arguments: str) -> None:
        subprocess.run(["ip", *arguments], capture_output=True, text=True, check=True)


@pytest.fixture
def other() -> Iterator[OtherMachine]:
    tag = os.getpid() % 2**14
    # A net that is set aside for tests of machines.
    address = f"198.18.{tag // 64}.{tag % 64 * 4 + 1}"
    machine = OtherMachine(f"visweep-{tag}", f"vs{tag}", address)
    try:
        machine.make()
    except (OSError, subprocess.CalledProcessError) as e:
        machine.remove()
        pytest.skip(f"no network of our own here: {getattr(e, 'stderr', e)}")
    try:
        yield machine
    finally:
        machine.remove()


@pytest.fixture
def server(other: OtherMachine) -> Iterator[Server]:
    made = Server(also_at=other.address)
    try:
        made.start()
        yield made
    finally:
        made.close()


@pytest.mark.slow
def test_a_cable_that_is_pulled_for_longer_than_the_lease(
    other: OtherMachine,
    server: Server,
    launcher: Any,
    tmp_path: Path,
    wait_for: Callable[..., None],
) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    database = server.make_database()
    theirs = server.url(database, host=other.address)
    mine = StubStudy(launcher, server.url(database), here, 50, 4, 0.25, LEASE)
    disk = {"XDG_DATA_HOME": str(there), "VISWEEP_CACHE": str(there)}
    away = [
        mine.start_apart(*other.command, folder=there, VISWEEP_STORAGE=theirs, **disk)
        for _ in range(2)
    ]
    for process in away:
        wait_for(lambda p=process: p.pid in mine.workers(), about=process)
    stay = [mine.start() for _ in range(2)]
    for process in stay:
        wait_for(lambda p=process: p.pid in mine.workers(), about=process)
    other.pull_cable()
    held = server.execute(
        "SELECT t.number, s.owner FROM visweep_slots s JOIN trials t USING (trial_id) "
        "WHERE t.state IN ('WAITING', 'RUNNING')",
        database,
    )
    lost = {number for number, owner in held if owner and f'"{other.name}/' in owner}
    assert lost
    wait_for(lambda: lost <= {n for n, g, _ in mine.trained() if g > 1}, about=stay[0])
    other.plug_in()
    for process in mine.processes:
        process.wait()
        assert process.status == 0, process.stderr
        assert process.stdout.endswith("done\n")
        assert PASSWORD not in process.stdout + process.stderr
        assert "Traceback" not in process.stderr
    notes = {line for process in stay for line in process.stdout.splitlines()} - {"done"}
    # They have no disk in common. What was not reported is begun, not begun anew.
    assert notes <= {f"trial {n} begins anew: its checkpoint is missing" for n in lost}
    assert [process.stderr for process in stay] == ["", ""]
    given_up = "".join(process.stdout for process in away)
    assert all(f"trial {number} was adopted by another worker" in given_up for number in lost)
    mine.require_finished()
    # No lease trains an epoch twice, and only what was lost was leased again.
    assert set(Counter(mine.trained()).values()) == {1}
    assert {n for n, g, _ in mine.trained() if g > 1} == lost
