"""A crew whose workers share the memory of one device."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from crowded_trainer import CrowdedTrainer
from visweep.search.crew import Crew, Job


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
