"""What becomes of a proposal that was tried already, over spaces that are soon exhausted."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState

from proposing import proposal_for
from visweep.config import TrainConfig, to_json
from visweep.errors import SpecificationMismatch
from visweep.search.duplicates import DUPLICATES, trained_as
from visweep.search.interrupt import Interrupt
from visweep.search.seeds import new_seeds
from visweep.search.study import open_study
from visweep.search.watch import TrialView, Watcher
from visweep.search.worker import Trainer, Worker
from visweep.storage.owner import Owner
from visweep.storage.replicates import REPLICATE, SEEDS, configuration, originals
from visweep.storage.slots import Slots
from visweep.storage.specification import BRANCH
from visweep.training.results import EpochResult, FitResult

MakeSweep = Callable[..., Any]

FOUR = {
    "patch_size": CategoricalDistribution([8, 16]),
    "num_heads": CategoricalDistribution([1, 2]),
}
TWELVE = {**FOUR, "depth": IntDistribution(1, 3)}
ONE = {"depth": CategoricalDistribution([1])}
BASELINE = {"patch_size": 16, "num_heads": 2}


class HashTrainer(Trainer):
    """Trains nothing: a result is a hash of the configuration and its seeds."""

    device, threads = "cpu", 1

    def __init__(self) -> None:
        self.trained: list[tuple[int, ...]] = []
        self.failures = 0

    def fit(self, model: Any, train: TrainConfig, *, on_epoch: Any, checkpoint: Path) -> FitResult:
        self.trained.append(train.seeds)
        if self.failures:
            self.failures -= 1
            raise RuntimeError("no luck")
        described = json.dumps([to_json(model), to_json(train)], sort_keys=True).encode()
        accuracy = int.from_bytes(hashlib.sha256(described).digest()[:4], "little") / 2**32
        history = (EpochResult(1, (1.0,), (1.0,), (accuracy,), 0.0, 0.0, 1),)
        on_epoch(history[0])
        return FitResult(history, "completed", (0.5,), 1, 1, model)


@pytest.fixture
def quick(sweep: MakeSweep) -> MakeSweep:
    """As `sweep`, but training takes no time."""

    def make(budget: int, *, trainer: HashTrainer | None = None, **changes: Any) -> Any:
        made = sweep(budget, **{"sampler": "random", "train": {"epochs": 1}, **changes})
        made.worker = Worker(made.opened, trainer or HashTrainer(), made.heard, made.interrupt)
        return made

    return make


def point_of(trial: FrozenTrial) -> str:
    return configuration(trial.params, trial.distributions)


def seeds_of(trial: FrozenTrial) -> tuple[int, ...]:
    return tuple(trial.user_attrs.get(SEEDS, ()))


def decided(trials: list[FrozenTrial]) -> list[Any]:
    return [(t.params, t.user_attrs.get(REPLICATE), seeds_of(t), t.value) for t in trials]


class TestReplicate:
    def test_each_is_trained_with_seeds_of_its_own(self, quick: MakeSweep) -> None:
        done = quick(10, space=FOUR, train={"epochs": 1, "seeds": (0, 1)}).run()
        assert [t.state for t in done.trials] == [TrialState.COMPLETE] * 10
        seen: Counter[str] = Counter()
        for trial, trained in zip(done.trials, done.worker.trainer.trained, strict=True):
            times = seen[point_of(trial)]
            seen[point_of(trial)] += 1
            if times == 0:
                assert REPLICATE not in trial.user_attrs
                assert trained == (0, 1)
            else:
                assert trial.user_attrs[REPLICATE] == times
                assert trained == seeds_of(trial)
        replicates = [seeds_of(t) for t in done.trials if seeds_of(t)]
        every = [seed for seeds in replicates for seed in seeds]
        assert len(replicates) >= 6
        assert len(set(every)) == len(every) == 2 * len(replicates)
        assert not {0, 1} & set(every)
        assert len({t.value for t in done.trials}) == 10, "results of their own"

    def test_it_is_the_default(self, quick: MakeSweep) -> None:
        assert quick(1).opened.specification.duplicates == "replicate"

    def test_real_training_differs(self, sweep: MakeSweep) -> None:
        done = sweep(3, space=ONE, sampler="random", train={"epochs": 1}).run()
        assert originals(done.trials) == {1: 0, 2: 0}
        losses = {t.user_attrs["val_loss"] for t in done.trials}
        assert len(losses) == 3
        for trial in done.trials:
            _, train = trained_as(done.opened.specification, trial)
            assert train.seeds == (seeds_of(trial) or (0,))

    def test_a_continuous_space_has_none(self, quick: MakeSweep) -> None:
        done = quick(6).run()
        assert not any(seeds_of(t) for t in done.trials)


class TestRun:
    def test_the_same_seeds_give_the_same_result(self, sweep: MakeSweep) -> None:
        done = sweep(3, space=ONE, sampler="random", train={"epochs": 2}, duplicates="run").run()
        assert len(done.trials) == 3
        assert len({tuple(t.intermediate_values.values()) for t in done.trials}) == 1
        assert len({t.user_attrs["val_loss"] for t in done.trials}) == 1
        assert not any({REPLICATE, SEEDS} & t.user_attrs.keys() for t in done.trials)
        assert done.heard.notes == []


class TestSkip:
    @pytest.mark.parametrize("sampler", ["random", "tpe", "qmc", "cmaes"])
    def test_every_point_is_tried_once_first(self, quick: MakeSweep, sampler: str) -> None:
        done = quick(12, space=TWELVE, sampler=sampler, duplicates="skip").run()
        assert [t.state for t in done.trials] == [TrialState.COMPLETE] * 12
        assert len({point_of(t) for t in done.trials}) == 12
        assert not any(seeds_of(t) for t in done.trials)
        assert done.heard.notes == []

    def test_an_exhausted_space_is_replicated_and_that_is_said_once(
        self, quick: MakeSweep
    ) -> None:
        done = quick(10, space=FOUR, duplicates="skip").run()
        assert [t.state for t in done.trials] == [TrialState.COMPLETE] * 10
        assert len({point_of(t) for t in done.trials[:4]}) == 4
        assert all(seeds_of(t) for t in done.trials[4:])
        (note,) = done.heard.notes
        assert note.startswith("all 4 points of the space have been tried: trial 4 and later")

    def test_it_is_not_said_again_after_a_pause(self, quick: MakeSweep) -> None:
        assert len(quick(6, space=FOUR, duplicates="skip").run().heard.notes) == 1
        assert quick(8, space=FOUR, duplicates="skip").run().heard.notes == []

    def test_a_sampler_that_insists_is_passed_over(
        self, quick: MakeSweep, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Its proposals are the same with every seed, as those of a model may be."""

        class Insisting(optuna.samplers.RandomSampler):
            def sample_independent(self, study: Any, trial: Any, name: str, among: Any) -> Any:
                return among.low

        monkeypatch.setattr("visweep.search.samplers.SAMPLERS", {"random": lambda *_: Insisting()})
        space = {"depth": IntDistribution(1, 4)}
        done = quick(4, space=space, duplicates="skip").run()
        assert sorted(t.params["depth"] for t in done.trials) == [1, 2, 3, 4]
        beside = {**space, "drop": FloatDistribution(0.0, 0.5)}
        done = quick(3, name="beside", space=beside, duplicates="skip").run()
        assert len({point_of(t) for t in done.trials}) == 3

    def test_a_failed_trial_may_be_tried_again(self, quick: MakeSweep) -> None:
        trainer = HashTrainer()
        trainer.failures = 1
        done = quick(4, space=FOUR, duplicates="skip", trainer=trainer).run()
        failed, *finished = done.trials
        assert failed.state == TrialState.FAIL
        assert len({point_of(t) for t in finished}) == 4
        assert set(trainer.trained) == {(0,)}


