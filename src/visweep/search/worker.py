"""The worker: takes a slot, asks for parameters, trains, reports, prunes. Nothing else meets both
the trainer and the storage; and even it knows no torch, so that what it promises can be tested
without.
"""

from __future__ import annotations

import time
import traceback
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optuna.pruners import BasePruner
from optuna.trial import FrozenTrial, TrialState

from visweep.config import ModelConfig, TrainConfig
from visweep.errors import (
    CheckpointError,
    Crowded,
    DeviceLost,
    OutOfMemory,
    StorageError,
    VisweepError,
)
from visweep.search.attributes import attributes_of
from visweep.search.duplicates import propose_next, trained_as
from visweep.search.heartbeat import Heartbeat
from visweep.search.interrupt import Interrupt
from visweep.search.pruners import make_pruner, rungs_from
from visweep.search.spaces import check_point
from visweep.search.study import OpenStudy
from visweep.search.watch import Progress, TrialView, Watcher
from visweep.storage.budget import fixed_parameters
from visweep.storage.failures import DATABASE_ERRORS, storage_errors
from visweep.storage.lease import Lease, LeaseLost
from visweep.storage.specification import ARM, DROPPED, RACE, provenance
from visweep.storage.tables import RUNG
from visweep.training.calibrations import hardware
from visweep.training.results import (
    OUT_OF_MEMORY,
    TRAINER_VERSION,
    EpochResult,
    FitResult,
    OnEpoch,
)

if TYPE_CHECKING:
    from visweep.search.packing import Engine

KEPT_CHECKPOINTS = 3
"""The best so many finished trials keep their weights."""
SAME_FAILURES = 3
"""So many trials in a row that fail for the same cause stop the sweep."""
MOST_LOST = 5
"""A trial that so many workers in a row were lost with, at the same epoch, is not tried again."""
_POLL_SECONDS = 1.0


class Trainer(ABC):
    """What a worker trains its trials with."""

    @property
    @abstractmethod
    def device(self) -> str:
        """The device that it trains on."""

    others_beside = False
    """Whether other workers of a crew train on the same device, and could make room there: then
    what does not fit beside them is `Crowded`."""

    @property
    @abstractmethod
    def threads(self) -> int:
        """How many threads of the processor it uses."""

    def engine(self) -> Engine[Any]:
        """What trains several trials at once, where this trainer can.

        Raises:
            NotImplementedError: it cannot.
        """
        raise NotImplementedError

    @abstractmethod
    def fit(
        self, model: ModelConfig, train: TrainConfig, *, on_epoch: OnEpoch, checkpoint: Path
    ) -> FitResult:
        """Train one trial; see `visweep.training.fit.fit`."""


class Company:
    """Whom a worker shares its process with: nobody, unless this is overridden.

    Attributes:
        first: whether it is the worker that says for all that the study is open.
    """

    first = True

    def keep_to(self) -> Mapping[str, Any]:
        """Parameters that the next trial is to have, if possible, to share a pass with others."""
        return {}

    def began(self, parameters: Mapping[str, Any]) -> None:
        """A trial with these parameters begins, or is continued, here."""

    def pause(self, seconds: float) -> None:
        """There is nothing to do for so long."""
        time.sleep(seconds)


class SweepFailed(VisweepError):
    """The sweep cannot go on: trials fail one after the other, or the study is gone."""


class WorkersLost(VisweepError):
    """One worker after the other was killed, or crashed, with the same trial."""


