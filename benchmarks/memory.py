"""How much memory do a command and all processes that it starts take together? Linux only.

    python benchmarks/memory.py python sweeps/vit_search.py --trials 50

Adds up the proportional set sizes twice a second, so that pages which processes share count
once, and prints the largest sum when the command has ended.
"""

from __future__ import annotations

import argparse
import subprocess
from collections.abc import Iterator
from pathlib import Path

from visweep import text

_PROC = Path("/proc")
_INTERVAL = 0.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("program", help="what to run, such as python")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="and with which arguments")
    asked = parser.parse_args()
    try:
        command = subprocess.Popen([asked.program, *asked.arguments])
    except OSError as e:
        parser.error(f"{asked.program}: {e.strerror}")
    peak = 0
    while command.poll() is None:
        peak = max(peak, together(command.pid))
        try:
            command.wait(_INTERVAL)
        except subprocess.TimeoutExpired:
            continue
    print(f"peak memory of all processes: {text.memory(peak)}; exit status {command.returncode}")


def together(root: int) -> int:
    """Bytes that a process and its descendants take now."""
    return sum(_proportional(pid) for pid in _family(root))


def _family(root: int) -> Iterator[int]:
    yield root
    for listed in _PROC.glob(f"{root}/task/*/children"):
        for child in _read(listed).split():
            yield from _family(int(child))


def _proportional(pid: int) -> int:
    lines = _read(_PROC / str(pid) / "smaps_rollup").splitlines()
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:"))


def _read(path: Path) -> str:
    """Empty where the process has ended meanwhile."""
    try:
        return path.read_text()
    except OSError:
        return ""


if __name__ == "__main__":
    main()