class TestEnqueued:
    def enqueued(self, quick: MakeSweep, mode: str, point: dict[str, Any]) -> list[FrozenTrial]:
        first = quick(2, space=FOUR, duplicates=mode).run()
        first.opened.study.enqueue_trial(point)
        done = quick(3, space=FOUR, duplicates=mode).run()
        trials: list[FrozenTrial] = done.trials
        assert trials[0].params == BASELINE
        return trials

    @pytest.mark.parametrize("mode", ["replicate", "skip"])
    def test_a_whole_point_is_run_as_asked(self, quick: MakeSweep, mode: str) -> None:
        last = self.enqueued(quick, mode, BASELINE)[2]
        assert last.params == BASELINE
        assert last.user_attrs[REPLICATE] == 1

    def test_with_the_seeds_of_the_study_under_run(self, quick: MakeSweep) -> None:
        trials = self.enqueued(quick, "run", BASELINE)
        assert trials[2].params == BASELINE
        assert trials[2].value == trials[0].value
        assert not seeds_of(trials[2])

    def test_a_part_of_a_point_stays_as_asked(self, quick: MakeSweep) -> None:
        part = {"patch_size": 16}
        done = quick(1, space=FOUR, duplicates="skip").run()
        for _ in range(3):
            done.opened.study.enqueue_trial(part)
        done = quick(4, space=FOUR, duplicates="skip").run()
        assert all(t.params["patch_size"] == 16 for t in done.trials)
        assert sorted(t.params["num_heads"] for t in done.trials[:2]) == [1, 2]
        assert all(seeds_of(t) for t in done.trials[2:]), "nothing new was left of that part"
        assert done.heard.notes == []


