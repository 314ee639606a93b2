"""Searches as a person runs them, again and again on one database."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import FrozenTrial

NAME = "tiny-cluttered-digits-tiny"
"""Of the study that the script `tiny_search` makes."""


@dataclass
class Search:
    """A search that can be started again and again.

    Attributes:
        launcher: starts it.
        script: the sweep script.
        file: the database.
        options: of every start.
    """

    launcher: Any
    script: Path
    file: Path
    options: tuple[object, ...]

    @property
    def url(self) -> str:
        return f"sqlite:///{self.file}"

    def start(self, trials: int, *more: object, **how: Any) -> Any:
        # Several workers are `test_crew.py`'s.
        given = ["--storage", self.url, "--workers", 1, *self.options, *more]
        return self.launcher.start(self.script, "--trials", trials, *given, **how)

    def run(self, trials: int, *more: object, **how: Any) -> Any:
        process = self.start(trials, *more, **how).wait()
        assert "Traceback" not in process.stderr, process.stderr
        return process

    def finish(self, trials: int, *more: object, **how: Any) -> list[FrozenTrial]:
        process = self.run(trials, *more, **how)
        assert (process.status, process.stderr) == (0, ""), process.stderr
        return self.trials()

    def trials(self) -> list[FrozenTrial]:
        """As Optuna reads them from the plain URL."""
        storage = optuna.storages.RDBStorage(
            self.url, engine_kwargs={"connect_args": {"timeout": 30}}
        )
        try:
            return storage.get_all_trials(1)
        finally:
            storage.remove_session()
            storage.engine.dispose()

    def states(self) -> list[str]:
        return [t.state.name for t in self.trials()]

    def is_in_mid_trial(self, at_least: int, number: int | None = None) -> bool:
        """Whether a trial has reported so many epochs and goes on."""
        if not self.file.exists():
            return False
        with closing(sqlite3.connect(self.file, timeout=30)) as connection:
            rows = connection.execute(
                "SELECT t.number, COUNT(*) FROM trials t JOIN trial_intermediate_values v "
                "ON v.trial_id = t.trial_id WHERE t.state = 'RUNNING' GROUP BY t.number"
            ).fetchall()
        return any(count >= at_least and number in (None, n) for n, count in rows)

    def leases(self) -> list[str]:
        with closing(sqlite3.connect(self.file)) as connection:
            query = "SELECT owner FROM visweep_slots WHERE owner IS NOT NULL"
            return [row[0] for row in connection.execute(query)]

    def checkpoint(self, number: int) -> Path | None:
        found = sorted(self.file.parent.glob(f"artifacts/*/trial-{number:05d}.*"))
        return found[-1] if found else None


MakeSearch = Callable[..., Search]


@pytest.fixture
def search(launcher: Any, tiny_search: Path, tmp_path: Path) -> MakeSearch:
    """Makes searches: `search(*options, folder=…, size=…)`."""

    def make(*options: object, folder: str = "storage", size: int = 300) -> Search:
        (tmp_path / folder).mkdir(exist_ok=True)
        file = tmp_path / folder / "studies.db"
        return Search(launcher, tiny_search, file, ("--train-size", size, *options))

    return make
