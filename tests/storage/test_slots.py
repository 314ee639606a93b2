from __future__ import annotations

import dataclasses
import itertools
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from postgres import everywhere
from visweep.storage.budget import fixed_parameters
from visweep.storage.engine import Storage
from visweep.storage.lease import Lease, LeaseLost, read_slots
from visweep.storage.owner import Owner, this_process
from visweep.storage.slots import Slots

pytestmark = everywhere

SPACE = {"drop": FloatDistribution(0.0, 0.3), "heads": CategoricalDistribution([2, 4, 8])}
POINT = {"drop": 0.25, "heads": 4}
HERE = this_process()
ELSEWHERE = Owner("elsewhere", "its boot", 4711, "1")


@pytest.fixture
def study(storage: Storage) -> optuna.Study:
    return optuna.create_study(study_name="study", storage=storage, direction="maximize")


@pytest.fixture
def slots(storage: Storage, study: optuna.Study) -> Slots:
    return Slots(storage, study._study_id, HERE)


@pytest.fixture
def theirs(storage: Storage, study: optuna.Study) -> Slots:
    """The slots as a worker on another machine sees them."""
    return Slots(storage, study._study_id, ELSEWHERE)


def trials_of(study: optuna.Study) -> list[FrozenTrial]:
    """Past Optuna's cache, which never forgets a trial that was removed."""
    storage: Storage = study._storage._backend  # type: ignore[attr-defined]
    return storage.get_all_trials(study._study_id)


def states(study: optuna.Study) -> list[str]:
    return [t.state.name for t in trials_of(study)]


def taken(slots: Slots) -> Lease:
    lease = slots.take()
    assert lease is not None
    return lease


def started(slots: Slots) -> Lease:
    lease = taken(slots)
    slots.begin(lease, POINT, SPACE)
    return lease


def finish(storage: Storage, slots: Slots, state: TrialState = TrialState.COMPLETE) -> Lease:
    lease = started(slots)
    values = [0.5] if state == TrialState.COMPLETE else None
    storage.set_trial_state_values(lease.trial_id, state, values)
    slots.release(lease)
    return lease