class TestSideBySide:
    def test_a_trial_that_runs_counts(self, quick: MakeSweep) -> None:
        made = quick(2, space=ONE)
        elsewhere = Owner("elsewhere", "its boot", 4711, "1")
        theirs = Slots(made.opened.storage, made.opened.study_id, elsewhere)
        lease = theirs.take()
        assert lease is not None
        assert theirs.begin(lease, {"depth": 1}, ONE)
        mine = made.opened.slots.take()
        assert mine is not None
        assert proposal_for(made.opened, mine).attributes[REPLICATE] == 1

    def test_two_that_propose_at_once_do_not_train_the_same(self, quick: MakeSweep) -> None:
        made = quick(2, space=ONE)
        elsewhere = Owner("elsewhere", "its boot", 4711, "1")
        theirs = replace(
            made.opened, slots=Slots(made.opened.storage, made.opened.study_id, elsewhere)
        )
        leases = made.opened.slots.take(), theirs.slots.take()
        proposals = [
            (opened, lease, proposal_for(opened, lease))
            for opened, lease in zip((made.opened, theirs), leases, strict=True)
        ]
        begun = [
            opened.slots.begin(lease, p.parameters, ONE, alike=p.alike, attributes=p.attributes)
            for opened, lease, p in proposals
        ]
        assert begun == [True, False]
        again = proposal_for(theirs, leases[1])
        assert again.attributes[REPLICATE] == 1

    def test_the_number_of_one_that_failed_is_free_again(self, quick: MakeSweep) -> None:
        """The highest number would be given twice, if they were only counted."""
        made = quick(4, space=ONE)
        storage = made.opened.storage
        leases = []
        for pid in range(3):
            owner = Owner("elsewhere", "its boot", pid, "1")
            theirs = replace(made.opened, slots=Slots(storage, made.opened.study_id, owner))
            lease = theirs.slots.take()
            assert lease is not None
            found = proposal_for(theirs, lease)
            assert theirs.slots.begin(lease, found.parameters, ONE, attributes=found.attributes)
            leases.append(lease)
        storage.set_trial_state_values(leases[1].trial_id, TrialState.FAIL)
        mine = made.opened.slots.take()
        assert mine is not None
        again = proposal_for(made.opened, mine)
        assert again.attributes == {
            name: storage.get_trial(leases[1].trial_id).user_attrs[name]
            for name in (REPLICATE, SEEDS)
        }

    def test_copies_that_go_on_apart_train_different_replicates(self, quick: MakeSweep) -> None:
        here, there = quick(2, space=ONE), quick(2, space=ONE, name="copy")
        there.opened.study.set_user_attr(BRANCH, "another machine's")
        assert seeds_of(here.run().trials[1]) != seeds_of(there.run().trials[1])


