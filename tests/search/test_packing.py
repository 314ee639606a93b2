"""Several trials at once in one process."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby, pairwise
from typing import Any

import optuna
import pytest
from optuna.distributions import CategoricalDistribution
from optuna.trial import TrialState

from visweep.data.resident import ResidentData
from visweep.errors import OutOfMemory
from visweep.search.duplicates import trained_as
from visweep.search.packing import TURNOVER, Bucket, PackedWorker, make_worker
from visweep.search.trainer import SharedTrainer
from visweep.search.watch import TrialView
from visweep.search.worker import SweepFailed
from visweep.storage.specification import Specification
from visweep.training.fit import fit
from visweep.training.passes import Member, Pass


@pytest.fixture
def packed(sweep: Callable[..., Any], images: ResidentData) -> Callable[..., Any]:
    """As `sweep`, with a worker that trains several trials at once."""

    def make(budget: int, pack: int = 4, **arguments: Any) -> Any:
        made = sweep(budget, **arguments)
        made.worker = make_worker(
            made.opened, SharedTrainer(images), made.heard, made.interrupt, pack
        )
        return made

    return make


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[list[dict[str, Any]]]:
    """What each epoch of each pass trained: the models of its members."""
    seen: list[list[dict[str, Any]]] = []
    pieces = Pass.pieces

    def watched(self: Pass, numbers: Any) -> Any:
        seen.append([vars(member.model) for member in self.members])
        return pieces(self, numbers)

    monkeypatch.setattr(Pass, "pieces", watched)
    return seen


def curves(trials: list[optuna.trial.FrozenTrial]) -> list[dict[int, float]]:
    return [trial.intermediate_values for trial in trials]


def test_ends_with_exactly_what_was_asked_for(packed: Any) -> None:
    made = packed(9).run()
    assert made.states == ["COMPLETE"] * 9
    assert all(list(curve) == [1, 2, 3] for curve in curves(made.trials))
    assert made.heard.last.finished == 9
    assert not made.opened.slots.unfinished()


def test_training_curves_are_those_of_a_trial_alone(packed: Any, images: ResidentData) -> None:
    wanted = {"train_curves": True, "precision": "float64"}
    made = packed(5, train=wanted).run()
    for trial in made.trials:
        model, train = trained_as(made.opened.specification, trial)
        alone = fit(model, train, images).history
        curves = trial.user_attrs["train_curves"]
        assert curves["plain"] == [epoch.plain_train_accuracy[0] for epoch in alone]
        assert curves["augmented"] == [epoch.augmented_train_accuracy[0] for epoch in alone]


def test_trials_share_passes_and_the_sampler_fills_them(
    packed: Any, passes: list[list[dict[str, Any]]]
) -> None:
    made = packed(17).run()
    sizes = [len(members) for members in passes]
    assert max(sizes) == 4
    assert sum(sizes) == 17 * 3
    assert len(passes) < 17 * 3 / 2
    for members in passes:
        assert len({model["patch_size"] for model in members}) == 1
    assert {trial.params["patch_size"] for trial in made.trials} == {8, 16}
    # The first bucket takes in its share, and no more, before the sampler chooses again.
    first = made.trials[0].params["patch_size"]
    followers = [trial.params["patch_size"] for trial in made.trials[: TURNOVER * 4]]
    assert followers == [first] * TURNOVER * 4


def test_a_shared_pass_is_built_anew_only_when_a_member_leaves(
    packed: Any, specification: Specification, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU each is captured anew. Whoever takes the free place joins in the same change."""
    built: list[set[Member]] = []
    trained: list[set[Member]] = []
    init, pieces = Pass.__init__, Pass.pieces

    def building(self: Pass, members: Sequence[Member], *arguments: Any) -> None:
        built.append(set(members))
        init(self, members, *arguments)

    def training(self: Pass, numbers: Sequence[int]) -> Any:
        trained.append(set(self.members))
        return pieces(self, numbers)

    monkeypatch.setattr(Pass, "__init__", building)
    monkeypatch.setattr(Pass, "pieces", training)
    one_bucket = {**specification.space, "patch_size": CategoricalDistribution([16])}
    made = packed(14, pruner="halving", train={"epochs": 8}, space=one_bucket).run()
    assert set(made.states) == {"COMPLETE", "PRUNED"}
    together = [members for members in trained if len(members) > 1]
    changes = [members for members, _ in groupby(together)]
    assert [members for members in built if len(members) > 1] == changes
    to_come = 14 - len(changes[0])
    for before, after in pairwise(changes):
        left, joined = before - after, after - before
        assert left
        assert len(joined) == min(len(left), to_come)
        to_come -= len(joined)
    assert to_come == 0
    # Trials that come to a rung together leave together.
    assert len(changes) <= 14 / 2


