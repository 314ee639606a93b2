"""The methods of Optuna's storage, and ours beside them."""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy as sa
from optuna.exceptions import UpdateFinishedTrialError
from optuna.study import StudyDirection
from optuna.trial import TrialState, create_trial

from postgres import everywhere
from visweep.storage.engine import Storage

WAITING = create_trial(state=TrialState.WAITING)
MAXIMIZE = [StudyDirection.MAXIMIZE]


CLAIMER = """
import sys, time
from optuna.trial import TrialState
from visweep.storage.opening import open_storage

url, start = sys.argv[1], float(sys.argv[2])
storage = open_storage(url)
trials = storage.get_all_trials(1)
time.sleep(max(0.0, start - time.time()))
for trial in trials:
    if storage.set_trial_state_values(trial._trial_id, TrialState.RUNNING):
        print(trial.number, flush=True)
        time.sleep(0.005)  # leave the lock to the others
storage.close()
"""


@everywhere
def test_no_two_processes_claim_one_waiting_trial(
    storage: Storage, study_id: int, url: str, launcher: Any, tmp_path: Path
) -> None:
    # Optuna's own storage hands out trials twice here, in nearly every run.
    import time

    for _ in range(40):
        storage.create_new_trial(study_id, WAITING)
    script = tmp_path / "claim.py"
    script.write_text(CLAIMER)
    start = time.time() + 1.5
    claimers = [launcher.start(script, url, start) for _ in range(4)]
    claims = [[int(line) for line in c.wait().stdout.split()] for c in claimers]
    assert [c.stderr for c in claimers] == [""] * 4
    assert sorted(number for claim in claims for number in claim) == list(range(40))
    assert sum(bool(claim) for claim in claims) > 1, "they did not race"


def test_a_finished_trial_is_refused_at_once(storage: Storage, trial_id: int) -> None:
    """Optuna reads the trial again to say so, while it holds the lock of the write."""
    storage.set_trial_state_values(trial_id, TrialState.COMPLETE, [0.5])
    begin = time.monotonic()
    for write in (storage.set_trial_system_attr, storage.set_trial_user_attr):
        with pytest.raises(UpdateFinishedTrialError):
            write(trial_id, "key", "value")
    assert time.monotonic() - begin < 10
    storage.set_study_user_attr(1, "key", "value")


WRITES = {
    "create_new_study": lambda s, study, trial: s.create_new_study(MAXIMIZE, "another"),
    "delete_study": lambda s, study, trial: s.delete_study(study),
    "set_study_user_attr": lambda s, study, trial: s.set_study_user_attr(study, "k", 1),
    "set_study_system_attr": lambda s, study, trial: s.set_study_system_attr(study, "k", 1),
    "create_new_trial": lambda s, study, trial: s.create_new_trial(study),
    "set_trial_param": lambda s, study, trial: s.set_trial_param(
        trial, "x", 0.5, optuna.distributions.FloatDistribution(0, 1)
    ),
    "set_trial_state_values": lambda s, study, trial: s.set_trial_state_values(
        trial, TrialState.COMPLETE, [1.0]
    ),
    "set_trial_intermediate_value": lambda s, study, trial: s.set_trial_intermediate_value(
        trial, 1, 0.5
    ),
    "set_trial_user_attr": lambda s, study, trial: s.set_trial_user_attr(trial, "k", 1),
    "set_trial_system_attr": lambda s, study, trial: s.set_trial_system_attr(trial, "k", 1),
    "set_trial_attributes": lambda s, study, trial: s.set_trial_attributes(trial, {"k": 1}),
    "set_study_attributes_once": lambda s, study, trial: s.set_study_attributes_once(
        study, {"k": 1}
    ),
}


@pytest.mark.parametrize("cached", [False, True], ids=["direct", "through Optuna's cache"])
@pytest.mark.parametrize("name", WRITES)
def test_each_write_begins_as_one(
    storage: Storage, study_id: int, trial_id: int, name: str, cached: bool
) -> None:
    # A transaction that begins by reading cannot be told from one that read what has changed.
    if cached and not hasattr(optuna.storages._CachedStorage, name):
        pytest.skip("a method of our own")
    begun: list[str] = []
    target = optuna.storages._CachedStorage(storage) if cached else storage
    target.get_all_trials(study_id)
    sa.event.listen(
        storage.engine,
        "before_cursor_execute",
        lambda connection, cursor, statement, *rest: begun.append(statement.split("\n")[0]),
    )
    WRITES[name](target, study_id, trial_id)
    writes = [
        index
        for index, statement in enumerate(begun)
        if statement.startswith(("INSERT", "UPDATE", "DELETE"))
    ]
    assert writes
    for index in writes:
        latest = [s for s in begun[:index] if s.startswith("BEGIN")][-1]
        assert latest == "BEGIN IMMEDIATE"


