"""A trial that was interrupted, or lost its checkpoint, or its lease."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from optuna.trial import FrozenTrial, TrialState, create_trial

from visweep.search import trainer as trainer_module
from visweep.search.study import STOP
from visweep.search.watch import TrialView
from visweep.search.worker import KEPT_CHECKPOINTS, _TrialRun
from visweep.storage.owner import Owner
from visweep.storage.slots import Slots

MakeSweep = Callable[..., Any]


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


class TestInterruption:
    def test_a_stopped_trial_goes_on_from_its_epoch(self, sweep: MakeSweep) -> None:
        first = sweep(2)
        stop_after(first, 2)
        first.run()
        assert first.states == ["RUNNING", "WAITING"]
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
        assert made.states == ["RUNNING", "WAITING"]
        assert len(made.heard.epochs) == 1
        assert sweep(2).run().states == ["COMPLETE", "COMPLETE"]


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
        numbers = {int(p.name[6:11]) for p in done.opened.checkpoints.place.folder.iterdir()}
        assert len(numbers) == KEPT_CHECKPOINTS
        assert all(done.trials[n].value >= worst_kept for n in numbers)

    def test_trials_of_other_tools_take_nobodys_place(
        self, sweep: MakeSweep, storage: Any
    ) -> None:
        made = sweep(3)
        study = optuna.load_study(study_name="study", storage=storage)
        for _ in range(3):
            study.add_trial(create_trial(value=0.99))
        assert len(list(made.run().opened.checkpoints.place.folder.iterdir())) == 3

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
        assert again.heard.notes == ["trial 0 begins anew: its checkpoint is missing"]


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
        assert done.states == ["COMPLETE"]
        assert done.trials[0].intermediate_values[2] != 0.123

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
        assert done.states == ["COMPLETE", "COMPLETE"]
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