class Worker:
    """Runs trials of one study until none is left or it is interrupted.

    Args:
        opened: the study.
        trainer: trains its trials.
        watcher: hears of every step.
        interrupt: asks to stop.
        company: whom it shares its process with.

    Attributes:
        made_room: it has ended since a trial did not fit in memory beside the others'.
    """

    def __init__(
        self,
        opened: OpenStudy,
        trainer: Trainer,
        watcher: Watcher,
        interrupt: Interrupt,
        company: Company | None = None,
    ) -> None:
        self.opened = opened
        self.trainer = trainer
        self.watcher = watcher
        self.interrupt = interrupt
        self.company = company or Company()
        self.made_room = False
        # As it was when this worker's last trial ended, until its next one begins.
        self.latest: Progress | None = None
        spec = opened.specification
        self.pruner = make_pruner(spec.pruner, spec.seed, spec.train.epochs)
        self.provenance = provenance(
            trainer.device,
            spec.data.data_dir,
            trainer.threads,
            TRAINER_VERSION,
            hardware(trainer.device),
        )

    def run(self) -> None:
        """Work until every slot is finished, or the interrupt has a reason.

        Raises:
            SweepFailed: see `SAME_FAILURES`.
            StorageError: the storage failed; every finished trial is kept.
            DeviceLost: this process can train nothing more.
        """
        try:
            with storage_errors(self.opened.storage):
                self._run()
        except BrokenPipeError:
            raise  # whoever watched has gone
        except OSError as e:
            place = e.filename or self.opened.checkpoints.place.where
            raise StorageError(f"{e.strerror or e}: {place}; every finished trial is kept") from e

    def _run(self) -> None:
        if self.company.first:
            self.watcher.opened(self.opened.name, self.opened.progress())
        while not self.made_room and not self._should_stop():
            self.opened.make_room()
            lease = self.opened.slots.take()
            if lease is not None:
                self._work_on(lease)
            elif self.opened.slots.unfinished():
                self.latest = None
                # Another worker is at it; should it die, its trial can be adopted here.
                self.company.pause(_POLL_SECONDS)
            else:
                break

    def _should_stop(self) -> bool:
        try:
            asked = self.opened.is_to_stop()
        except KeyError as e:
            raise SweepFailed(f"study {self.opened.name!r} was deleted") from e
        if not self.interrupt.reason and asked:
            self.interrupt.ask("`visweep stop` was called")
        return bool(self.interrupt.reason)

    def _work_on(self, lease: Lease) -> None:
        slots = self.opened.slots
        try:
            with Heartbeat(slots, lease) as heartbeat:
                trial = _TrialRun(self, lease, heartbeat)
                with slots.fenced(lease):
                    trial.run()
            if trial.state == TrialState.RUNNING:
                slots.release(lease)
            trial.conclude()
        except LeaseLost as e:
            self.watcher.note(str(e))
            self.watcher.left(lease.number)
        except DeviceLost:
            # This process ends, and the lease with it: whoever takes the trial over counts that.
            raise
        except BaseException:
            slots.release(lease)
            raise