class TestBudget:
    def test_it_makes_so_many_waiting_trials(self, slots: Slots, study: optuna.Study) -> None:
        slots.set_budget(5)
        assert states(study) == ["WAITING"] * 5
        assert [t.number for t in trials_of(study)] == list(range(5))
        assert slots.unfinished() == 5
        slots.set_budget(5)
        assert states(study) == ["WAITING"] * 5

    def test_the_first_of_a_new_study_gets_its_parameters(
        self, slots: Slots, study: optuna.Study
    ) -> None:
        slots.set_budget(3, first=POINT)
        slots.set_budget(5, first={"drop": 0.0, "heads": 2})
        assert [fixed_parameters(t) for t in trials_of(study)] == [POINT, {}, {}, {}, {}]

    def test_a_larger_one_adds_the_difference(
        self, slots: Slots, study: optuna.Study, storage: Storage
    ) -> None:
        slots.set_budget(3)
        finish(storage, slots)
        slots.set_budget(5)
        assert states(study) == ["COMPLETE"] + ["WAITING"] * 4

    def test_a_smaller_one_removes_waiting_trials_only(
        self, slots: Slots, study: optuna.Study, storage: Storage
    ) -> None:
        slots.set_budget(6)
        finish(storage, slots)
        running = started(slots)
        slots.set_budget(4)
        assert states(study) == ["COMPLETE", "RUNNING", "WAITING", "WAITING"]
        slots.set_budget(1)
        assert states(study) == ["COMPLETE", "RUNNING"]
        slots.renew(running)
        slots.set_budget(3)
        assert [t.number for t in trials_of(study)] == [0, 1, 2]
        assert states(study) == ["COMPLETE", "RUNNING", "WAITING"]

    def test_a_trial_that_is_leased_but_not_begun_is_not_removed(
        self, slots: Slots, theirs: Slots, study: optuna.Study
    ) -> None:
        slots.set_budget(2)
        lease = taken(theirs)
        slots.set_budget(1)
        slots.set_budget(1)
        assert [t._trial_id for t in trials_of(study)] == [lease.trial_id]
        theirs.begin(lease, POINT, SPACE)

    def test_a_removed_trial_leaves_nothing_that_its_successor_would_inherit(
        self, slots: Slots, study: optuna.Study, backend: str
    ) -> None:
        slots.set_budget(1)
        removed = trials_of(study)[0]._trial_id
        study._storage.set_trial_user_attr(removed, "who", "me")
        study._storage.set_trial_system_attr(removed, "asked", 1)
        slots.set_budget(0)
        slots.set_budget(2)
        successors = trials_of(study)
        if backend == "sqlite":
            assert successors[0]._trial_id == removed, "ids are not reused: this proves nothing"
        assert [(t.user_attrs, t.system_attrs) for t in successors] == [({}, {})] * 2

    def test_in_the_middle_a_waiting_trial_is_closed_instead(
        self, slots: Slots, study: optuna.Study
    ) -> None:
        # Optuna numbers a trial by how many there are: were one removed, two would share a number.
        slots.set_budget(3)
        study.add_trial(create_trial(value=0.9, params=POINT, distributions=SPACE))
        slots.set_budget(1)
        assert states(study) == ["WAITING", "FAIL", "FAIL", "COMPLETE"]
        assert slots.unfinished() == 1
        slots.set_budget(3)
        assert [t.number for t in trials_of(study)] == list(range(6))
        assert states(study)[4:] == ["WAITING", "WAITING"]
        assert slots.unfinished() == 3

    def test_enqueued_trials_take_slots(self, slots: Slots, study: optuna.Study) -> None:
        slots.set_budget(4, first={"drop": 0.0, "heads": 2})
        study.enqueue_trial(POINT)
        study.enqueue_trial({"drop": 0.125})
        slots.set_budget(4)
        waiting = [t for t in trials_of(study) if t.state == TrialState.WAITING]
        assert [fixed_parameters(t) for t in waiting] == [
            {"drop": 0.0, "heads": 2},
            {},
            POINT,
            {"drop": 0.125},
        ]
        assert slots.unfinished() == 4

    def test_a_budget_below_the_enqueued_ones_keeps_them_without_a_slot(
        self, slots: Slots, study: optuna.Study
    ) -> None:
        slots.set_budget(2, first=POINT)
        study.enqueue_trial({"drop": 0.125})
        slots.set_budget(1)
        waiting = [t for t in trials_of(study) if t.state == TrialState.WAITING]
        assert [fixed_parameters(t) for t in waiting] == [POINT, {"drop": 0.125}]
        assert slots.unfinished() == 1
        slots.set_budget(2)
        assert slots.unfinished() == 2
        assert states(study) == ["WAITING", "FAIL", "WAITING"]

    def test_trials_of_other_tools_are_kept_and_not_counted(
        self, slots: Slots, study: optuna.Study, storage: Storage
    ) -> None:
        slots.set_budget(2)
        for value in (0.1, 0.2, 0.3):
            study.add_trial(create_trial(value=value, params=POINT, distributions=SPACE))
        finish(storage, slots)
        finish(storage, slots)
        assert slots.take() is None
        assert slots.unfinished() == 0
        assert states(study).count("COMPLETE") == 5
        ours = slots.trial_ids()
        assert [t.number for t in trials_of(study) if t._trial_id in ours] == [0, 1]
        slots.set_budget(3)
        assert slots.unfinished() == 1

    def test_a_failed_trial_frees_its_slot(
        self, slots: Slots, study: optuna.Study, storage: Storage
    ) -> None:
        slots.set_budget(2)
        finish(storage, slots, TrialState.FAIL)
        slots.set_budget(2)
        assert states(study) == ["FAIL", "WAITING", "WAITING"]
        finish(storage, slots)
        finish(storage, slots, TrialState.PRUNED)
        slots.set_budget(2)
        assert states(study) == ["FAIL", "COMPLETE", "PRUNED"]

    def test_studies_of_one_storage_have_slots_of_their_own(
        self, slots: Slots, storage: Storage
    ) -> None:
        other = optuna.create_study(study_name="other", storage=storage)
        their_slots = Slots(storage, other._study_id, HERE)
        slots.set_budget(2)
        their_slots.set_budget(3)
        slots.set_budget(1)
        assert (slots.unfinished(), their_slots.unfinished()) == (1, 3)
        assert [t.number for t in trials_of(other)] == [0, 1, 2]

    def test_whose_trials_have_slots_is_known_anew_when_they_change(
        self, slots: Slots, theirs: Slots, study: optuna.Study, storage: Storage
    ) -> None:
        def wanted() -> set[int]:
            return {t._trial_id for t in trials_of(study) if t.state != TrialState.FAIL}

        assert slots.trial_ids() == frozenset()
        for budget in (3, 5, 2, 4):
            theirs.set_budget(budget)
            assert slots.trial_ids() == wanted()
            assert len(slots.trial_ids()) == budget
        study.add_trial(create_trial(value=0.5))
        before = slots.trial_ids()
        assert len(before) == 4, "another tool's has none"
        # One goes and another comes, so that there are as many as before.
        added = trials_of(study)[-1]._trial_id
        with storage.transaction() as connection:
            connection.exec_driver_sql(
                f"UPDATE visweep_slots SET trial_id = {added} WHERE trial_id = {min(before)}"
            )
        assert slots.trial_ids() == before - {min(before)} | {added}

    def test_slots_of_a_study_that_another_tool_deleted_do_not_come_back(
        self, slots: Slots, study: optuna.Study, storage: Storage, backend: str
    ) -> None:
        slots.set_budget(4)
        theirs = Slots(storage, study._study_id, ELSEWHERE)
        taken(theirs)
        optuna.delete_study(study_name="study", storage=storage)
        again = optuna.create_study(study_name="study", storage=storage)
        if backend == "sqlite":
            assert again._study_id == study._study_id, "ids are not reused: this proves nothing"
        anew = Slots(storage, again._study_id, HERE)
        anew.set_budget(2)
        assert anew.unfinished() == 2
        assert len(anew.trial_ids()) == 2
        assert taken(anew).generation == 1

    def test_a_thousand_take_a_moment(self, slots: Slots, study: optuna.Study) -> None:
        slots.set_budget(1000)
        assert slots.unfinished() == 1000
        slots.set_budget(10)
        assert states(study) == ["WAITING"] * 10


