"""Whatever workers, users and other tools do in whatever order: the promises about slots hold."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import optuna
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from postgres import Server, everywhere
from visweep.storage.engine import Storage
from visweep.storage.lease import Lease, LeaseLost
from visweep.storage.opening import open_storage
from visweep.storage.owner import Owner
from visweep.storage.slots import Slots

SPACE = {"drop": FloatDistribution(0.0, 0.3), "heads": CategoricalDistribution([2, 4, 8])}
WORKERS = ("ada", "bob")


@dataclass
class Held:
    """What a worker believes to hold."""

    worker: str
    lease: Lease


class Machine(RuleBasedStateMachine):
    new_url: Callable[[], str]

    held = Bundle("held")

    @initialize(budget=st.integers(0, 5))
    def create(self, budget: int) -> None:
        self.storage: Storage = open_storage(type(self).new_url())
        self.study_id = optuna.create_study(storage=self.storage, study_name="s")._study_id
        owners = {name: Owner(f"host of {name}", "boot", 1, "1") for name in WORKERS}
        self.slots = {n: Slots(self.storage, self.study_id, o) for n, o in owners.items()}
        self.impatient = {
            n: Slots(self.storage, self.study_id, o, lease_seconds=0.0) for n, o in owners.items()
        }
        self.current: dict[int, Held] = {}  # by trial
        self.beats: dict[int, int] = {}  # of the current lease
        # What each worker that is impatient saw of the others: generation and beats.
        self.seen: dict[str, dict[int, tuple[int, int]]] = {n: {} for n in WORKERS}
        self.curves: dict[int, dict[int, float]] = {}  # by trial
        self.foreign: set[int] = set()  # trials that another tool added
        self.closed: set[int] = set()  # slots that were given up unused
        self.ended: dict[int, TrialState] = {}
        self.budget = budget
        self._set_budget("ada", budget)

    def teardown(self) -> None:
        if hasattr(self, "storage"):
            self.storage.close()

    def trials(self) -> list[FrozenTrial]:
        return self.storage.get_all_trials(self.study_id, deepcopy=False)

    @rule(worker=st.sampled_from(WORKERS), budget=st.integers(0, 7))
    def _set_budget(self, worker: str, budget: int) -> None:
        self.slots[worker].set_budget(budget)
        self.budget = budget
        self.closed = {
            t.number
            for t in self.trials()
            if t.state == TrialState.FAIL and t.number not in self.ended
        }
        there = {t._trial_id for t in self.trials()}
        self.curves = {i: curve for i, curve in self.curves.items() if i in there}
        # Exactly so many, unless more were begun, or are leased and about to begin.
        counted = [t for t in self.ours() if t.state != TrialState.FAIL]
        bound = [t for t in counted if t.state != TrialState.WAITING or self.is_held(t)]
        assert len(counted) == max(budget, len(bound))

    def ours(self) -> list[FrozenTrial]:
        slots = self.slots["ada"].trial_ids()
        return [t for t in self.trials() if t._trial_id in slots]

    def is_held(self, trial: FrozenTrial) -> bool:
        return trial._trial_id in self.current

    @rule(target=held, worker=st.sampled_from(WORKERS))
    def take(self, worker: str) -> Held | None:
        busy = {i for i, held in self.current.items() if held.worker != worker}
        free = [t for t in self.ours() if not t.state.is_finished() and t._trial_id not in busy]
        return self._took(worker, self.slots[worker].take(), free)

    @rule(target=held, worker=st.sampled_from(WORKERS))
    def take_what_fell_silent(self, worker: str) -> Held | None:
        free = [t for t in self.ours() if not t.state.is_finished()]
        lease, expected = self.impatient[worker].take(), self._expected(worker, free)
        if lease is None:
            assert expected is None
            lease, expected = self.impatient[worker].take(), self._expected(worker, free)
        assert (lease and lease.trial_id) == expected
        return self._took(worker, lease, free)

    @rule(target=held, worker=st.sampled_from(WORKERS))
    def look_once(self, worker: str) -> Held | None:
        """Whose heart has beaten since the last look is alive, however long that was."""
        free = [t for t in self.ours() if not t.state.is_finished()]
        lease, expected = self.impatient[worker].take(), self._expected(worker, free)
        assert (lease and lease.trial_id) == expected
        return None if lease is None else self._took(worker, lease, free)

    def _expected(self, worker: str, unfinished: list[FrozenTrial]) -> int | None:
        """The trial that an impatient worker gets: those that were begun come first."""
        for trial in sorted(unfinished, key=lambda t: (t.state != TrialState.RUNNING, t.number)):
            held = self.current.get(trial._trial_id)
            if held is None or held.worker == worker:
                return trial._trial_id
            beat = held.lease.generation, self.beats[trial._trial_id]
            if self.seen[worker].get(trial._trial_id) == beat:
                return trial._trial_id
            self.seen[worker][trial._trial_id] = beat
        return None

    def _took(self, worker: str, lease: Lease | None, free: list[FrozenTrial]) -> Held | None:
        assert (lease is not None) == bool(free)
        if lease is None:
            return None
        trial = next(t for t in free if t._trial_id == lease.trial_id)
        assert trial.number == lease.number
        before = self.current.get(lease.trial_id)
        assert before is None or lease.generation > before.lease.generation
        assert lease.adopted == (trial.state == TrialState.RUNNING)
        held = Held(worker, lease)
        self.current[lease.trial_id] = held
        self.beats[lease.trial_id] = 0
        return held

    def holds(self, held: Held) -> bool:
        return self.current.get(held.lease.trial_id) is held

    @rule(held=held, drop=st.floats(0.0, 0.3), heads=st.sampled_from([2, 4, 8]))
    def begin(self, held: Held | None, drop: float, heads: int) -> None:
        if held is None or held.lease.adopted:
            return
        slots = self.slots[held.worker]
        point = {"drop": drop, "heads": heads}
        if not self.holds(held):
            with pytest.raises(LeaseLost):
                slots.begin(held.lease, point, SPACE)
        elif self.storage.get_trial(held.lease.trial_id).state == TrialState.WAITING:
            slots.begin(held.lease, point, SPACE)
            assert self.storage.get_trial(held.lease.trial_id).params == point

    @rule(held=held, epoch=st.integers(1, 3))
    def report(self, held: Held | None, epoch: int) -> None:
        if held is None:
            return
        slots, trial_id = self.slots[held.worker], held.lease.trial_id
        if self.holds(held):
            slots.renew(held.lease)
            self.beats[trial_id] += 1
            if self.storage.get_trial(trial_id).state == TrialState.WAITING:
                return  # nothing is reported of what has not begun
            with slots.fenced(held.lease):
                self.storage.set_trial_intermediate_value(trial_id, epoch, 0.5)
            self.curves.setdefault(trial_id, {})[epoch] = 0.5
        else:
            with pytest.raises(LeaseLost):
                slots.renew(held.lease)
            with slots.fenced(held.lease), pytest.raises(LeaseLost):
                self.storage.set_trial_intermediate_value(trial_id, epoch, 0.25)

    @rule(held=held)
    def start_over(self, held: Held | None) -> None:
        if held is None:
            return
        slots, lease = self.slots[held.worker], held.lease
        if self.holds(held):
            slots.start_over(lease)
            self.curves.pop(lease.trial_id, None)
        else:
            with pytest.raises(LeaseLost):
                slots.start_over(lease)

    @rule(
        held=consumes(held),
        state=st.sampled_from([TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL]),
        then_budget=st.booleans(),
    )
    def end(self, held: Held | None, state: TrialState, then_budget: bool) -> None:
        if held is None:
            return
        slots, lease = self.slots[held.worker], held.lease
        if not self.holds(held):
            with slots.fenced(lease), pytest.raises(LeaseLost):
                self.storage.set_trial_state_values(lease.trial_id, state)
            return
        if self.storage.get_trial(lease.trial_id).state == TrialState.WAITING:
            state = TrialState.FAIL  # it failed before it had parameters
        with slots.fenced(lease):
            self.storage.set_trial_state_values(lease.trial_id, state)
        slots.release(lease)
        del self.current[lease.trial_id]
        self.ended[lease.number] = state
        if state == TrialState.FAIL and then_budget:
            self._set_budget(held.worker, self.budget)

    @rule(held=consumes(held))
    def release(self, held: Held | None) -> None:
        if held is None:
            return
        self.slots[held.worker].release(held.lease)
        if self.holds(held):
            del self.current[held.lease.trial_id]

    @rule(drop=st.floats(0.0, 0.3))
    def a_user_enqueues(self, drop: float) -> None:
        study = optuna.load_study(study_name="s", storage=self.storage)
        study.enqueue_trial({"drop": drop})

    @rule(state=st.sampled_from([TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL]))
    def another_tool_adds(self, state: TrialState) -> None:
        value = 0.5 if state == TrialState.COMPLETE else None
        trial_id = self.storage.create_new_trial(
            self.study_id, create_trial(state=state, value=value)
        )
        number = self.storage.get_trial(trial_id).number
        self.foreign.add(number)
        self.ended[number] = state

    @invariant()
    def promises(self) -> None:
        if not hasattr(self, "storage"):
            return
        trials = self.trials()
        slots = self.slots["ada"].trial_ids()
        ours = [t for t in trials if t._trial_id in slots]
        assert [t.number for t in trials] == list(range(len(trials)))
        for trial in ours:  # none is half-parameterised
            if trial.state == TrialState.WAITING:
                assert trial.params == {}
            elif trial.state != TrialState.FAIL:
                assert trial.params.keys() == SPACE.keys()
        # What the holder of a lease reported is there, and nothing else is.
        for trial in trials:
            assert trial.intermediate_values == self.curves.get(trial._trial_id, {})
        # What has ended stays as it ended.
        found = {t.number: t.state for t in trials if t.state.is_finished()}
        for number in self.closed:
            assert found.pop(number) == TrialState.FAIL
        assert found == self.ended
        assert not self.foreign & {t.number for t in ours}
        left = [t for t in ours if not t.state.is_finished()]
        assert self.slots["ada"].unfinished() == len(left)


@pytest.fixture
def new_url(
    backend: str, tmp_path: Path, empty_database: Path, request: pytest.FixtureRequest
) -> Callable[[], str]:
    """Makes storages without studies."""
    made = itertools.count()

    def file() -> str:
        path = tmp_path / f"{next(made)}.db"
        shutil.copyfile(empty_database, path)
        return f"sqlite:///{path}"

    if backend == "sqlite":
        return file
    server: Server = request.getfixturevalue("postgres")
    template: str = request.getfixturevalue("prepared_database")
    return lambda: server.url(server.make_database(template))


@everywhere
def test_slots_keep_their_promises(new_url: Callable[[], str]) -> None:
    class OfThisBackend(Machine):
        pass

    OfThisBackend.new_url = staticmethod(new_url)
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        OfThisBackend,
        settings=settings(
            max_examples=15,
            stateful_step_count=30,
            deadline=None,
            phases=(Phase.reuse, Phase.generate),  # shrinking takes minutes
            suppress_health_check=list(HealthCheck),
        ),
    )
