"""A study's history is what Optuna would show."""

from __future__ import annotations

from typing import Any

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import RDBStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from postgres import everywhere
from visweep.storage import history
from visweep.storage.engine import Storage

MAXIMIZE = [StudyDirection.MAXIMIZE]
PARAMETERS = {"lr": 0.01, "depth": 3, "kind": "b"}
DISTRIBUTIONS = {
    "lr": FloatDistribution(1e-4, 1.0, log=True),
    "depth": IntDistribution(1, 9, step=2),
    "kind": CategoricalDistribution(["a", "b", None]),
}


def _add(storage: Storage, study_id: int, state: TrialState, **fields: Any) -> int:
    trial = create_trial(state=state, **fields)
    return storage.create_new_trial(study_id, trial)


@pytest.fixture
def study_id(storage: Storage) -> int:
    """A study with a trial of every kind, beside another one."""
    study_id = storage.create_new_study(MAXIMIZE, "study")
    begun = {"params": PARAMETERS, "distributions": DISTRIBUTIONS}
    curve = {1: 0.5, 2: float("nan"), 3: float("inf"), 4: float("-inf")}
    _add(storage, study_id, TrialState.COMPLETE, value=0.5, intermediate_values=curve, **begun)
    _add(storage, study_id, TrialState.WAITING, system_attrs={"fixed_params": {"lr": 0.1}})
    _add(storage, study_id, TrialState.COMPLETE, value=float("-inf"), **begun)
    other = storage.create_new_study(MAXIMIZE, "other")
    _add(storage, other, TrialState.COMPLETE, value=1.0, user_attrs={"of": "another"})
    _add(storage, study_id, TrialState.PRUNED, user_attrs={"a": [1], "b": {"c": None}}, **begun)
    _add(storage, study_id, TrialState.RUNNING, intermediate_values={2: 0.2, 1: 0.1}, **begun)
    _add(storage, study_id, TrialState.FAIL)
    _add(storage, study_id, TrialState.WAITING)
    return study_id


def _shown(trials: list[FrozenTrial]) -> list[dict[str, str]]:
    """Every field; a NaN is not equal to itself, and Optuna leaves the order to the database."""
    return [
        {
            name: repr(sorted(field.items()) if isinstance(field, dict) else field)
            for name, field in vars(trial).items()
        }
        for trial in trials
    ]


def assert_same(storage: Storage, *asked: Any) -> None:
    theirs = RDBStorage._get_trials(storage, *asked)
    for _ in range(2):  # what waits is remembered
        assert _shown(storage._get_trials(*asked)) == _shown(theirs)


@everywhere
def test_one_trial_is_what_optuna_shows(storage: Storage, study_id: int) -> None:
    """Read with one query for all that other tables say of it."""
    theirs = RDBStorage.get_all_trials(storage, study_id)
    ours = [storage.get_trial(trial._trial_id) for trial in theirs]
    assert _shown(ours) == _shown(theirs)
    # That in which they were suggested; reports are in that of their steps.
    assert [*ours[0].params] == [*PARAMETERS]
    assert [*ours[4].intermediate_values] == [1, 2]


@everywhere
def test_values_keep_their_order(storage: Storage) -> None:
    several = storage.create_new_study(2 * MAXIMIZE, "several")
    trial = _add(storage, several, TrialState.COMPLETE, values=[0.5, 0.25])
    assert storage.get_trial(trial).values == [0.5, 0.25]


@everywhere
def test_it_is_what_optuna_shows(storage: Storage, study_id: int) -> None:
    everything = storage._get_trials(study_id, None, set(), -1)
    assert len(everything) == 7
    assert [*everything[0].params] == [*PARAMETERS]
    assert [*everything[4].intermediate_values] == [1, 2]
    assert_same(storage, study_id, None, set(), -1)
    ids = [trial._trial_id for trial in everything]
    assert_same(storage, study_id, None, set(), ids[3])
    assert_same(storage, study_id, None, {ids[0], ids[1], ids[4]}, ids[3])
    assert_same(storage, study_id, (TrialState.COMPLETE, TrialState.WAITING), set(), -1)
    assert_same(storage, study_id, None, set(), ids[-1])


@everywhere
def test_there_may_be_more_trials_than_a_query_can_list(
    storage: Storage, study_id: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history, "_MOST_IDS", 1)
    ids = [t._trial_id for t in RDBStorage._get_trials(storage, study_id, None, set(), -1)]
    assert_same(storage, study_id, None, {ids[0], ids[1], ids[4]}, ids[3])
    assert_same(storage, study_id, (TrialState.PRUNED, TrialState.RUNNING), set(), -1)


@everywhere
def test_a_trial_that_waited_is_seen_to_begin_and_to_end(storage: Storage, study_id: int) -> None:
    study = optuna.load_study(study_name="study", storage=storage)
    waiting = study.get_trials(deepcopy=False)[-1]
    assert waiting.state == TrialState.WAITING
    storage.set_trial_state_values(waiting._trial_id, TrialState.RUNNING)
    storage.set_trial_intermediate_value(waiting._trial_id, 1, 0.25)
    begun = study.get_trials(deepcopy=False)[-1]
    assert (begun.state, begun.intermediate_values) == (TrialState.RUNNING, {1: 0.25})
    storage.set_trial_state_values(waiting._trial_id, TrialState.COMPLETE, [0.75])
    ended = study.get_trials(deepcopy=False)[-1]
    assert (ended.state, ended.value) == (TrialState.COMPLETE, 0.75)


def test_a_study_that_was_deleted_has_no_history(storage: Storage, study_id: int) -> None:
    storage.delete_study(study_id)
    with pytest.raises(KeyError):
        storage._get_trials(study_id, None, set(), -1)


@everywhere
def test_what_is_known_to_wait_is_read_again_when_it_has_changed(
    storage: Storage, study_id: int
) -> None:
    """Begun, deleted, or another one under the number of one that was deleted."""
    plain = RDBStorage(storage.url)

    def compare(known: set[int], after: int = -1) -> None:
        ours = storage._get_trials(study_id, None, known, after)
        theirs = plain._get_trials(study_id, None, known, after)
        assert _shown(ours) == _shown(sorted(theirs, key=lambda t: t._trial_id))

    waiting = [_add(storage, study_id, TrialState.WAITING) for _ in range(6)]
    compare(set())
    compare(set(waiting), after=waiting[0] - 1)
    storage.set_trial_state_values(waiting[1], TrialState.RUNNING)
    storage.set_trial_user_attr(waiting[1], "ended", "soon")
    compare(set(waiting), after=waiting[0] - 1)
    storage.set_trial_state_values(waiting[1], TrialState.FAIL)
    compare(set(waiting), after=waiting[2])
    with storage.transaction() as connection:
        connection.exec_driver_sql(f"DELETE FROM trials WHERE trial_id = {waiting[-1]}")
    compare(set(waiting))
    again = _add(storage, study_id, TrialState.WAITING, user_attrs={"is": "another"})
    compare({*waiting, again})
    plain.remove_session()
    plain.engine.dispose()