READS = {
    "get_study_id_from_name": lambda s, study, trial: s.get_study_id_from_name("study"),
    "get_study_name_from_id": lambda s, study, trial: s.get_study_name_from_id(study),
    "get_study_directions": lambda s, study, trial: s.get_study_directions(study),
    "get_study_user_attrs": lambda s, study, trial: s.get_study_user_attrs(study),
    "get_study_system_attrs": lambda s, study, trial: s.get_study_system_attrs(study),
    "get_all_studies": lambda s, study, trial: s.get_all_studies(),
    "get_all_trials": lambda s, study, trial: s.get_all_trials(study),
    "get_trial": lambda s, study, trial: s.get_trial(trial),
    "get_trial_user_attrs": lambda s, study, trial: s.get_trial_user_attrs(trial),
    "get_trial_system_attrs": lambda s, study, trial: s.get_trial_system_attrs(trial),
    "get_trial_id_from_study_id_trial_number": lambda s, study, trial: (
        s.get_trial_id_from_study_id_trial_number(study, 0)
    ),
    "get_trial_number_from_id": lambda s, study, trial: s.get_trial_number_from_id(trial),
    "get_trial_params": lambda s, study, trial: s.get_trial_params(trial),
    "get_n_trials": lambda s, study, trial: s.get_n_trials(study),
}


@pytest.mark.parametrize("cached", [False, True], ids=["direct", "through Optuna's cache"])
@pytest.mark.parametrize("name", [*WRITES, *READS])
@everywhere
def test_each_method_waits_for_a_database_that_is_away(
    storage: Storage, study_id: int, trial_id: int, name: str, cached: bool
) -> None:
    if cached and not hasattr(optuna.storages._CachedStorage, name):
        pytest.skip("a method of our own")
    target = optuna.storages._CachedStorage(storage) if cached else storage
    if name in WRITES:  # what is cached is not read again
        target.get_all_trials(study_id)
    failures = iter([True, True])

    def fail(_: sa.Connection) -> None:
        if next(failures, False):
            locked = sqlite3.OperationalError("database is locked")
            locked.sqlite_errorcode = sqlite3.SQLITE_BUSY
            raise sa.exc.OperationalError("BEGIN", {}, locked)

    sa.event.listen(storage.engine, "begin", fail)
    {**WRITES, **READS}[name](target, study_id, trial_id)
    assert next(failures, None) is None


def test_no_method_of_optunas_is_forgotten() -> None:
    abstract = optuna.storages.BaseStorage
    methods = {n for n, m in vars(abstract).items() if callable(m) and not n.startswith("_")}
    # Those that do not ask the database, and those that ask by the methods above.
    methods -= {"remove_session", "check_trial_is_updatable", "get_best_trial", "get_trial_param"}
    assert methods <= WRITES.keys() | READS.keys()


@everywhere
def test_other_tools_read_and_write_while_it_is_open(
    storage: Storage, trial_id: int, url: str
) -> None:
    storage.set_trial_intermediate_value(trial_id, 1, 0.5)
    other = optuna.storages.RDBStorage(url)
    try:
        study = optuna.load_study(study_name="study", storage=other)
        assert study.trials[0].intermediate_values == {1: 0.5}
        study.set_user_attr("seen", True)
    finally:
        other.remove_session()
        other.engine.dispose()
    assert storage.get_study_user_attrs(1) == {"seen": True}


@everywhere
def test_some_attributes_of_a_study_are_read_without_the_others(storage: Storage) -> None:
    study_id = storage.create_new_study([StudyDirection.MAXIMIZE], "study")
    assert storage.get_study_attributes(study_id, "budget") == {}
    for key, value in (("budget", 5), ("long", [1, 2]), ("stop", False)):
        storage.set_study_user_attr(study_id, key, value)
    assert storage.get_study_attributes(study_id, "budget", "stop", "missing") == {
        "budget": 5,
        "stop": False,
    }
    storage.delete_study(study_id)
    with pytest.raises(KeyError):
        storage.get_study_attributes(study_id, "budget")


@everywhere
def test_attributes_of_a_trial_are_set_together_or_not_at_all(
    storage: Storage, trial_id: int
) -> None:
    storage.set_trial_attributes(trial_id, {"epochs": 1, "ended": "completed"})
    with pytest.raises(TypeError):
        storage.set_trial_attributes(trial_id, {"epochs": 2, "ended": object()})
    assert storage.get_trial(trial_id).user_attrs == {"epochs": 1, "ended": "completed"}
    storage.set_trial_attributes(trial_id, {"epochs": 3, "seconds": 1.5})
    assert storage.get_trial(trial_id).user_attrs == {
        "epochs": 3,
        "ended": "completed",
        "seconds": 1.5,
    }


@everywhere
def test_attributes_of_a_study_are_set_once(storage: Storage, study_id: int) -> None:
    assert storage.set_study_attributes_once(study_id, {"first": 1, "second": 2})
    assert not storage.set_study_attributes_once(study_id, {"first": 3, "third": 4})
    assert storage.get_study_user_attrs(study_id) == {"first": 1, "second": 2}
