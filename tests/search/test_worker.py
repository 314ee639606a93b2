from __future__ import annotations

import contextlib
import json
import math
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from visweep.search import trainer as trainer_module
from visweep.search.study import STOP
from visweep.search.watch import TrialView
from visweep.search.worker import KEPT_CHECKPOINTS, SweepFailed, _TrialRun
from visweep.storage.owner import Owner
from visweep.storage.slots import Slots

MakeSweep = Callable[..., Any]


def states(sweep: Any) -> list[str]:
    return [t.state.name for t in sweep.trials]


def saved_epochs(path: Path) -> list[float]:
    """How long each epoch in a checkpoint took: no two trainings take equally long."""
    payload = path.read_bytes().split(b"\n", 2)[2]
    path.with_suffix(".payload").write_bytes(payload)
    saved = torch.load(path.with_suffix(".payload"), weights_only=True)
    path.with_suffix(".payload").unlink()
    return [epoch["train_seconds"] for epoch in json.loads(saved["described"])["history"]]


def stop_after(sweep: Any, epochs: int) -> None:
    """As Ctrl-C does, in the middle of a trial."""

    def on_epoch(trial: TrialView) -> None:
        if len(sweep.heard.epochs) >= epochs:
            sweep.interrupt.ask("interrupted")

    sweep.heard.on_epoch = on_epoch


class TestTrials:
    def test_each_records_what_it_did(self, sweep: MakeSweep) -> None:
        done = sweep(4).run()
        assert states(done) == ["COMPLETE"] * 4
        for trial in done.trials:
            assert list(trial.intermediate_values) == [1, 2, 3]
            assert trial.value == trial.intermediate_values[3]
            attributes = trial.user_attrs
            assert attributes["ended"] == "completed"
            assert attributes["epochs"] == 3
            assert 0 < attributes["val_loss"] < 10
            assert 0 <= attributes["train_accuracy"] <= 1
            assert attributes["val_accuracy_per_seed"] == [trial.value]
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
        assert states(done) == ["COMPLETE"] * 3
        assert done.heard.last.finished == done.heard.last.budget == 2
        assert done.heard.last.best[1] < 0.99


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
        assert set(states(done)) == {"COMPLETE", "PRUNED"}
        assert len(done.trials) == 14
        assert done.trials[0].state == TrialState.COMPLETE

    @pytest.mark.parametrize("pruner", ["halving", "hyperband", "median"])
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
        assert states(disturbed) == states(undisturbed)
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


# Half of it is invalid, which `check_space` (called by the command line alone) would find.
HALF_INVALID = {"embed_dim": CategoricalDistribution([8, 9]), "drop": FloatDistribution(0.0, 0.3)}


