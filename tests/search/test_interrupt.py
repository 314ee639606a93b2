from __future__ import annotations

import os
import signal
import time

import pytest

from visweep.search.interrupt import Interrupt


def test_nothing_stops_it_unasked() -> None:
    assert Interrupt().reason == ""
    assert Interrupt(seconds=60).reason == ""


def test_the_first_ctrl_c_asks_and_the_second_ends() -> None:
    before = signal.getsignal(signal.SIGINT)
    with Interrupt().listening() as interrupt:
        os.kill(os.getpid(), signal.SIGINT)
        assert interrupt.reason == "interrupted"
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_termination_asks_as_well_however_often() -> None:
    with Interrupt().listening() as interrupt:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert interrupt.reason == "terminated"


def test_time_runs_out() -> None:
    interrupt = Interrupt(seconds=0.05)
    time.sleep(0.1)
    assert interrupt.reason == "the time-out was reached"


def test_the_first_reason_stands() -> None:
    interrupt = Interrupt()
    interrupt.ask("`visweep stop` was called")
    interrupt.ask("interrupted")
    assert interrupt.reason == "`visweep stop` was called"


def test_a_signal_is_heard_at_once_and_once() -> None:
    heard: list[str] = []
    with Interrupt(heard=heard.append).listening():
        os.kill(os.getpid(), signal.SIGTERM)
        assert heard == ["terminated"]
        os.kill(os.getpid(), signal.SIGTERM)
        assert heard == ["terminated"]