def test_a_result_is_that_of_the_trial_alone(packed: Any, images: ResidentData) -> None:
    made = packed(6, train={"precision": "float64"}).run()
    for trial in made.trials:
        alone = fit(*trained_as(made.opened.specification, trial), images)
        found = {epoch.epoch: epoch.mean_val_accuracy for epoch in alone.history}
        assert trial.intermediate_values == found
        assert trial.user_attrs["num_params"] == alone.num_params
        assert trial.user_attrs["train_accuracy"] == alone.train_accuracy[0]


def test_a_packed_study_repeats_itself(packed: Any) -> None:
    one = packed(8, name="one", pruner="median").run()
    two = packed(8, name="two", pruner="median").run()
    assert [t.params for t in one.trials] == [t.params for t in two.trials]
    assert curves(one.trials) == curves(two.trials)
    assert one.states == two.states


def test_each_is_pruned_by_itself(packed: Any) -> None:
    made = packed(12, pruner="median", train={"epochs": 6}).run()
    assert set(made.states) == {"COMPLETE", "PRUNED"}
    for trial in made.trials:
        assert trial.user_attrs["epochs"] == len(trial.intermediate_values)
        assert (len(trial.intermediate_values) == 6) == (trial.state == TrialState.COMPLETE)


def test_a_stop_leaves_every_trial_to_be_gone_on_with(packed: Any) -> None:
    made = packed(6, train={"epochs": 4})

    def stop(trial: TrialView) -> None:
        if len(trial.curve) == 2:
            made.interrupt.ask("enough")

    made.heard.on_epoch = stop
    made.run()
    begun = [trial for trial in made.trials if trial.state == TrialState.RUNNING]
    assert {len(trial.intermediate_values) for trial in begun} == {2}
    assert len(begun) == 4
    again = packed(6, train={"epochs": 4}).run()
    assert again.states == ["COMPLETE"] * 6
    assert all(list(curve) == [1, 2, 3, 4] for curve in curves(again.trials))


