"""What a worker makes of the slots of a study: trials, pruned or whole."""

from __future__ import annotations

import contextlib
import json
import math
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState, create_trial

from visweep.search.heartbeat import Heartbeat
from visweep.search.worker import _TrialRun
from visweep.storage.lease import Lease
from visweep.storage.owner import this_process
from visweep.storage.slots import Slots
from visweep.storage.tables import RUNG

MakeSweep = Callable[..., Any]


class TestTrials:
    def test_each_records_what_it_did(self, sweep: MakeSweep) -> None:
        done = sweep(4).run()
        assert done.states == ["COMPLETE"] * 4
        for trial in done.trials:
            assert list(trial.intermediate_values) == [1, 2, 3]
            assert trial.value == trial.intermediate_values[3]
            attributes = trial.user_attrs
            assert attributes["ended"] == "completed"
            assert attributes["epochs"] == 3
            assert 0 < attributes["val_loss"] < 10
            assert 0 <= attributes["train_accuracy"] <= 1
            assert attributes["val_accuracy_per_seed"] == [trial.value]
            assert 0 < attributes["val_error_points"] < 5
            assert attributes["seconds"] > 0
            assert attributes["images_per_second"] > 0
            assert attributes["peak_memory_bytes"] > 2**20
            assert attributes["num_params"] > 0
            assert attributes["device"] == "cpu"
            assert attributes["provenance"]["versions"]["torch"]
            assert trial.params.keys() == done.opened.specification.space.keys()
            assert trial.duration is not None
        assert done.opened.slots.unfinished() == 0

    def test_the_first_is_the_baseline(self, sweep: MakeSweep) -> None:
        done = sweep(2).run()
        assert done.trials[0].params == done.opened.specification.baseline()
        assert done.trials[1].params != done.trials[0].params

    def test_the_mean_over_the_replicas_is_the_objective(self, sweep: MakeSweep) -> None:
        (trial,) = sweep(1, train={"seeds": (0, 1, 2)}).run().trials
        each = trial.user_attrs["val_accuracy_per_seed"]
        assert len(each) == 3
        assert len(set(each)) > 1
        assert trial.value == pytest.approx(sum(each) / 3)

    def test_training_curves_are_kept_where_they_are_asked_for(self, sweep: MakeSweep) -> None:
        asked = sweep(1, name="with", train={"train_curves": True, "seeds": (0, 1)}).run()
        (trial,), (plain,) = asked.trials, sweep(1, train={"seeds": (0, 1)}).run().trials
        curves = trial.user_attrs["train_curves"]
        assert set(curves) == {"plain", "augmented"}
        assert [len(curve) for curve in curves.values()] == [3, 3]
        assert curves["plain"] != curves["augmented"]
        assert trial.user_attrs["train_accuracy"] == curves["plain"][-1]
        assert trial.intermediate_values == plain.intermediate_values
        assert trial.user_attrs["train_accuracy"] == plain.user_attrs["train_accuracy"]
        assert "train_curves" not in plain.user_attrs

    def test_the_watcher_hears_of_everything(self, sweep: MakeSweep) -> None:
        done = sweep(2).run()
        heard = done.heard
        assert [t.number for t in heard.began_with] == [0, 1]
        assert [t.parameters for t in heard.began_with] == [t.params for t in done.trials]
        assert heard.epochs == [(n, e) for n in (0, 1) for e in (1, 2, 3)]
        assert [(t.number, t.state, t.ended) for t in heard.endings] == [
            (0, "complete", "completed"),
            (1, "complete", "completed"),
        ]
        assert heard.last.finished == heard.last.budget == 2
        best = max(done.trials, key=lambda t: (t.value, -t.number))
        assert heard.last.best == (best.number, best.value, best.params)

    def test_it_hears_how_many_run(self, sweep: MakeSweep) -> None:
        assert sweep(3).run().heard.running == [1, 0] * 3

    def test_one_that_goes_on_here_is_counted_once(self, sweep: MakeSweep) -> None:
        """Its worker was lost while this one trained the trial before."""
        some, gone = sweep(2), replace(this_process(), boot="an earlier start of this machine")
        opened = some.opened

        def on_epoch(trial: Any) -> None:
            if (trial.number, len(trial.curve)) == (0, 1):
                lost = Slots(opened.storage, opened.study_id, gone)
                lease = lost.take()
                lost.begin(lease, opened.specification.baseline(), opened.specification.space)

        some.heard.on_epoch = on_epoch
        some.run()
        assert [t.adopted for t in some.heard.began_with] == [False, True]
        assert some.heard.running == [1, 1, 1, 0]

    def test_a_finished_study_is_left_as_it_is(self, sweep: MakeSweep) -> None:
        before = sweep(2).run().trials
        again = sweep(2).run()
        assert again.trials == before
        assert again.heard.began_with == []

    def test_a_larger_budget_adds_the_difference(self, sweep: MakeSweep) -> None:
        before = sweep(2).run().trials
        after = sweep(4).run().trials
        assert after[:2] == before
        assert len(after) == 4

    def test_enqueued_points_are_run_as_they_are(self, sweep: MakeSweep, storage: Any) -> None:
        made = sweep(3)
        study = optuna.load_study(study_name="study", storage=storage)
        study.enqueue_trial({"drop": 0.125, "patch_size": 8, "depth": 2, "num_heads": 1})
        study.enqueue_trial({"drop": 0.0625})
        done = sweep(3).run()
        assert made.opened.study_id == done.opened.study_id
        assert done.trials[3].params == {
            "drop": 0.125,
            "patch_size": 8,
            "depth": 2,
            "num_heads": 1,
        }
        assert done.trials[4].params["drop"] == 0.0625
        finished = [t for t in done.trials if t.state == TrialState.COMPLETE]
        assert [t.number for t in finished] == [0, 3, 4]

    def test_trials_of_other_tools_do_not_count(self, sweep: MakeSweep, storage: Any) -> None:
        made = sweep(2)
        study = optuna.load_study(study_name="study", storage=storage)
        study.add_trial(create_trial(value=0.99))
        done = made.run()
        assert done.states == ["COMPLETE"] * 3
        assert done.heard.last.finished == done.heard.last.budget == 2
        assert done.heard.last.best[1] < 0.99

    def test_only_what_is_there_is_cleared_away(
        self, sweep: MakeSweep, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A write transaction would keep the others waiting, for nothing."""
        cleared: list[int] = []
        real = Slots.start_over

        def start_over(slots: Slots, lease: Lease) -> None:
            cleared.append(lease.number)
            real(slots, lease)

        monkeypatch.setattr(Slots, "start_over", start_over)
        done = sweep(2, name="undisturbed").run()
        assert (done.states, cleared) == (["COMPLETE"] * 2, [])
        # Of a trial that was begun and has no checkpoint, a rung alone may be left.
        for name, left, expected in (
            ("nothing", {}, []),
            ("a rung", {f"{RUNG}0": 0.5}, [0]),
        ):
            made = sweep(1, name=name)
            spec, lease = made.opened.specification, made.opened.slots.take()
            assert lease is not None
            made.opened.slots.begin(lease, spec.baseline(), spec.space)
            for key, value in left.items():
                made.opened.storage.set_trial_system_attr(lease.trial_id, key, value)
            made.opened.slots.release(lease)
            made.run()
            assert (made.states, cleared) == (["COMPLETE"], expected)
            assert not any(key.startswith(RUNG) for key in made.trials[0].system_attrs)

    @pytest.mark.parametrize(
        ("curve", "value"),
        [
            ({}, None),
            ({1: 0.25}, 0.25),
            ({2: 0.5, 1: 0.75}, 0.5),
            ({1: 0.75, 2: math.nan}, None),
        ],
    )
    def test_a_pruned_trial_has_the_value_that_optuna_would_tell(
        self, sweep: MakeSweep, curve: dict[int, float], value: float | None
    ) -> None:
        made = sweep(1)
        lease = made.opened.slots.take()
        assert lease is not None
        with Heartbeat(made.opened.slots, lease) as heartbeat:
            trial = _TrialRun(made.worker, lease, heartbeat)
        trial.curve = {1: 0.75, 2: math.inf}
        assert trial._last_value() is None, "no accuracy, although Optuna would take it"
        trial.curve = curve
        assert trial._last_value() == value
        theirs = optuna.create_study()
        told = theirs.ask()
        for epoch, reported in curve.items():
            told.report(reported, epoch)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert theirs.tell(told, state=TrialState.PRUNED).value == value


class TestPruning:
    @pytest.fixture
    def hopeless(self, sweep: MakeSweep, storage: Any) -> Any:
        """A study in which every trial is behind the others from its first epoch on."""
        made = sweep(3, pruner="median", train={"epochs": 4})
        study = optuna.load_study(study_name="study", storage=storage)
        for _ in range(6):
            study.add_trial(
                create_trial(value=1.0, intermediate_values=dict.fromkeys(range(1, 5), 1.0))
            )
        return made.run()

    def test_the_baseline_runs_to_its_end(self, hopeless: Any) -> None:
        baseline = hopeless.trials[0]
        assert baseline.state == TrialState.COMPLETE
        assert baseline.user_attrs["ended"] == "completed"
        assert len(baseline.intermediate_values) == 4

    def test_a_pruned_trial_says_when(self, hopeless: Any) -> None:
        for trial in hopeless.trials[1:3]:
            epochs = len(trial.intermediate_values)
            assert epochs < 4
            assert trial.state == TrialState.PRUNED
            assert trial.value == trial.intermediate_values[epochs]
            assert trial.user_attrs["epochs"] == epochs
            assert trial.user_attrs["ended"] == f"pruned at epoch {epochs}"
            assert trial.user_attrs["train_accuracy"] >= 0
        assert hopeless.heard.last.pruned == 2
        assert hopeless.heard.endings[-1].state == "pruned"

    @pytest.mark.parametrize("pruner", ["halving", "hyperband"])
    def test_it_prunes_and_the_budget_is_met(self, sweep: MakeSweep, pruner: str) -> None:
        done = sweep(14, pruner=pruner, train={"epochs": 9}).run()
        assert set(done.states) == {"COMPLETE", "PRUNED"}
        assert len(done.trials) == 14
        assert done.trials[0].state == TrialState.COMPLETE

    @pytest.mark.parametrize("pruner", ["halving", "hyperband", "median"])
    @pytest.mark.slow
    def test_who_dies_of_the_decision_to_prune_leaves_it_to_be_made_again(
        self, sweep: MakeSweep, monkeypatch: pytest.MonkeyPatch, pruner: str
    ) -> None:
        settings: dict[str, Any] = {"pruner": pruner, "train": {"epochs": 9}}
        undisturbed = sweep(14, name="undisturbed", **settings).run()
        disturbed = sweep(14, name="disturbed", **settings)
        real = _TrialRun._should_prune

        def dying(trial: _TrialRun) -> bool:
            decided = real(trial)
            if decided and not trial.lease.adopted:
                raise KeyboardInterrupt
            return decided

        monkeypatch.setattr(_TrialRun, "_should_prune", dying)
        for _ in range(20):
            with contextlib.suppress(KeyboardInterrupt):
                disturbed.run()
        assert disturbed.states == undisturbed.states
        for one, other in zip(disturbed.trials, undisturbed.trials, strict=True):
            assert one.params == other.params
            assert one.intermediate_values == other.intermediate_values

    def test_a_diverged_trial_is_pruned_with_its_reason(self, sweep: MakeSweep) -> None:
        done = sweep(2, train={"lr": 1e6, "clip_norm": 1e9, "epochs": 5}).run()
        for trial in done.trials:
            assert trial.state == TrialState.PRUNED
            assert trial.user_attrs["ended"] == "diverged"
            assert len(trial.intermediate_values) <= 5
            # What a browser can read: JSON has no NaN.
            json.dumps(trial.user_attrs, allow_nan=False)
            assert trial.value is None or math.isfinite(trial.value)
