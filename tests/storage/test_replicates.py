"""Which trials are of one configuration, on either database."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import optuna
import pytest
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import FrozenTrial, TrialState, create_trial

from postgres import everywhere
from visweep.storage.engine import Storage
from visweep.storage.lease import Lease
from visweep.storage.owner import this_process
from visweep.storage.replicates import REPLICATE, SEEDS, configuration, originals
from visweep.storage.slots import Slots

SPACE = {
    "drop": FloatDistribution(0.0, 0.3),
    "rate": FloatDistribution(0.0, 1.0, step=0.1),
    "depth": IntDistribution(1, 4),
    "heads": CategoricalDistribution([2, None, "all"]),
}
POINT = {"drop": 0.1, "rate": 0.3, "depth": 2, "heads": None}


@pytest.fixture
def study(storage: Storage) -> optuna.Study:
    return optuna.create_study(study_name="study", storage=storage, direction="maximize")


@pytest.fixture
def slots(storage: Storage, study: optuna.Study) -> Slots:
    made = Slots(storage, study._study_id, this_process())
    made.set_budget(4)
    return made


def leased(slots: Slots) -> Lease:
    """A waiting slot; `take` goes on with a trial of ours that runs."""
    lease = slots.take()
    assert lease is not None
    assert not lease.adopted
    return lease


def begun(storage: Storage, slots: Slots, **changes: Any) -> Lease:
    lease = leased(slots)
    assert slots.begin(lease, {**POINT, **changes}, SPACE)
    storage.set_trial_state_values(lease.trial_id, TrialState.COMPLETE, [0.5])
    return lease


@everywhere
class TestAlike:
    def test_a_finished_trial_of_the_same_parameters(self, storage: Any, slots: Slots) -> None:
        first = begun(storage, slots)
        assert slots.alike(leased(slots), POINT, SPACE) == {first.trial_id}

    @pytest.mark.parametrize(
        "change", [{"drop": 0.10000000000000002}, {"rate": 0.4}, {"depth": 3}, {"heads": "all"}]
    )
    def test_one_parameter_makes_another_configuration(
        self, storage: Any, slots: Slots, change: dict[str, Any]
    ) -> None:
        begun(storage, slots, **change)
        assert slots.alike(leased(slots), POINT, SPACE) == frozenset()

    def test_a_step_is_the_same_however_it_was_rounded(self, storage: Any, slots: Slots) -> None:
        first = begun(storage, slots, rate=3 * 0.1)
        assert POINT["rate"] != 3 * 0.1
        assert slots.alike(leased(slots), POINT, SPACE) == {first.trial_id}
        assert configuration({**POINT, "rate": 3 * 0.1}, SPACE) == configuration(POINT, SPACE)

    def test_a_trial_that_runs(self, storage: Any, slots: Slots) -> None:
        running = leased(slots)
        assert slots.begin(running, POINT, SPACE)
        assert slots.alike(Lease(-1, 9, 1, False), POINT, SPACE) == {running.trial_id}
        assert slots.alike(running, POINT, SPACE) == frozenset(), "never alike to itself"

    def test_a_failed_trial_is_none(self, storage: Any, slots: Slots) -> None:
        lease = leased(slots)
        slots.begin(lease, POINT, SPACE)
        storage.set_trial_state_values(lease.trial_id, TrialState.FAIL)
        assert slots.alike(leased(slots), POINT, SPACE) == frozenset()

    def test_trials_of_other_tools_and_studies_are_none(
        self, storage: Any, study: optuna.Study, slots: Slots
    ) -> None:
        study.add_trial(create_trial(value=0.9, params=POINT, distributions=SPACE))
        other = optuna.create_study(study_name="other", storage=storage, direction="maximize")
        theirs = Slots(storage, other._study_id, this_process())
        theirs.set_budget(1)
        begun(storage, theirs)
        assert slots.alike(leased(slots), POINT, SPACE) == frozenset()

    def test_in_a_space_without_parameters_all_are(self, storage: Any, slots: Slots) -> None:
        first = leased(slots)
        slots.begin(first, {}, {})
        storage.set_trial_state_values(first.trial_id, TrialState.COMPLETE, [0.5])
        assert slots.alike(leased(slots), {}, {}) == {first.trial_id}


@everywhere
class TestBeginning:
    def test_a_twin_that_began_meanwhile_is_noticed(
        self, storage: Any, study: optuna.Study, slots: Slots
    ) -> None:
        first = begun(storage, slots)
        second = leased(slots)
        assert not slots.begin(second, POINT, SPACE, alike=frozenset())
        waiting = storage.get_trial(second.trial_id)
        assert (waiting.state, waiting.params) == (TrialState.WAITING, {})
        alike = slots.alike(second, POINT, SPACE)
        assert alike == {first.trial_id}
        assert slots.begin(second, POINT, SPACE, alike=alike)
        assert storage.get_trial(second.trial_id).params == POINT

    def test_what_makes_it_a_replicate_is_written_with_it(
        self, storage: Any, study: optuna.Study, slots: Slots
    ) -> None:
        lease = leased(slots)
        slots.begin(lease, POINT, SPACE, attributes={REPLICATE: 2, SEEDS: [5, 7]})
        assert storage.get_trial(lease.trial_id).user_attrs == {REPLICATE: 2, SEEDS: [5, 7]}

    def test_what_a_user_enqueued_does_not_make_it_one(
        self, storage: Any, study: optuna.Study, slots: Slots
    ) -> None:
        study.enqueue_trial(POINT, user_attrs={SEEDS: [1], "why": "to see"})
        slots.set_budget(1)
        lease = leased(slots)
        slots.begin(lease, POINT, SPACE)
        assert storage.get_trial(lease.trial_id).user_attrs == {"why": "to see"}


def trial(number: int, drop: float, replicate: int = 0, **changes: Any) -> FrozenTrial:
    space: Mapping[str, BaseDistribution] = {"drop": SPACE["drop"]}
    made = create_trial(
        value=0.5,
        params={"drop": drop},
        distributions=dict(space),
        user_attrs={REPLICATE: replicate, SEEDS: [7]} if replicate else {},
        **changes,
    )
    made.number = number
    return made


class TestOriginals:
    def test_the_first_of_the_configuration(self) -> None:
        found = [
            trial(0, 0.1),
            trial(1, 0.2),
            trial(2, 0.1, 1),
            trial(3, 0.2, 1),
            trial(4, 0.1, 2),
        ]
        assert originals(found) == {2: 0, 3: 1, 4: 0}

    def test_not_what_only_happens_to_come_first(self) -> None:
        """As after merging: the numbers follow the first file."""
        assert originals([trial(0, 0.1, 1), trial(1, 0.1)]) == {0: 1}

    def test_one_that_failed_is_no_original(self) -> None:
        failed = create_trial(state=TrialState.FAIL, params={}, distributions={})
        failed.number = 0
        assert originals([failed, trial(1, 0.1, 1)]) == {}

    def test_trials_that_merely_agree_are_no_replicates(self) -> None:
        assert originals([trial(0, 0.1), trial(1, 0.1)]) == {}