class TestFailures:
    def test_the_cause_is_kept_and_the_slot_is_freed(self, sweep: MakeSweep, storage: Any) -> None:
        sweep(3, space=HALF_INVALID)
        study = optuna.load_study(study_name="study", storage=storage)
        study.enqueue_trial({"embed_dim": 9})
        study.enqueue_trial({"embed_dim": 8})
        done = sweep(3, space=HALF_INVALID)
        study.enqueue_trial({"embed_dim": 8})  # for the slot that the failed trial frees
        done.run()
        failed = [t for t in done.trials if "traceback" in t.user_attrs]
        assert [t.params["embed_dim"] for t in failed] == [9]
        assert failed[0].state == TrialState.FAIL
        assert failed[0].user_attrs["ended"] == (
            "failed: UsageError: embed_dim: 9 is not a multiple of num_heads 2"
        )
        assert failed[0].user_attrs["traceback"].startswith("Traceback (most recent call last)")
        assert "with_parameters" in failed[0].user_attrs["traceback"]
        assert sum(t.state == TrialState.COMPLETE for t in done.trials) == 3
        assert done.heard.last.failed == 1
        assert not list(done.opened.checkpoints.folder.glob(f"trial-{failed[0].number:05d}*"))

    def test_three_alike_in_a_row_stop_the_sweep(self, sweep: MakeSweep) -> None:
        made = sweep(5, space={"embed_dim": CategoricalDistribution([9])})
        with pytest.raises(SweepFailed) as stopped:
            made.run()
        assert str(stopped.value) == (
            "3 trials in a row failed for the same cause: "
            "UsageError: embed_dim: 9 is not a multiple of num_heads 2"
        )
        # The first was the baseline, which does not lie in this space: another cause.
        assert states(made) == ["FAIL"] * 4 + ["WAITING"] * 4

    def test_alike_means_the_same_cause(
        self, sweep: MakeSweep, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        real, calls = trainer_module.fit, iter(range(100))

        def failing(*arguments: Any, **more: Any) -> Any:
            call = next(calls)
            if call < 6:
                raise RuntimeError(f"cause {call % 2}\nwith a second line")
            return real(*arguments, **more)

        monkeypatch.setattr(trainer_module, "fit", failing)
        done = sweep(2).run()
        assert states(done) == ["FAIL"] * 6 + ["COMPLETE"] * 2
        ended = [t.user_attrs["ended"] for t in done.trials[:2]]
        assert ended == ["failed: RuntimeError: cause 0", "failed: RuntimeError: cause 1"]

    def test_in_a_row_means_in_a_row(
        self, sweep: MakeSweep, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        real, calls = trainer_module.fit, iter(range(100))

        def failing(*arguments: Any, **more: Any) -> Any:
            if next(calls) in (0, 1, 3, 4):
                raise RuntimeError("the same cause")
            return real(*arguments, **more)

        monkeypatch.setattr(trainer_module, "fit", failing)
        done = sweep(2).run()
        assert states(done) == ["FAIL", "FAIL", "COMPLETE", "FAIL", "FAIL", "COMPLETE"]

    def test_running_it_again_tries_again_and_stops_at_the_next_one(
        self, sweep: MakeSweep, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        real = trainer_module.fit

        def failing(*arguments: Any, **more: Any) -> Any:
            raise RuntimeError("always")

        monkeypatch.setattr(trainer_module, "fit", failing)
        for expected in (3, 4):
            made = sweep(2)
            with pytest.raises(
                SweepFailed, match="failed for the same cause: RuntimeError: always"
            ):
                made.run()
            assert states(made).count("FAIL") == expected
        monkeypatch.setattr(trainer_module, "fit", real)
        done = sweep(2).run()
        assert states(done).count("COMPLETE") == 2
        assert done.opened.slots.unfinished() == 0

    def test_who_was_adopted_gives_up_although_its_files_are_gone(
        self, sweep: MakeSweep, monkeypatch: pytest.MonkeyPatch, open_file: Any, file: Path
    ) -> None:
        made = sweep(2)
        real, calls = trainer_module.fit, iter(range(100))
        # Another connection: this one's writes are fenced.
        elsewhere = Owner("elsewhere", "boot", 1, "1")
        theirs = Slots(open_file(file), made.opened.study_id, elsewhere, 0.0)

        def adopted(*arguments: Any, checkpoint: Path, **more: Any) -> Any:
            if next(calls) > 0:
                return real(*arguments, checkpoint=checkpoint, **more)
            # The first look only sees the beat that then stands still; a waiting slot is free.
            leases = [theirs.take() for _ in range(3)]
            lease = next(lease for lease in leases if lease is not None and lease.number == 0)
            for each in leases:
                if each is not None:
                    theirs.release(each)
            assert lease.adopted
            raise FileNotFoundError(2, "No such file", str(checkpoint))

        monkeypatch.setattr(trainer_module, "fit", adopted)
        done = made.run()
        assert states(done) == ["COMPLETE", "COMPLETE"]
        assert done.heard.notes == ["trial 0 was adopted by another worker"]

    def test_who_was_adopted_gives_up_although_the_trial_is_finished(
        self, sweep: MakeSweep, monkeypatch: pytest.MonkeyPatch, open_file: Any, file: Path
    ) -> None:
        made = sweep(1)
        other = open_file(file)
        theirs = Slots(other, made.opened.study_id, Owner("elsewhere", "boot", 1, "1"), 0.0)
        real = _TrialRun._tell

        def finished_meanwhile(trial: _TrialRun, *result: Any) -> None:
            leases = [theirs.take() for _ in range(2)]
            assert leases[-1] is not None
            optuna.load_study(study_name="study", storage=other).tell(0, 0.75)
            real(trial, *result)

        monkeypatch.setattr(_TrialRun, "_tell", finished_meanwhile)
        done = made.run()
        assert [t.value for t in done.trials] == [0.75]
        assert len(done.heard.notes) == 1

    def test_a_slot_that_was_closed_unused_is_no_failure(
        self, sweep: MakeSweep, storage: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        sweep(4)
        study = optuna.load_study(study_name="study", storage=storage)
        study.add_trial(create_trial(value=0.5))
        made = sweep(1)  # closes three in the middle

        def failing(*arguments: Any, **more: Any) -> Any:
            raise RuntimeError("always")

        monkeypatch.setattr(trainer_module, "fit", failing)
        with pytest.raises(SweepFailed):
            made.run()
        assert sum("traceback" in t.user_attrs for t in made.trials) == 3

    @pytest.mark.parametrize(
        "point", [{"depth": 9}, {"depht": 1}, {"num_heads": 3}, {"drop": "much"}]
    )
    def test_an_enqueued_point_outside_the_space_is_refused_with_the_reason(
        self, sweep: MakeSweep, storage: Any, point: dict[str, Any]
    ) -> None:
        made = sweep(2)
        optuna.load_study(study_name="study", storage=storage).enqueue_trial(point)
        made.opened.slots.set_budget(2)
        done = made.run()
        refused = [t for t in done.trials if t.user_attrs.get("ended", "").startswith("failed")]
        assert len(refused) == 1
        assert next(iter(point)) in refused[0].user_attrs["ended"]
        assert sum(t.state == TrialState.COMPLETE for t in done.trials) == 2

    def test_a_study_that_is_deleted_meanwhile_ends_the_sweep(
        self, sweep: MakeSweep, storage: Any
    ) -> None:
        made = sweep(2)
        made.heard.on_epoch = lambda _: optuna.delete_study(study_name="study", storage=storage)
        with pytest.raises(SweepFailed, match="study 'study' was deleted"):
            made.run()


class TestInterruption:
    def test_a_stopped_trial_goes_on_from_its_epoch(self, sweep: MakeSweep) -> None:
        first = sweep(2)
        stop_after(first, 2)
        first.run()
        assert states(first) == ["RUNNING", "WAITING"]
        assert list(first.trials[0].intermediate_values) == [1, 2]
        path = first.opened.checkpoints.latest(0)
        before = saved_epochs(path)
        again = sweep(2)
        stop_after(again, 2)  # epoch 2 is heard of again, so this is after epoch 3
        again.run()
        assert again.heard.began_with[0].adopted
        assert [t.number for t in again.heard.endings] == [0]
        path = again.opened.checkpoints.latest(0)
        assert saved_epochs(path)[:2] == before, "epochs were trained again"
        assert again.trials[0].state == TrialState.COMPLETE

    def test_nothing_is_left_leased(self, sweep: MakeSweep, storage: Any) -> None:
        first = sweep(2)
        stop_after(first, 1)
        first.run()
        other = Slots(storage, first.opened.study_id, Owner("elsewhere", "b", 1, "1"))
        lease = other.take()
        assert lease is not None
        assert (lease.number, lease.adopted) == (0, True)

    def test_a_second_ctrl_c_gives_the_lease_back_too(
        self, sweep: MakeSweep, storage: Any
    ) -> None:
        made = sweep(2)

        def on_epoch(_: TrialView) -> None:
            raise KeyboardInterrupt

        made.heard.on_epoch = on_epoch
        with pytest.raises(KeyboardInterrupt):
            made.run()
        other = Slots(storage, made.opened.study_id, Owner("elsewhere", "b", 1, "1"))
        assert other.take() is not None
        assert made.trials[0].user_attrs == {}

    @pytest.mark.parametrize("sampler", ["tpe", "qmc", "cmaes"])
    def test_a_disturbed_study_is_the_same_to_the_bit(
        self, sweep: MakeSweep, sampler: str
    ) -> None:
        def run(name: str, disturbed: bool) -> list[FrozenTrial]:
            for _ in range(100):
                made = sweep(
                    14, name=name, sampler=sampler, pruner="hyperband", train={"seeds": (0, 1)}
                )
                if disturbed:
                    # Never for an epoch that is only heard of again, or it would not advance.
                    stop_after(made, 2)
                made.run()
                if not made.opened.slots.unfinished():
                    return made.trials
            raise AssertionError("it does not end")

        ours, theirs = run("undisturbed", False), run("disturbed", True)
        assert [_result(t) for t in theirs] == [_result(t) for t in ours]
        assert {t.state.name for t in ours} == {"COMPLETE", "PRUNED"}

    def test_the_attribute_that_stops_a_sweep(self, sweep: MakeSweep, storage: Any) -> None:
        made = sweep(2)
        study = optuna.load_study(study_name="study", storage=storage)
        made.heard.on_epoch = lambda _: study.set_user_attr(STOP, True)
        made.run()
        assert made.interrupt.reason == "`visweep stop` was called"
        assert states(made) == ["RUNNING", "WAITING"]
        assert len(made.heard.epochs) == 1
        assert states(sweep(2).run()) == ["COMPLETE", "COMPLETE"]


def _result(trial: FrozenTrial) -> tuple[Any, ...]:
    """What may not depend on where it was interrupted."""
    kept = ("val_loss", "train_accuracy", "val_accuracy_per_seed", "epochs", "ended")
    attributes = {name: trial.user_attrs[name] for name in kept}
    return trial.state, trial.params, trial.intermediate_values, trial.value, attributes


class TestCheckpoints:
    def test_the_best_three_and_no_others_are_kept(self, sweep: MakeSweep) -> None:
        done = sweep(7, pruner="hyperband").run()
        complete = [t for t in done.trials if t.state == TrialState.COMPLETE]
        ranked = sorted(complete, key=lambda t: -(t.value or 0))
        worst_kept = ranked[KEPT_CHECKPOINTS - 1].value
        numbers = {int(p.name[6:11]) for p in done.opened.checkpoints.folder.iterdir()}
        assert len(numbers) == KEPT_CHECKPOINTS
        assert all(done.trials[n].value >= worst_kept for n in numbers)

    def test_trials_of_other_tools_take_nobodys_place(
        self, sweep: MakeSweep, storage: Any
    ) -> None:
        made = sweep(3)
        study = optuna.load_study(study_name="study", storage=storage)
        for _ in range(3):
            study.add_trial(create_trial(value=0.99))
        assert len(list(made.run().opened.checkpoints.folder.iterdir())) == 3

    @pytest.mark.parametrize("damage", ["flipped", "truncated", "foreign", "empty"])
    def test_a_damaged_one_is_refused_and_the_trial_begins_anew(
        self, sweep: MakeSweep, damage: str
    ) -> None:
        undisturbed = sweep(1, name="undisturbed").run().trials[0]
        first = sweep(1)
        stop_after(first, 2)
        first.run()
        path = first.opened.checkpoints.latest(0)
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(
            {
                "flipped": bytes(content),
                "truncated": path.read_bytes()[:-100],
                "foreign": b"PK\x03\x04 something else",
                "empty": b"",
            }[damage]
        )
        again = sweep(1).run()
        assert len(again.heard.notes) == 1
        assert again.heard.notes[0].startswith("trial 0 begins anew: ")
        assert again.heard.epochs == [(0, 1), (0, 2), (0, 3)]
        (trial,) = again.trials
        assert _result(trial) == _result(undisturbed)

    def test_a_trial_without_one_begins_anew_with_a_clean_record(
        self, sweep: MakeSweep, storage: Any
    ) -> None:
        # As after the database alone was copied to another machine.
        first = sweep(1, pruner="median", train={"epochs": 4})
        stop_after(first, 3)
        first.run()
        first.opened.checkpoints.discard()
        storage.set_trial_intermediate_value(first.trials[0]._trial_id, 4, 0.0)
        again = sweep(1, pruner="median", train={"epochs": 4})
        seen: list[dict[int, float]] = []
        again.heard.on_epoch = lambda _: seen.append(again.trials[0].intermediate_values)
        again.run()
        assert [sorted(values) for values in seen] == [[1], [1, 2], [1, 2, 3], [1, 2, 3, 4]]
        assert again.heard.notes == []


class TestFencing:
    def test_a_worker_that_was_taken_for_dead_writes_nothing_more(
        self, sweep: MakeSweep, storage: Any
    ) -> None:
        made = sweep(1)
        other = Slots(storage, made.opened.study_id, Owner("elsewhere", "b", 1, "1"), 0.0)
        reported: list[int] = []

        def adopt() -> None:
            other.take()
            lease = other.take()
            assert lease is not None
            with other.fenced(lease):
                storage.set_trial_intermediate_value(lease.trial_id, 2, 0.123)
            reported.append(lease.generation)
            other.release(lease)

        def on_epoch(trial: TrialView) -> None:
            # Asleep after its second epoch, say: another adopts the trial, reports, and stops.
            if len(trial.curve) == 2 and not reported:
                thread = threading.Thread(target=adopt)
                thread.start()
                thread.join()

        made.heard.on_epoch = on_epoch
        done = made.run()
        assert reported == [2]
        assert done.heard.notes == ["trial 0 was adopted by another worker"]
        # It then leased the trial anew, as any worker may, and finished it.
        assert [t.adopted for t in done.heard.began_with] == [False, True]
        assert states(done) == ["COMPLETE"]
        assert done.trials[0].intermediate_values[2] != 0.123
