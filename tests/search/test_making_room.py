"""A crew whose workers share the memory of one device."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from crowded_trainer import CrowdedTrainer, served_trainer
from visweep.search.crew import Crew, Job
from visweep.search.mps import PIPES


@pytest.mark.parametrize(("count", "again"), [(2, 0), (4, 1)])
def test_workers_that_do_not_fit_beside_each_other_end_with_one_alone(
    sweep: Any, file: Path, count: int, again: int
) -> None:
    made = sweep(5)
    job = Job(
        storage=f"sqlite:///{file}",
        study="study",
        data_dir=None,
        artifacts=None,
        others_beside=True,
        make_trainer=CrowdedTrainer,
    )
    Crew(made.opened, job, count, watcher=made.heard, interrupt=made.interrupt).run()
    assert made.states == ["COMPLETE"] * 5
    # When the first trial has ended others are tried again, half as many.
    assert sum("is put back" in note for note in made.heard.notes) == count + again
    assert made.heard.last.finished == 5


def test_workers_find_what_serves_them(sweep: Any, file: Path) -> None:
    made = sweep(1)
    job = Job(
        storage=f"sqlite:///{file}",
        study="study",
        data_dir=None,
        artifacts=None,
        make_trainer=served_trainer,
        served={PIPES: "/where it listens"},
    )
    Crew(made.opened, job, 1, watcher=made.heard, interrupt=made.interrupt).run()
    assert (made.states, made.heard.notes) == (["COMPLETE"], [])