@pytest.mark.parametrize("at_once", [False, True])
def test_a_stop_begins_no_epoch_and_loses_none(
    packed: Any,
    passes: list[list[dict[str, Any]]],
    at_once: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of passes of several buckets; those that are under way at the same time come to the end of
    their epoch."""
    monkeypatch.setattr(Bucket, "keep_to", lambda self: {})
    space = {"embed_dim": CategoricalDistribution([8, 16, 24, 32])}
    made = packed(8, pack=4, space=space, train={"epochs": 4})
    made.worker._engine.rounds._at_once = at_once
    begun: list[int] = []

    def stop(trial: TrialView) -> None:
        if not begun:
            begun.append(len(passes))
            made.interrupt.ask("enough")

    made.heard.on_epoch = stop
    made.run()
    assert begun == [len(passes)]
    assert len({members[0]["embed_dim"] for members in passes}) > 1 or not at_once
    running = [trial for trial in made.trials if trial.state == TrialState.RUNNING]
    assert len(running) == 4
    epochs = sum(len(trial.intermediate_values) for trial in running)
    trained = sum(len(members) for members in passes)
    assert epochs == trained == (4 if at_once else len(passes[0]))
    with made.opened.storage.reading() as connection:
        owners = connection.exec_driver_sql("SELECT owner FROM visweep_slots").scalars().all()
    assert set(owners) == {None}
    again = packed(8, pack=4, space=space, train={"epochs": 4}).run()
    assert again.states == ["COMPLETE"] * 8


def test_interrupted_at_once_gives_its_leases_back(packed: Any) -> None:
    made = packed(6, train={"epochs": 4})

    def twice(trial: TrialView) -> None:
        if len(trial.curve) == 2:
            os.kill(os.getpid(), signal.SIGINT)

    made.heard.on_epoch = twice
    with pytest.raises(KeyboardInterrupt):
        made.run()
    assert not any(thread.name.startswith("place") for thread in threading.enumerate())
    with made.opened.storage.reading() as connection:
        owners = connection.exec_driver_sql("SELECT owner FROM visweep_slots").scalars().all()
    assert set(owners) == {None}
    again = packed(6, train={"epochs": 4}).run()
    assert again.states == ["COMPLETE"] * 6


def test_a_crashed_process_leaves_all_its_trials_to_others(packed: Any, sweep: Any) -> None:
    """Leases of one process are apart from each other, and gone together."""
    made = packed(4, train={"epochs": 4})

    class Crash(BaseException):
        pass

    def crash(trial: TrialView) -> None:
        if len(trial.curve) == 2 and trial.number == 1:
            raise Crash

    made.heard.on_epoch = crash
    with pytest.raises(Crash):
        made.run()
    assert sweep(4, train={"epochs": 4}).run().states == ["COMPLETE"] * 4


def test_what_does_not_fit_in_memory_ends_that_trial_only(
    packed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    loss = Pass._loss

    def starved(self: Pass, *arguments: Any) -> Any:
        if any(member.model.depth == 2 for member in self.members):
            raise OutOfMemory("full")
        return loss(self, *arguments)

    monkeypatch.setattr(Pass, "_loss", starved)
    made = packed(8, sampler="random").run()
    for trial in made.trials:
        full = trial.params["depth"] == 2
        assert trial.state == (TrialState.PRUNED if full else TrialState.COMPLETE)
        assert (trial.user_attrs["ended"] == "out of memory") == full


@pytest.mark.slow
def test_what_does_not_fit_beside_the_others_makes_room(
    packed: Any, images: ResidentData, monkeypatch: pytest.MonkeyPatch
) -> None:
    loss = Pass._loss

    def crowded(self: Pass, *arguments: Any) -> Any:
        if len(self.members) > 1:
            raise MemoryError
        return loss(self, *arguments)

    monkeypatch.setattr(Pass, "_loss", crowded)
    made = packed(9, train={"precision": "float64"})
    made.worker._engine.rounds._at_once = True
    made.run()
    assert made.states == ["COMPLETE"] * 9
    assert made.worker.made_room
    notes = [note for note in made.heard.notes if "is put back" in note]
    assert 1 <= len(notes) <= 3
    assert "one trial less is trained at a time: beside others, " in notes[0]
    for trial in made.trials:
        alone = fit(*trained_as(made.opened.specification, trial), images)
        found = {epoch.epoch: epoch.mean_val_accuracy for epoch in alone.history}
        assert trial.intermediate_values == found


def test_a_defect_ends_the_sweep_and_says_so(packed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def faulty(self: Pass, *arguments: Any) -> Any:
        raise ArithmeticError("a defect")

    monkeypatch.setattr(Pass, "_loss", faulty)
    made = packed(8)
    with pytest.raises(SweepFailed, match="ArithmeticError: a defect"):
        made.run()
    assert made.states.count("FAIL") >= 3


def test_one_place_is_a_plain_worker(packed: Any) -> None:
    assert not isinstance(packed(1, pack=1).worker, PackedWorker)


@pytest.fixture(autouse=True)
def _interrupts_are_raised() -> Iterator[None]:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
