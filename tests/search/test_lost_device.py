"""A GPU that fails whatever a process asks of it, after an error there."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from crowded_trainer import LosingTrainer, crowded_job
from visweep.errors import DeviceLost
from visweep.search.crew import Crew
from visweep.search.worker import MOST_LOST
from visweep.training.device import insisting_that_it_works

GPU = torch.device("cuda")


@pytest.mark.parametrize("times", [1, 99])
def test_another_process_goes_on(sweep: Any, file: Path, tmp_path: Path, times: int) -> None:
    """The trial is tried again there, though not for ever; no other fails for it."""
    counter = tmp_path / "times"
    counter.write_text(str(times))
    made = sweep(3)
    job = crowded_job(file, make_trainer=partial(LosingTrainer, counter))
    Crew(made.opened, job, 1, watcher=made.heard, interrupt=made.interrupt).run()
    fails = times >= MOST_LOST
    assert made.states == [
        "COMPLETE",
        "FAIL" if fails else "COMPLETE",
        *["COMPLETE"] * (1 + fails),
    ]
    lost = [n for n in made.heard.notes if n.endswith("for this process: illegal access")]
    assert len(lost) == min(times, MOST_LOST)
    replaced = [n for n in made.heard.notes if n.endswith("a new one takes its place")]
    assert len(replaced) == len(lost)
    if fails:
        assert "5 workers in a row" in made.trials[1].user_attrs["ended"]


def failing() -> None:
    with insisting_that_it_works(GPU):
        raise RuntimeError("CUDA error: an illegal memory access was encountered\nSearch for ...")


def test_it_is_told_from_other_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(device: torch.device) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch.cuda, "synchronize", broken)
    with pytest.raises(DeviceLost, match=r"^cuda does not .*: an illegal memory .* encountered$"):
        failing()
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    with pytest.raises(RuntimeError, match="Search for"):
        failing()


def test_a_cpu_is_never_lost() -> None:
    with (
        pytest.raises(RuntimeError, match="of another kind"),
        insisting_that_it_works(torch.device("cpu")),
    ):
        raise RuntimeError("of another kind")
