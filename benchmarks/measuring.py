"""What the benchmarks of the storage share: where they ran, their tables, a storage, processes."""

from __future__ import annotations

import importlib.metadata
import multiprocessing
import os
import platform
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from postgres_server import postgres_server

BACKENDS = ("sqlite", "postgresql")
_PRELOADED = ["visweep.search.worker", "visweep.search.study", "optuna.pruners"]
_PACKAGES = ("optuna", "sqlalchemy", "psycopg", "torch")


def environment() -> str:
    """One line: when, and on what; the load tells what else ran."""
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in _PACKAGES)
    load = ", ".join(f"{minutes:.1f}" for minutes in os.getloadavg())
    return (
        f"{datetime.now():%Y-%m-%d %H:%M}; {len(os.sched_getaffinity(0))} CPUs, load {load}; "
        f"Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}, {versions}"
    )


def print_table(headings: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """A table in Markdown; what is not in the first column is set to the right."""
    print(*table_heading(headings), sep="\n")
    for row in rows:
        print(table_row(row))
    print(flush=True)


def table_heading(headings: Sequence[str]) -> list[str]:
    """What a table begins with, an empty line before it."""
    return ["", table_row(headings), f"|---|{'---:|' * (len(headings) - 1)}"]


def table_row(cells: Sequence[object]) -> str:
    return f"| {' | '.join(str(cell) for cell in cells)} |"


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least this share of the values does not exceed."""
    ordered = sorted(values)
    return ordered[max(0, -int(-share * len(ordered) // 1) - 1)]


@contextmanager
def storage_url(backend: str, folder: Path) -> Iterator[str]:
    """The URL of an empty storage: a file in the folder, or a server of its own."""
    if backend == "sqlite":
        yield f"sqlite:///{folder}/studies.db"
    else:
        with postgres_server() as url:
            yield url


def start(work: Callable[..., None], *arguments: Any) -> BaseProcess:
    """Begin `work(*arguments)` in a process of its own, which need not import everything first."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    process = context.Process(target=work, args=arguments, daemon=True)
    process.start()
    return process


def run_all(count: int, work: Callable[..., None], *arguments: Any) -> list[int]:
    """Begin `work` so many times at once and wait for all; returns the exit statuses that are
    not 0."""
    processes = [start(work, *arguments) for _ in range(count)]
    for process in processes:
        process.join()
    return [process.exitcode for process in processes if process.exitcode]
