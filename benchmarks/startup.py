"""How long from the command to the first training step, beyond importing what it is made of?

    python benchmarks/startup.py --repeats 7

Runs a sweep of two trials in a new study, with one worker and with two, and an interpreter that
imports torch, torchvision and optuna, in turns. The data are cached, and one round beforehand is
not counted. Each training process stops before its first step (see first_step.py), and the command
is killed when all have come there. So the seconds are those to the last worker's first step, and
the processor's seconds are those of all processes together, the operating system's included. The
import is timed from the start of the interpreter to the end of the statement.

Prints medians, with the smallest and the largest, and the medians of each round's difference to
the import of that round.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import first_step
from measuring import environment, print_table

_SWEEP = Path(__file__).parents[1] / "sweeps" / "vit_search.py"
_IMPORT = """
import torch, torchvision, optuna, time
print(time.clock_gettime(time.CLOCK_MONOTONIC), time.process_time())
"""
_PROC = Path("/proc")
_LIMIT = 120.0


@dataclass(frozen=True)
class Taken:
    """What something took: seconds on the clock, and of the processor."""

    clock: float
    processor: float

    def beyond(self, other: Taken) -> Taken:
        return Taken(self.clock - other.clock, self.processor - other.processor)


def bare_import() -> Taken:
    began = _now()
    said = subprocess.run(
        [sys.executable, "-c", _IMPORT], check=True, capture_output=True, text=True
    ).stdout
    ended, processor = (float(word) for word in said.split())
    return Taken(ended - began, processor)


def first_steps(workers: int, options: list[str]) -> Taken:
    """Until each of so many workers is at its first training step."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        shutil.copy(first_step.__file__, folder / "sitecustomize.py")
        told = folder / "told"
        told.touch()
        path = os.pathsep.join(p for p in (scratch, os.environ.get("PYTHONPATH")) if p)
        url = f"sqlite:///{folder}/studies.db"
        asked = ["--trials", "2", "--study", "X", "--storage", url, "--workers", str(workers)]
        began = _now()
        sweep = subprocess.Popen(
            [sys.executable, str(_SWEEP), *asked, *options],
            env={**os.environ, "PYTHONPATH": path, first_step.FILE: str(told)},
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            ended = _times(told, workers, sweep)
            return Taken(max(ended) - began, sum(map(_processor, _family(sweep.pid))))
        finally:
            _end(sweep)


def _times(told: Path, count: int, sweep: subprocess.Popen[bytes]) -> list[float]:
    deadline = _now() + _LIMIT
    while _now() < deadline and sweep.poll() is None:
        lines = told.read_text().splitlines()
        if len(lines) == count:
            return [float(line) for line in lines]
        time.sleep(0.05)
    raise SystemExit("no training step was made")


def _end(sweep: subprocess.Popen[bytes]) -> None:
    """The workers lead groups of their own, and end with the command."""
    family = list(_family(sweep.pid))
    os.killpg(sweep.pid, signal.SIGKILL)
    sweep.wait()
    while any((_PROC / str(pid)).exists() for pid in family):
        time.sleep(0.05)


def _family(root: int) -> Iterator[int]:
    """A process and its descendants."""
    yield root
    for listed in _PROC.glob(f"{root}/task/*/children"):
        for child in listed.read_text().split():
            yield from _family(int(child))


def _processor(pid: int) -> float:
    """Seconds of the processor that a process and its children that have ended have used."""
    fields = (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    return sum(int(ticks) for ticks in fields[11:15]) / os.sysconf("SC_CLK_TCK")


def _now() -> float:
    return time.clock_gettime(time.CLOCK_MONOTONIC)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--options", nargs=argparse.REMAINDER, default=[], help="of the sweep")
    options = parser.parse_args()
    print(environment(), flush=True)
    imports: list[Taken] = []
    starts: dict[int, list[Taken]] = {workers: [] for workers in options.workers}
    for _ in range(options.repeats + 1):
        imports.append(bare_import())
        for workers, found in starts.items():
            found.append(first_steps(workers, options.options))
    rows = [_row("import", imports[1:])]
    for workers, found in starts.items():
        rows.append(_row(f"{workers} workers", found[1:]))
        beyond = [s.beyond(i) for s, i in zip(found, imports, strict=True)]
        rows.append(_row(f"{workers} workers, beyond the import", beyond[1:]))
    print_table(("", "seconds", "of the processor"), rows)


def _row(name: str, taken: list[Taken]) -> list[object]:
    return [name, _spread([t.clock for t in taken]), _spread([t.processor for t in taken])]


def _spread(seconds: list[float]) -> str:
    return f"{median(seconds):.2f} ({min(seconds):.2f} to {max(seconds):.2f})"


if __name__ == "__main__":
    main()