class TestLease:
    def test_waiting_trials_are_leased_in_order_and_once(
        self, slots: Slots, theirs: Slots
    ) -> None:
        slots.set_budget(3)
        leases = [taken(slots), taken(theirs)]
        slots.begin(leases[0], POINT, SPACE)
        theirs.begin(leases[1], POINT, SPACE)
        assert [(x.number, x.generation, x.adopted) for x in leases] == [
            (0, 1, False),
            (1, 1, False),
        ]
        assert taken(theirs).number == 1  # its own again: it asks for a slot, so it has left it
        assert theirs.unfinished() == 3

    def test_parameters_and_state_are_written_together(
        self, slots: Slots, study: optuna.Study
    ) -> None:
        slots.set_budget(1)
        lease = taken(slots)
        assert states(study) == ["WAITING"]
        with pytest.raises(KeyError):
            slots.begin(lease, {"drop": 0.25}, SPACE)
        trial = trials_of(study)[0]
        assert (trial.state, trial.params) == (TrialState.WAITING, {})
        slots.begin(lease, POINT, SPACE)
        trial = trials_of(study)[0]
        assert (trial.state, trial.params) == (TrialState.RUNNING, POINT)
        assert trial.distributions == SPACE
        assert trial.datetime_start is not None
        assert abs((trial.datetime_start - trial.datetime_start.now()).total_seconds()) < 60

    def test_times_are_right_where_clocks_are_not_set_to_utc(
        self, slots: Slots, study: optuna.Study, storage: Storage, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import time

        monkeypatch.setenv("TZ", "America/New_York")
        time.tzset()
        try:
            slots.set_budget(1)
            finish(storage, slots)
            duration = study.get_trials()[0].duration
        finally:
            monkeypatch.undo()
            time.tzset()
        assert duration is not None
        assert 0 <= duration.total_seconds() < 60

    def test_a_waiting_trial_that_has_parameters_gets_ours(
        self, slots: Slots, study: optuna.Study
    ) -> None:
        study.add_trial(create_trial(state=TrialState.WAITING, params=POINT, distributions=SPACE))
        slots.set_budget(1)
        slots.begin(taken(slots), {"drop": 0.0, "heads": 8}, SPACE)
        assert trials_of(study)[0].params == {"drop": 0.0, "heads": 8}

    def test_a_released_trial_goes_on_first_under_a_higher_generation(
        self, slots: Slots, theirs: Slots, storage: Storage, study: optuna.Study
    ) -> None:
        slots.set_budget(3)
        started(theirs)
        lease = started(slots)
        slots.release(lease)
        again = taken(Slots(storage, study._study_id, Owner("a third", "its boot", 1, "1")))
        assert (again.number, again.generation, again.adopted) == (lease.number, 2, True)

    def test_what_another_tool_took_and_left_is_begun_anew(
        self, slots: Slots, study: optuna.Study
    ) -> None:
        slots.set_budget(1)
        study.ask({"drop": SPACE["drop"]})  # as another tool might, and then end
        assert states(study) == ["RUNNING"]
        lease = taken(slots)
        assert not lease.adopted
        slots.begin(lease, POINT, SPACE)
        assert trials_of(study)[0].params == POINT

    def test_a_trial_that_starts_over_forgets_its_reports(
        self, slots: Slots, study: optuna.Study, storage: Storage
    ) -> None:
        slots.set_budget(1, first=POINT)
        lease = started(slots)
        storage.set_trial_intermediate_value(lease.trial_id, 1, 0.5)
        storage.set_trial_system_attr(lease.trial_id, "completed_rung_0", 0.5)
        storage.set_trial_system_attr(lease.trial_id, "completedXrung_0", 0.5)
        slots.start_over(lease)
        trial = trials_of(study)[0]
        assert trial.intermediate_values == {}
        assert trial.system_attrs == {"fixed_params": POINT, "completedXrung_0": 0.5}
        assert trial.params == POINT

    def test_nothing_is_free_while_others_work(self, slots: Slots, theirs: Slots) -> None:
        slots.set_budget(1)
        started(theirs)
        assert slots.take() is None
        assert slots.unfinished() == 1


class TestAdoption:
    def test_a_living_process_of_this_machine_keeps_its_trial(
        self, slots: Slots, url: str, tmp_path: Path, launcher: Any, wait_for: Any
    ) -> None:
        slots.set_budget(2)
        child = self.child(launcher, tmp_path, url, wait_for)
        lease = taken(slots)
        assert lease.number == 1
        slots.begin(lease, POINT, SPACE)
        slots.release(lease)
        assert taken(slots).number == 1
        child.kill()
        # Its lease is not waited for.
        adopted = taken(slots)
        assert (adopted.number, adopted.generation, adopted.adopted) == (0, 2, True)

    def child(self, launcher: Any, tmp_path: Path, url: str, wait_for: Any) -> Any:
        script = tmp_path / "work.py"
        script.write_text(
            "import sys, time\n"
            "from visweep.storage.opening import open_storage\n"
            "from visweep.storage.owner import this_process\n"
            "from visweep.storage.slots import Slots\n"
            "slots = Slots(open_storage(sys.argv[1]), 1, this_process())\n"
            "slots.begin(slots.take(), {}, {})\n"
            "print('begun', flush=True)\n"
            "time.sleep(600)\n"
        )
        child = launcher.start(script, url)
        wait_for(lambda: "begun" in child.stdout, about=child)
        return child

    def test_a_silent_lease_from_elsewhere_is_dead_after_its_time(
        self, storage: Storage, study: optuna.Study, theirs: Slots
    ) -> None:
        import time

        slots = Slots(storage, study._study_id, HERE, lease_seconds=0.4)
        theirs.set_budget(1)
        lease = started(theirs)
        time.sleep(0.5)
        assert slots.take() is None  # however old it is: its silence is timed by who watches it
        time.sleep(0.2)
        assert slots.take() is None
        theirs.renew(lease)
        time.sleep(0.3)
        assert slots.take() is None  # it was heard of
        time.sleep(0.3)
        assert slots.take() is None
        time.sleep(0.2)
        adopted = taken(slots)
        assert (adopted.trial_id, adopted.adopted) == (lease.trial_id, True)

    def test_workers_lost_with_one_trial_are_counted_until_it_gets_further(
        self, storage: Storage, study: optuna.Study
    ) -> None:
        """Each taker is a process of an earlier start of this machine: gone as it takes."""

        def lost_after(epochs: int) -> int:
            owner = dataclasses.replace(HERE, boot=f"start {next(starts)}")
            slots = Slots(storage, study._study_id, owner)
            lease = taken(slots)
            if not lease.adopted:
                slots.begin(lease, {}, {})
            if epochs:
                storage.set_trial_intermediate_value(lease.trial_id, epochs, 0.5)
            return lease.lost

        starts = itertools.count()
        Slots(storage, study._study_id, this_process()).set_budget(1)
        assert [lost_after(e) for e in (0, 0, 0)] == [0, 1, 2]
        assert [lost_after(e) for e in (1, 0, 2, 2)] == [3, 1, 2, 1]
        mine = Slots(storage, study._study_id, this_process())
        lease = taken(mine)
        assert lease.lost == 2
        mine.release(lease)
        # It was given back: nobody was lost with it.
        assert taken(mine).lost == 0

    def test_the_holder_of_an_adopted_lease_can_write_nothing(
        self, storage: Storage, study: optuna.Study, theirs: Slots
    ) -> None:
        impatient = Slots(storage, study._study_id, HERE, lease_seconds=0.0)
        theirs.set_budget(1)
        lease = started(theirs)
        assert impatient.take() is None
        adopted = taken(impatient)
        before = trials_of(study)[0]
        for write in (
            lambda: theirs.renew(lease),
            lambda: theirs.begin(lease, {"drop": 0.0, "heads": 2}, SPACE),
            lambda: theirs.start_over(lease),
            lambda: storage.set_trial_intermediate_value(lease.trial_id, 1, 0.5),
            lambda: storage.set_trial_attributes(lease.trial_id, {"k": 1}),
            lambda: storage.set_trial_system_attr(lease.trial_id, "k", 1),
            lambda: study.tell(0, 0.5),
        ):
            with theirs.fenced(lease), pytest.raises(LeaseLost, match="adopted by another worker"):
                write()
        theirs.release(lease)  # not its own any more, so this gives nothing back
        assert trials_of(study)[0] == before
        with impatient.fenced(adopted):
            impatient.renew(adopted)
            storage.set_trial_intermediate_value(lease.trial_id, 1, 0.5)
        assert trials_of(study)[0].intermediate_values == {1: 0.5}

    def test_an_earlier_lease_of_the_same_worker_is_fenced_too(self, slots: Slots) -> None:
        slots.set_budget(1)
        first = started(slots)
        second = taken(slots)
        assert (second.generation, second.adopted) == (2, True)
        with pytest.raises(LeaseLost):
            slots.renew(first)
        slots.renew(second)

    def test_a_trial_that_another_tool_finished_or_deleted_is_lost(
        self, slots: Slots, study: optuna.Study, storage: Storage
    ) -> None:
        slots.set_budget(2)
        lease = started(slots)
        study.tell(0, 0.5)
        with slots.fenced(lease), pytest.raises(LeaseLost, match="finished by another tool"):
            storage.set_trial_user_attr(lease.trial_id, "k", 1)
        lease = started(slots)
        optuna.delete_study(study_name="study", storage=storage)
        with slots.fenced(lease), pytest.raises(LeaseLost, match="deleted"):
            storage.set_trial_user_attr(lease.trial_id, "k", 1)

    def test_an_owner_from_an_earlier_start_of_this_machine_is_gone(
        self, storage: Storage, study: optuna.Study, slots: Slots
    ) -> None:
        slots.set_budget(1)
        started(Slots(storage, study._study_id, dataclasses.replace(HERE, boot="earlier")))
        assert taken(slots).adopted


class TestFinishing:
    def test_all_that_is_said_of_a_trial_and_its_slot_go_together(
        self, slots: Slots, storage: Storage, study: optuna.Study, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        slots.set_budget(1)
        lease = started(slots)
        storage.set_trial_attributes(lease.trial_id, {"ended": "not yet", "kept": 1})

        def broken(*_: object) -> None:
            raise RuntimeError

        with monkeypatch.context() as patched:
            patched.setattr(slots, "_release", broken)
            with pytest.raises(RuntimeError):
                slots.finish(lease, TrialState.COMPLETE, 0.5, {"ended": "completed"})
        (unfinished,) = trials_of(study)
        assert (unfinished.state, unfinished.value) == (TrialState.RUNNING, None)
        assert unfinished.user_attrs == {"ended": "not yet", "kept": 1}
        slots.renew(lease)
        slots.finish(lease, TrialState.COMPLETE, 0.5, {"ended": "completed"})
        (trial,) = trials_of(study)
        assert (trial.state, trial.value) == (TrialState.COMPLETE, 0.5)
        assert trial.user_attrs == {"ended": "completed", "kept": 1}
        assert trial.params == POINT
        with storage.reading() as connection:
            (slot,) = read_slots(connection, study._study_id)
        assert (slot.owner, slot.generation) == (None, lease.generation)

    @pytest.mark.parametrize(
        ("state", "value"),
        [(TrialState.PRUNED, 0.25), (TrialState.PRUNED, None), (TrialState.FAIL, None)],
    )
    def test_it_ends_as_if_optuna_had_told_so(
        self, slots: Slots, study: optuna.Study, state: TrialState, value: float | None
    ) -> None:
        slots.set_budget(1)
        before = datetime.now()
        slots.finish(started(slots), state, value, {})
        (trial,) = trials_of(study)
        assert (trial.state, trial.value, trial.user_attrs) == (state, value, {})
        assert trial.datetime_start is not None
        assert trial.datetime_complete is not None
        assert before <= trial.datetime_start <= trial.datetime_complete <= datetime.now()

    def test_who_was_adopted_finishes_nothing(
        self, slots: Slots, storage: Storage, study: optuna.Study
    ) -> None:
        impatient = Slots(storage, study._study_id, ELSEWHERE, lease_seconds=0.0)
        slots.set_budget(1)
        lease = started(slots)
        assert impatient.take() is None
        adopted = taken(impatient)
        with pytest.raises(LeaseLost, match="adopted by another worker"):
            slots.finish(lease, TrialState.COMPLETE, 0.5, {"ended": "completed"})
        assert states(study) == ["RUNNING"]
        impatient.finish(adopted, TrialState.COMPLETE, 0.75, {})
        with pytest.raises(LeaseLost, match="adopted by another worker"):
            slots.finish(lease, TrialState.COMPLETE, 0.75, {})
        assert [t.value for t in trials_of(study)] == [0.75]

    def test_what_was_finished_or_given_back_is_not_finished_again(
        self, slots: Slots, storage: Storage, study: optuna.Study
    ) -> None:
        slots.set_budget(1)
        given_back = started(slots)
        slots.release(given_back)
        with pytest.raises(LeaseLost, match="adopted by another worker"):
            slots.finish(given_back, TrialState.COMPLETE, 0.5, {})
        assert states(study) == ["RUNNING"]
        told = taken(slots)
        storage.set_trial_state_values(told.trial_id, TrialState.COMPLETE, [0.5])
        with pytest.raises(LeaseLost, match="finished by another tool"):
            slots.finish(told, TrialState.COMPLETE, 0.5, {"ended": "completed"})
        (trial,) = trials_of(study)
        assert (trial.state, trial.user_attrs) == (TrialState.COMPLETE, {})


def test_optunas_own_tools_show_what_is_left(slots: Slots, storage: Storage, url: str) -> None:
    slots.set_budget(3)
    finish(storage, slots)
    optuna_command = Path(sys.executable).with_name("optuna")
    shown = subprocess.run(
        [optuna_command, "trials", "--storage", url, "--study-name", "study"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert shown.count("COMPLETE") == 1
    assert shown.count("WAITING") == 2


def test_directions_do_not_matter(storage: Storage) -> None:
    study_id = storage.create_new_study([StudyDirection.MINIMIZE], "smallest")
    slots = Slots(storage, study_id, HERE)
    slots.set_budget(1)
    assert finish(storage, slots).number == 0
