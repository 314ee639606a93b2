"""A study that another version of the trainer worked on says so when it goes on."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import optuna
import pytest

from visweep.analysis.report import build_report
from visweep.search.versions import note_of_others
from visweep.storage.engine import Storage
from visweep.storage.overview import overview
from visweep.storage.specification import TRAINER
from visweep.training.results import TRAINER_VERSION

MakeSweep = Callable[..., Any]


def of_version(storage: Storage, trial: optuna.trial.FrozenTrial, version: int | None) -> None:
    """As a worker of another version left it; None: of before it was recorded."""
    found = {k: v for k, v in trial.user_attrs["provenance"].items() if k != "trainer"}
    recorded = {} if version is None else {"trainer": version}
    storage.set_trial_attributes(trial._trial_id, {"provenance": {**found, **recorded}})


@pytest.fixture
def done(sweep: MakeSweep) -> Any:
    return sweep(3, train={"epochs": 1}).run()


def test_a_study_and_its_trials_tell_the_version(done: Any, storage: Storage) -> None:
    assert done.opened.study.user_attrs[TRAINER] == TRAINER_VERSION
    recorded = [t.user_attrs["provenance"]["trainer"] for t in done.trials]
    assert recorded == [TRAINER_VERSION] * 3
    (seen,) = overview(storage.engine.url.render_as_string())
    assert seen.trainer == TRAINER_VERSION
    assert note_of_others(done.trials) is None


def test_what_another_version_finished_is_told(done: Any, storage: Storage) -> None:
    of_version(storage, done.trials[0], 1)
    of_version(storage, done.trials[2], 2)
    assert note_of_others(done.trials) == (
        "2 finished trials of this study come from another version of the trainer (1 and 2; this "
        f"is {TRAINER_VERSION}), which drew otherwise: trained again, the same seeds give other "
        "numbers"
    )
    again = optuna.load_study(study_name="study", storage=storage)
    page = build_report(again)
    for version in (1, 2, TRAINER_VERSION):
        assert re.search(rf">{version}</td>", page)
    assert "Another version of the trainer draws otherwise" in page


def test_what_was_not_recorded_is_not_guessed(done: Any, storage: Storage) -> None:
    for trial in done.trials:
        of_version(storage, trial, None)
    assert note_of_others(done.trials) is None


def test_a_trial_that_is_not_finished_does_not_count(sweep: MakeSweep, storage: Storage) -> None:
    made = sweep(2, train={"epochs": 2})
    made.heard.on_epoch = lambda _: made.interrupt.ask("stopped")
    made.run()
    (running, *_) = made.trials
    assert running.state.name == "RUNNING"
    running.set_user_attr("provenance", {"trainer": 1})
    assert note_of_others([running]) is None
