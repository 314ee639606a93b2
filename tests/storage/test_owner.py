from __future__ import annotations

import dataclasses
import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from visweep.storage import owner as owner_module
from visweep.storage.owner import Owner, this_process

OF_A_CHILD = """
import sys
from visweep.storage.owner import this_process
print(this_process().to_text(), flush=True)
sys.stdin.read()
"""


def test_this_process_is_there() -> None:
    owner = this_process()
    assert owner.pid == os.getpid()
    assert not owner.is_gone()
    assert Owner.from_text(owner.to_text()) == owner


def test_a_killed_child_is_gone_even_before_it_is_reaped() -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", OF_A_CHILD],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdin is not None
    assert child.stdout is not None
    owner = Owner.from_text(child.stdout.readline())
    assert not owner.is_gone()
    child.kill()
    deadline = time.monotonic() + 10
    while not owner.is_gone() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert child.returncode is None, "reaped already: this proves nothing about zombies"
    assert owner.is_gone()
    child.communicate()
    assert owner.is_gone()


def test_a_later_process_with_the_same_number_is_another() -> None:
    assert dataclasses.replace(this_process(), start="1").is_gone()


def test_a_machine_that_started_anew_has_lost_its_processes() -> None:
    assert dataclasses.replace(this_process(), boot="another").is_gone()


def test_nothing_is_known_of_other_machines() -> None:
    far = dataclasses.replace(this_process(), host="elsewhere", boot="another", start="1")
    assert not far.is_gone()
    assert not dataclasses.replace(far, pid=2**22 + 1).is_gone()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_process_with_an_odd_name_is_told_apart() -> None:
    # The name in /proc/PID/stat may hold spaces and brackets.
    with multiprocessing.get_context("fork").Pool(1) as pool:
        owner = pool.apply(_renamed)
        assert not owner.is_gone()
        assert int(owner.start) >= int(this_process().start)


def _renamed() -> Owner:
    with open("/proc/self/comm", "w") as file:  # noqa: PTH123
        file.write("a) R (b 1 2")
    return this_process()


def test_machines_without_an_identity_of_their_own_are_told_apart_by_their_network_card(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(owner_module, "_MACHINE_ID", tmp_path / "none")
    hosts = set()
    for card in (1, 2):
        monkeypatch.setattr(owner_module.uuid, "getnode", lambda card=card: card)
        owner_module._host.cache_clear()
        hosts.add(owner_module._host())
    owner_module._host.cache_clear()
    assert len(hosts) == 2
