"""A crew whose workers share the memory of one device."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from crowded_trainer import crowded_job, served_trainer
from visweep.search.crew import Crew
from visweep.search.mps import PIPES


@pytest.mark.parametrize(("count", "again"), [(2, 0), (4, 1)])
def test_workers_that_do_not_fit_beside_each_other_end_with_one_alone(
    sweep: Any, file: Path, count: int, again: int
) -> None:
    made = sweep(5)
    job = crowded_job(file, others_beside=True)
    Crew(made.opened, job, count, watcher=made.heard, interrupt=made.interrupt).run()
    assert made.states == ["COMPLETE"] * 5
    # When the first trial has ended others are tried again, half as many.
    assert sum("is put back" in note for note in made.heard.notes) == count + again
    assert made.heard.last.finished == 5


def test_workers_find_what_serves_them(sweep: Any, file: Path) -> None:
    made = sweep(1)
    job = crowded_job(file, make_trainer=served_trainer, served={PIPES: "/where it listens"})
    Crew(made.opened, job, 1, watcher=made.heard, interrupt=made.interrupt).run()
    assert (made.states, made.heard.notes) == (["COMPLETE"], [])
