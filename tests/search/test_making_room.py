"""A crew whose workers share the memory of one device."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from crowded_trainer import CrowdedTrainer
from visweep.search.crew import Crew, Job


def test_workers_that_do_not_fit_beside_each_other_end_with_one_alone(
    sweep: Any, file: Path
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
    Crew(made.opened, job, count=2, watcher=made.heard, interrupt=made.interrupt).run()
    assert made.states == ["COMPLETE"] * 5
    assert sum("is put back" in note for note in made.heard.notes) == 2
    assert made.heard.last.finished == 5
