"""Somebody sets the clock of the machine in mid-study: nothing of a study goes by it."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from stub_study import StubStudy

pytestmark = pytest.mark.slow

HOUR = 3600
SHIM = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <stdio.h>
#include <sys/time.h>
#include <time.h>

/* What was written to the file $CLOCK is by how many seconds the wall clock is wrong. */
static long wrong_by(void) {
    long seconds = 0;
    FILE *file = fopen(getenv("CLOCK"), "r");
    if (file) {
        if (fscanf(file, "%ld", &seconds) != 1) seconds = 0;
        fclose(file);
    }
    return seconds;
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
    int failed = real(clock, now);
    if (!failed && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
        now->tv_sec += wrong_by();
    return failed;
}

int gettimeofday(struct timeval *now, void *zone) {
    struct timespec found;
    (void) zone;
    clock_gettime(CLOCK_REALTIME, &found);
    now->tv_sec = found.tv_sec;
    now->tv_usec = found.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *now) {
    struct timespec found;
    clock_gettime(CLOCK_REALTIME, &found);
    if (now) *now = found.tv_sec;
    return found.tv_sec;
}
"""


@dataclass
class Clock:
    """The wall clock of the workers that are started with it, and of nobody else.

    Attributes:
        library: makes it theirs.
        file: says by how much it is wrong.
    """

    library: Path
    file: Path

    @property
    def environment(self) -> dict[str, str]:
        return {"LD_PRELOAD": str(self.library), "CLOCK": str(self.file)}

    def set_back(self, seconds: int) -> None:
        new = self.file.with_suffix(".new")
        new.write_text(str(-seconds))
        new.replace(self.file)


@pytest.fixture
def clock(tmp_path: Path) -> Clock:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no C compiler to make another clock with")
    source, library = tmp_path / "clock.c", tmp_path / "clock.so"
    source.write_text(SHIM)
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    made = Clock(library, tmp_path / "wrong-by")
    made.set_back(0)
    return made


@pytest.fixture
def study(launcher: Any, tmp_path: Path) -> Callable[..., StubStudy]:
    def make(trials: int, seconds: float, lease: float) -> StubStudy:
        url = f"sqlite:///{tmp_path}/studies.db"
        return StubStudy(launcher, url, tmp_path, trials, 4, seconds, lease)

    return make


def test_the_clock_of_the_workers_is_another(clock: Clock, launcher: Any) -> None:
    """Or the others prove nothing."""
    clock.set_back(HOUR)
    program = (
        "import datetime, sqlite3, time; now = datetime.datetime.now().timestamp(); "
        "(there,) = sqlite3.connect(':memory:').execute(\"SELECT strftime('%s')\").fetchone(); "
        "print(now, there, time.time(), time.monotonic())"
    )
    process = launcher.start_apart(sys.executable, "-c", program, **clock.environment).wait()
    *wall, monotonic = map(float, process.stdout.split())
    assert all(abs(time.time() - HOUR - told) < 60 for told in wall)
    assert abs(time.monotonic() - float(monotonic)) < 60


def test_nobody_is_taken_for_dead(
    clock: Clock, study: Callable[..., StubStudy], wait_for: Any
) -> None:
    mine = study(80, seconds=0.1, lease=30.0)  # a beat every five seconds
    mine.start_apart(**clock.environment)
    mine.start_apart(**clock.environment)
    mine.seconds = 1.0
    patient = mine.start_apart(**clock.environment)
    wait_for(lambda: patient.pid in mine.workers(), about=patient)
    clock.set_back(HOUR)
    had = {number for number, *_, pid in mine.lines() if pid == patient.pid}
    wait_for(lambda: {n for n, *_, pid in mine.lines() if pid == patient.pid} - had)
    before = len(mine.lines())
    wait_for(lambda: len(mine.lines()) > before + 12)  # the others have seen what it holds now
    clock.set_back(0)  # an hour ahead of what it was
    for process in mine.processes:
        process.wait()
        assert (process.status, process.stdout, process.stderr) == (0, "done\n", "")
    mine.require_exact()
    assert set(Counter(mine.trained()).values()) == {1}
    assert {generation for _, generation, _ in mine.trained()} == {1}


def test_who_is_dead_is_taken_for_dead(
    clock: Clock, study: Callable[..., StubStudy], wait_for: Any
) -> None:
    mine = study(30, seconds=0.1, lease=2.0)
    sleeper, *others = (mine.start_apart(**clock.environment) for _ in range(3))
    wait_for(lambda: sleeper.pid in mine.workers(), about=sleeper)
    put_to_sleep(sleeper, mine)
    before = len(mine.lines())
    wait_for(lambda: len(mine.lines()) > before + 8)  # the others have seen that it holds one
    clock.set_back(HOUR)
    begun = time.monotonic()
    for process in others:
        process.wait()
        assert (process.status, process.stdout, process.stderr) == (0, "done\n", "")
    assert time.monotonic() - begun < 20
    sleeper.signal(signal.SIGCONT)
    sleeper.wait()
    assert (sleeper.status, sleeper.stderr) == (0, "")
    assert "was adopted by another worker" in sleeper.stdout
    mine.require_finished()
    assert max(generation for _, generation, _ in mine.trained()) == 2


def put_to_sleep(sleeper: Any, study: StubStudy) -> None:
    """Suspend a worker, though not while it has the lock that all of them need."""
    for _ in range(50):
        sleeper.signal(signal.SIGSTOP)
        before = len(study.lines())
        time.sleep(0.5)
        if len(study.lines()) > before + 2:
            return
        sleeper.signal(signal.SIGCONT)
        time.sleep(0.03)
    pytest.fail("the others do not go on without it")


def test_what_failed_last_is_known(clock: Clock, study: Callable[..., StubStudy]) -> None:
    mine = study(4, seconds=0.0, lease=60.0)
    first = mine.start_apart(**clock.environment).wait()
    assert (first.status, first.stderr) == (0, "")
    clock.set_back(HOUR)
    mine.trials = 8
    second = mine.start_apart(STUB_FAILS="4", **clock.environment).wait(30)
    assert second.status == 1
    assert "3 trials in a row failed for the same cause: RuntimeError: the" in second.stderr
    states = [t.state.name for t in mine.read()]
    assert states == ["COMPLETE"] * 4 + ["FAIL"] * 3 + ["WAITING"] * 3