class TestResuming:
    @pytest.mark.parametrize("mode", DUPLICATES)
    def test_a_trial_that_is_adopted_keeps_its_seeds(self, sweep: MakeSweep, mode: str) -> None:
        options = {"space": FOUR, "sampler": "random", "duplicates": mode, "train": {"epochs": 2}}
        whole = sweep(6, name="whole", **options).run()
        stops = 0
        while True:
            part = sweep(6, name="parts", **options)
            heard, interrupt = part.heard, part.interrupt

            def stop(
                trial: TrialView, heard: Any = heard, interrupt: Interrupt = interrupt
            ) -> None:
                # Within a trial, after its first epoch; each session gets one trial further.
                if len(heard.epochs) > 1 and len(trial.curve) == 1:
                    interrupt.ask("interrupted")

            heard.on_epoch = stop
            if not part.run().interrupt.reason:
                break
            stops += 1
        assert stops >= 4
        assert decided(part.trials) == decided(whole.trials)
        assert [t.intermediate_values for t in part.trials] == [
            t.intermediate_values for t in whole.trials
        ]

    def test_it_is_part_of_what_a_study_is(self, quick: MakeSweep) -> None:
        quick(1)
        with pytest.raises(SpecificationMismatch, match="duplicates was 'replicate', now 'skip'"):
            quick(1, duplicates="skip")


@pytest.mark.slow
@settings(
    max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    mode=st.sampled_from(DUPLICATES),
    sampler=st.sampled_from(["random", "tpe", "qmc"]),
    sizes=st.lists(st.integers(1, 3), min_size=1, max_size=2),
    budget=st.integers(1, 8),
    seed=st.integers(0, 2**20),
)
def test_the_laws(
    mode: str,
    sampler: str,
    sizes: list[int],
    budget: int,
    seed: int,
    storage: Any,
    specification: Any,
) -> None:
    names = ("patch_size", "depth")
    choices = ([8, 16, 32], [1, 2, 3])
    space = {
        name: CategoricalDistribution(every[:size])
        for name, every, size in zip(names, choices, sizes, strict=False)
    }
    spec = replace(
        specification,
        space=space,
        model=specification.model.replace(patch_size=8),
        train=specification.train.replace(epochs=1),
        sampler=sampler,
        seed=seed,
        duplicates=mode,
    )
    outcomes = []
    for name in ("one", "two"):
        opened = open_study(storage, name, spec, budget)
        trainer = HashTrainer()
        Worker(opened, trainer, Watcher(), Interrupt()).run()
        trials = opened.trials()
        outcomes.append(decided(trials))
        optuna.delete_study(study_name=opened.name, storage=storage)
    assert outcomes[0] == outcomes[1], "replayed"
    assert len(trials) == budget
    points = [point_of(t) for t in trials]
    pairs = {(point, seeds_of(t)) for point, t in zip(points, trials, strict=True)}
    if mode == "run":
        assert not any(seeds_of(t) for t in trials)
    else:
        assert len(pairs) == budget, "nothing was trained twice"
    if mode == "skip":
        size = len(space["patch_size"].choices) * (
            len(space["depth"].choices) if "depth" in space else 1
        )
        assert len(set(points)) == min(budget, size)


@given(st.integers(0, 2**31), st.text(), st.sets(st.integers(0, 3000), min_size=1, max_size=8))
def test_new_seeds_are_others(study_seed: int, purpose: str, common: set[int]) -> None:
    seeds = new_seeds(study_seed, purpose, common)
    assert len(set(seeds)) == len(seeds) == len(common)
    assert common.isdisjoint(seeds)
    assert seeds == new_seeds(study_seed, purpose, common)
