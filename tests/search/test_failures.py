"""Failures are results: each keeps its cause, and frees its slot."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState, create_trial

from visweep.search import trainer as trainer_module
from visweep.search.worker import MOST_LOST, SweepFailed
from visweep.storage.owner import this_process
from visweep.storage.slots import Slots

MakeSweep = Callable[..., Any]


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
        assert not list(
            done.opened.checkpoints.place.folder.glob(f"trial-{failed[0].number:05d}*")
        )

    def test_three_alike_in_a_row_stop_the_sweep(self, sweep: MakeSweep) -> None:
        made = sweep(5, space={"embed_dim": CategoricalDistribution([9])})
        with pytest.raises(SweepFailed) as stopped:
            made.run()
        assert str(stopped.value) == (
            "3 trials in a row failed for the same cause: "
            "UsageError: embed_dim: 9 is not a multiple of num_heads 2"
        )
        # The first was the baseline, which does not lie in this space: another cause.
        assert made.states == ["FAIL"] * 4 + ["WAITING"] * 4

    def test_a_trial_that_ends_every_worker_fails(self, sweep: MakeSweep, storage: Any) -> None:
        """As the kernel does where memory is short; five owners that are gone stand for it."""
        made = sweep(2)
        spec = made.opened.specification
        for start in range(MOST_LOST):
            owner = replace(this_process(), boot=f"start {start}")
            slots = Slots(storage, made.opened.study_id, owner)
            lease = slots.take()
            if not lease.adopted:
                slots.begin(lease, spec.baseline(), spec.space)
        made.run()
        assert sorted(made.states) == ["COMPLETE", "COMPLETE", "FAIL"]
        failed = made.trials[0]
        assert failed.user_attrs["ended"].startswith("failed: WorkersLost: 5 workers in a row")
        assert failed.intermediate_values == {}

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
        assert done.states == ["FAIL"] * 6 + ["COMPLETE"] * 2
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
        assert done.states == ["FAIL", "FAIL", "COMPLETE", "FAIL", "FAIL", "COMPLETE"]

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
            assert made.states.count("FAIL") == expected
        monkeypatch.setattr(trainer_module, "fit", real)
        done = sweep(2).run()
        assert done.states.count("COMPLETE") == 2
        assert done.opened.slots.unfinished() == 0

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