class _TrialRun:
    """One trial, from its lease to its end."""

    def __init__(self, worker: Worker, lease: Lease, heartbeat: Heartbeat) -> None:
        self.worker = worker
        self.opened = worker.opened
        self.lease = lease
        self.heartbeat = heartbeat
        self.latest, worker.latest = worker.latest, None
        self.spec = worker.opened.specification
        self.parameters: dict[str, Any] = {}
        self.curve: dict[int, float] = {}
        self.pruned = False
        self.takes_over = lease.adopted
        self.seconds = 0.0
        self.state = TrialState.RUNNING
        self.ended = ""

    def frozen(self) -> FrozenTrial:
        return self.opened.storage.get_trial(self.lease.trial_id)

    def view(self, **changes: Any) -> TrialView:
        shown = TrialView(
            number=self.lease.number,
            parameters=self.parameters,
            epochs=self.spec.train.epochs,
            curve=tuple(self.curve[epoch] for epoch in sorted(self.curve)),
            seconds=self.seconds,
            adopted=self.lease.adopted,
        )
        return replace(shown, **changes)

    def run(self) -> None:
        """Train the trial to its end, unless it is interrupted; needs the lease."""
        try:
            if not self.lease.adopted:
                self._begin()
            trial = self.frozen()
            self.parameters = trial.params
            self.worker.company.began(self.parameters)
            self.worker.watcher.began(self.view(), self._progress())
            self._require_survivors()
            result = self._fit(trial)
        except OSError:
            # Who has adopted the trial clears away what this worker was writing.
            self.opened.slots.renew(self.lease)
            raise
        except (StorageError, LeaseLost, DeviceLost, *DATABASE_ERRORS):
            raise
        except OutOfMemory as e:
            self._give_up(e)
            return
        except Crowded as e:
            self._make_room(e)
            return
        except Exception as e:
            self._fail(e)
            return
        if not self._is_interrupted(result):
            self._finish(result)

    def _progress(self) -> Progress:
        """How far the study is, with this trial begun. That others began or ended one since the
        last one ended here, a moment ago, is shown when this one ends."""
        if self.latest is None or self.lease.adopted:
            return self.opened.progress()
        return replace(self.latest, running=self.latest.running + 1)

    def conclude(self) -> None:
        """What follows from the trial's end; the lease has been given back.

        Raises:
            SweepFailed: see `SAME_FAILURES`.
        """
        if self.state == TrialState.RUNNING:
            return
        trials = self.opened.trials()
        progress = self.worker.latest = self.opened.progress(trials)
        self._thin_checkpoints(trials)
        failed = self.state == TrialState.FAIL
        shown = self.view(state="failed" if failed else self.state.name.lower(), ended=self.ended)
        self.worker.watcher.ended(shown, progress)
        if failed:
            if _failed_alike(trials) >= SAME_FAILURES:
                raise SweepFailed(
                    f"{SAME_FAILURES} trials in a row failed for the same cause: {self.ended}"
                )
            self.opened.make_room()

    def _require_survivors(self) -> None:
        """A trial that ends its process (for want of memory, say) would end them all."""
        if self.lease.lost >= MOST_LOST:
            raise WorkersLost(
                f"{self.lease.lost} workers in a row were ended while they trained it, at the "
                "same epoch; is there too little memory?"
            )

    def _begin(self) -> None:
        waiting = self.frozen()
        check_point(fixed_parameters(waiting), self.spec.space)
        begun = False
        while not begun:
            # It is asked again where another worker has begun this configuration meanwhile.
            keep_to = self.worker.company.keep_to()
            proposal = propose_next(self.opened, self.lease, waiting, keep_to)
            begun = self.opened.slots.begin(
                self.lease,
                proposal.parameters,
                self.spec.space,
                alike=proposal.alike,
                attributes=proposal.attributes,
            )
        if proposal.note:
            self.worker.watcher.note(proposal.note)

    def _fit(self, trial: FrozenTrial) -> FitResult:
        model, train = trained_as(self.spec, trial)
        checkpoint = self.opened.checkpoints.inherit(self.lease.number, self.lease.generation)
        trainer = self.worker.trainer
        arguments: dict[str, Any] = {"on_epoch": self.on_epoch, "checkpoint": checkpoint}
        if not checkpoint.exists():
            if trial.intermediate_values:
                self._begins_anew("its checkpoint is missing")
            if trial.intermediate_values or any(k.startswith(RUNG) for k in trial.system_attrs):
                self.opened.slots.start_over(self.lease)
        try:
            return trainer.fit(model, train, **arguments)
        except CheckpointError as e:
            self._begins_anew(str(e))
            self.opened.checkpoints.remove(self.lease.number, self.lease.generation)
            self.opened.slots.start_over(self.lease)
            return trainer.fit(model, train, **arguments)

    def _begins_anew(self, reason: str) -> None:
        self.worker.watcher.note(f"trial {self.lease.number} begins anew: {reason}")

    def on_epoch(self, result: EpochResult) -> bool:
        """Report one epoch; returns True to stop, be it pruned or interrupted."""
        self.heartbeat.check()
        if not result.replayed:
            # Whoever adopts the trial must find every epoch that is reported.
            self.opened.checkpoints.keep(self.lease.number, self.lease.generation)
        self.curve[result.epoch] = result.mean_val_accuracy
        self.seconds += result.train_seconds + result.val_seconds
        self.opened.storage.set_trial_intermediate_value(
            self.lease.trial_id, result.epoch, result.mean_val_accuracy
        )
        if result.replayed:
            return False
        self.worker.watcher.advanced(self.view())
        self.pruned = result.epoch < self.spec.train.epochs and self._should_prune()
        return self.pruned or self.worker._should_stop()

    def _should_prune(self) -> bool:
        pruner: BasePruner = self.worker.pruner
        if self.takes_over:
            # Its last worker may have died of this very decision.
            self.takes_over = False
            step = max(self.curve)
            rungs = rungs_from(pruner, self.opened.study, self.frozen(), step)
            if rungs:
                self.opened.slots.forget(self.lease, rungs)
        decided = pruner.prune(self.opened.study, self.frozen())
        # The baseline is what everything is compared with, so it runs to its end.
        return decided and self.lease.number != 0

    def _is_interrupted(self, result: FitResult) -> bool:
        return result.ended == "stopped" and not self.pruned

    def _finish(self, result: FitResult) -> None:
        self.heartbeat.check()
        epochs = len(result.history)
        ended = f"pruned at epoch {epochs}" if result.ended == "stopped" else result.ended
        completed = result.ended == "completed"
        state = TrialState.COMPLETE if completed else TrialState.PRUNED
        value = result.history[-1].mean_val_accuracy if completed else self._last_value()
        self._tell(state, value, ended, attributes_of(result))

    def _tell(
        self, state: TrialState, value: float | None, ended: str, attributes: Mapping[str, Any]
    ) -> None:
        """End the trial, complete in every respect; the lease is given back with that."""
        said = {**attributes, **self._change(), "ended": ended, **self._whereabouts()}
        self.opened.slots.finish(self.lease, state, value, said)
        self.state, self.ended = state, ended

    def _give_up(self, error: OutOfMemory) -> None:
        """A result like any other: this configuration cannot be trained here."""
        self.heartbeat.check()
        # It may have been adopted, and not have come to its first epoch here.
        self.curve = {**self.frozen().intermediate_values, **self.curve}
        attributes = {"out_of_memory": str(error), "epochs": len(self.curve)}
        self._tell(TrialState.PRUNED, self._last_value(), OUT_OF_MEMORY, attributes)

    def _make_room(self, error: Crowded) -> None:
        """Leave the trial as it is, to whoever has room for it."""
        self.heartbeat.check()
        self.worker.made_room = True
        self.worker.watcher.note(
            f"trial {self.lease.number} is put back, and one trial less is trained at a time: "
            f"{error}"
        )
        self.worker.watcher.left(self.lease.number)

    def _last_value(self) -> float | None:
        """What a pruned trial came to, as `study.tell` has it."""
        last = self.curve.get(max(self.curve, default=0))
        return last if last is not None and isfinite(last) else None

    def _change(self) -> dict[str, Any]:
        """What this arm changes, for whoever reads the trial with other tools."""
        arm = self.spec.arms.get(self.parameters.get(ARM, ""))
        if arm is None or arm.against is None:
            return {}
        fields = arm.differences(self.spec.arms[arm.against])
        return {"against": arm.against, "change": {name: list(v) for name, v in fields.items()}}

    def _whereabouts(self) -> dict[str, Any]:
        return {"device": self.worker.trainer.device, "provenance": self.worker.provenance}

    def _thin_checkpoints(self, trials: Sequence[FrozenTrial]) -> None:
        finished = [t for t in trials if t.state.is_finished()]
        ranked = sorted(
            (t for t in finished if t.state == TrialState.COMPLETE),
            key=lambda t: t.value or 0.0,
            reverse=True,
        )
        keep = {t.number for t in ranked[:KEPT_CHECKPOINTS]}
        for name, arm in self.spec.arms.items():
            if arm.against is None:
                keep.update([t.number for t in ranked if t.params.get(ARM) == name][:1])
        keep.update(self._still_racing(ranked))
        self.opened.checkpoints.thin({t.number for t in finished}, keep)

    def _still_racing(self, completed: Sequence[FrozenTrial]) -> list[int]:
        """The test images will be looked at with every run of the arm that wins."""
        attributes = self.opened.study.user_attrs if self.spec.arms else {}
        if RACE not in attributes:
            return []
        dropped = attributes.get(DROPPED, ())
        return [t.number for t in completed if t.params.get(ARM) not in dropped]

    def _fail(self, error: Exception) -> None:
        """Record the failure, with its traceback."""
        cause = f"{type(error).__name__}: {error}".splitlines()[0]
        trace = "".join(traceback.format_exception(error))
        # Not by `study.tell`, which refuses a trial that failed before it had parameters.
        self._tell(TrialState.FAIL, None, f"failed: {cause}", {"traceback": trace})
        self.ended = cause


def _failed_alike(trials: Sequence[FrozenTrial]) -> int:
    """How many of the last finished trials failed for the cause of the last one."""
    # By number, since clocks may be set back; trials are begun in this order.
    finished = [t for t in trials if t.state.is_finished()]
    latest_first = sorted(finished, key=lambda t: t.number, reverse=True)
    count = 0
    for trial in latest_first:
        same = trial.user_attrs.get("ended") == latest_first[0].user_attrs.get("ended")
        if trial.state != TrialState.FAIL or not same:
            break
        count += 1
    return count
