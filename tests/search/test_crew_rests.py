"""A crew that is kept between one piece of work and the next, as a race has them."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from crowded_trainer import crowded_job
from processes import is_alive
from visweep.search import crew as crews
from visweep.search.crew import Crew


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The processes of every worker that is started."""
    found: list[int] = []
    start = crews._start

    def watched(*given: Any) -> Any:
        member = start(*given)
        found.append(member.process.pid or 0)
        return member

    monkeypatch.setattr(crews, "_start", watched)
    return found


@pytest.fixture
def made(sweep: Any) -> Any:
    return sweep(2)


@pytest.fixture
def crew(made: Any, file: Path) -> Iterator[Crew]:
    job = crowded_job(file)
    with Crew(made.opened, job, 2, watcher=made.heard, interrupt=made.interrupt) as crew:
        yield crew


def want(made: Any, budget: int) -> None:
    made.opened.study.set_user_attr("visweep:budget", budget)
    made.opened.make_room()


def gone(pids: list[int]) -> bool:
    deadline = time.monotonic() + 10
    while any(map(is_alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not any(map(is_alive, pids))


def test_its_workers_rest_and_go_on(crew: Crew, made: Any, started: list[int]) -> None:
    crew.work()
    assert made.states == ["COMPLETE"] * 2
    assert len(started) == 2
    assert all(map(is_alive, started))
    for budget in (3, 5):
        want(made, budget)
        crew.work()
        assert made.states == ["COMPLETE"] * budget
    assert len(started) == 2
    with crew:
        pass
    assert gone(started)
    assert made.heard.notes == []


def test_only_as_many_as_there_are_trials_for(crew: Crew, made: Any, started: list[int]) -> None:
    want(made, 1)
    crew.work()
    assert len(started) == 1
    want(made, 3)
    crew.work()
    assert made.states == ["COMPLETE"] * 3
    assert len(started) == 2


def test_one_that_was_killed_at_rest_is_replaced(
    crew: Crew, made: Any, started: list[int]
) -> None:
    crew.work()
    for victim in started:
        os.kill(victim, signal.SIGKILL)
    assert gone(started)
    want(made, 4)
    crew.work()
    assert made.states == ["COMPLETE"] * 4
    assert len(started) == 4
    said = [f"worker {victim} was ended by SIGKILL while it rested" for victim in started[:2]]
    assert sorted(made.heard.notes) == sorted(said)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGUSR1])
def test_one_that_is_asked_to_stop_ends_at_rest(
    crew: Crew, made: Any, started: list[int], how: signal.Signals
) -> None:
    crew.work()
    for worker in started:
        os.kill(worker, how)
    assert gone(started)
    want(made, 3)
    crew.work()
    assert made.states == ["COMPLETE"] * 3


def test_one_that_ended_just_before_it_was_called_is_replaced(
    crew: Crew, made: Any, started: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its server may not have told yet that it has."""
    crew.work()
    for worker in started:
        os.kill(worker, signal.SIGTERM)
    assert gone(started)
    want(made, 3)
    monkeypatch.setattr(crew, "_forget_the_dead", lambda: None)
    crew.work()
    assert made.states == ["COMPLETE"] * 3


def test_an_error_of_our_own_leaves_nobody_behind(
    crew: Crew, made: Any, started: list[int]
) -> None:
    crew.work()
    with pytest.raises(KeyError), crew:
        raise KeyError
    assert gone(started)


def test_however_often_there_was_no_room_one_goes_on(made: Any, file: Path) -> None:
    job = crowded_job(file, others_beside=True)
    with Crew(made.opened, job, 1, watcher=made.heard, interrupt=made.interrupt) as crew:
        for budget in (2, 3, 4):
            want(made, budget)
            crew.work()
            assert made.states == ["COMPLETE"] * budget
