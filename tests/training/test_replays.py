"""Steps and evaluations that are captured once and then replayed, as on a GPU: here a replay does
the work again, which reads its input from the same tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from visweep import draws as draws_module
from visweep.config import ConvNetConfig, ModelConfig, TrainConfig, ViTConfig
from visweep.data.dataset import Dataset
from visweep.data.resident import ResidentData, to_device
from visweep.errors import Crowded
from visweep.training import evaluate, graphs, passes, probe
from visweep.training import rounds as rounds_module
from visweep.training.amounts import EVALUATED
from visweep.training.cost import seconds_per_epoch
from visweep.training.fit import fit
from visweep.training.passes import Member, Pass
from visweep.training.results import FitResult
from visweep.training.rounds import Rounds
from visweep.training.run import Run

CPU = torch.device("cpu")
Events = list[tuple[str, int]]
"""What happens, and to how many replicas."""


@pytest.fixture(scope="module")
def data(quadrants: Dataset) -> ResidentData:
    return to_device(quadrants, CPU)


@pytest.fixture
def exact(train: TrainConfig) -> TrainConfig:
    """10 steps in float64."""
    return train.replace(precision="float64", epochs=2)


@pytest.fixture(autouse=True)
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draws follow one another, and evaluations take several batches, one of them smaller."""
    monkeypatch.setattr(draws_module, "_seeds_for_every_place", lambda device: False)
    monkeypatch.setitem(EVALUATED, "cpu", 16)


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> Events:
    """That there are graphs, and what happens from now on: `step`, `capture` and `replay` of
    training; `look` is a replay of an evaluation."""
    seen: Events = []

    class Again:
        """What a CUDA graph is to those who replay it."""

        def __init__(
            self,
            work: Callable[[], object],
            device: torch.device,
            generators: Sequence[torch.Generator] = (),
        ) -> None:
            assert device == CPU
            self._work = work
            self._replicas = len(generators)
            if generators:
                seen.append(("capture", self._replicas))

        def replay(self) -> None:
            seen.append(("replay" if self._replicas else "look", self._replicas))
            self._work()

    step = Pass.step

    def noted(self: Pass, *arguments: Any) -> torch.Tensor:
        seen.append(("step", self.replicas))
        return step(self, *arguments)

    monkeypatch.setattr(graphs, "Graph", Again)
    monkeypatch.setattr(passes, "replays", lambda device: True)
    monkeypatch.setattr(Pass, "step", noted)
    return seen


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> Callable[..., FitResult]:
    """`fit` without graphs."""

    def run(*arguments: Any) -> FitResult:
        with monkeypatch.context() as patch:
            patch.setattr(passes, "replays", lambda device: False)
            return fit(*arguments)

    return run


def steps(events: Events) -> list[str]:
    return [what for what, _ in events if what != "look"]


def assert_alike(one: FitResult, other: FitResult, tolerance: float = 1e-6) -> None:
    """The learning rates of replays are float32, as on a GPU."""
    theirs = other.model.state_dict()
    for name, value in one.model.state_dict().items():
        torch.testing.assert_close(value, theirs[name], rtol=0, atol=tolerance)
    assert one.train_accuracy == other.train_accuracy
    assert one.ended == other.ended
    for mine, its in zip(one.history, other.history, strict=True):
        assert mine.val_accuracy == its.val_accuracy
        assert mine.plain_train_accuracy == its.plain_train_accuracy
        assert mine.augmented_train_accuracy == its.augmented_train_accuracy
        assert mine.train_loss == pytest.approx(its.train_loss, abs=tolerance)
        assert mine.val_loss == pytest.approx(its.val_loss, abs=tolerance)


@pytest.mark.parametrize("curves", [False, True])
def test_a_run_of_replays_is_the_plain_run(
    model: ModelConfig,
    exact: TrainConfig,
    data: ResidentData,
    events: Events,
    plain: Callable[..., FitResult],
    curves: bool,
) -> None:
    train = exact.replace(train_curves=curves)
    found = fit(model, train, data)
    # Of the first epoch all that is made once is made in the first steps; the next has none.
    assert steps(events) == [*["step"] * 2, "capture", *["replay"] * 3, *["replay"] * 5]
    assert ("look", 0) in events
    events.clear()
    assert_alike(found, plain(model, train, data))
    assert set(events) == {("step", 2)}


def test_what_is_resumed_is_captured_anew(
    model: ModelConfig,
    exact: TrainConfig,
    data: ResidentData,
    events: Events,
    plain: Callable[..., FitResult],
    tmp_path: Path,
) -> None:
    train = exact.replace(epochs=3)
    path = tmp_path / "run"
    fit(model, train, data, checkpoint=path, on_epoch=lambda result: result.epoch == 1)
    events.clear()
    resumed = fit(model, train, data, checkpoint=path)
    assert steps(events).count("capture") == 1
    assert steps(events).count("step") == 2
    assert_alike(resumed, plain(model, train, data))


@pytest.mark.parametrize("at_once", [True, False])
def test_runs_side_by_side_replay_in_turns_what_each_does_alone(
    vit: ViTConfig,
    convnet: ConvNetConfig,
    exact: TrainConfig,
    data: ResidentData,
    events: Events,
    plain: Callable[..., FitResult],
    at_once: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two of a bucket, which differ in depth, rates and length, and one of another bucket."""
    members = [
        Member(vit, exact.replace(lr=1e-3, epochs=1, seeds=(7,))),
        Member(convnet, exact),
        Member(vit.replace(depth=3, num_heads=4, drop=0.3), exact.replace(weight_decay=0.3)),
    ]
    monkeypatch.setattr(rounds_module, "seconds_of_a_piece", lambda *_: 1.0)
    rounds = Rounds(data, at_once=at_once)
    results = dict(zip(members, _trained(rounds, [Run(m, data) for m in members]), strict=True))
    epoch = [*["step"] * 2, *["replay"] * 3]
    done = [event for event in events if event[0] in epoch]
    if at_once:
        assert done[:10] == [(what, replicas) for what in epoch for replicas in (3, 2)]
    else:
        assert done[:10] == [(what, replicas) for replicas in (3, 2) for what in epoch]
    # The pass of one bucket goes on without the member that is over: as another pass.
    assert steps(events).count("capture") == 3
    for member, result in results.items():
        assert_alike(result, plain(member.model, member.train, data))


def test_what_cannot_be_captured_is_trained_step_by_step(
    model: ModelConfig,
    exact: TrainConfig,
    data: ResidentData,
    events: Events,
    plain: Callable[..., FitResult],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tried: list[int] = []

    def refused(*_: object) -> None:
        tried.append(1)
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(graphs, "Graph", refused)
    found = fit(model, exact, data)
    assert steps(events) == ["step"] * 10
    assert len(tried) == 2  # the steps, and the evaluation
    assert_alike(found, plain(model, exact, data), tolerance=0)


def test_want_of_memory_in_a_capture_makes_room_only_beside_others(
    model: ModelConfig,
    exact: TrainConfig,
    data: ResidentData,
    events: Events,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(graphs, "Graph", full)
    assert fit(model, exact, data, checkpoint=tmp_path / "alone").ended == "completed"
    assert steps(events) == ["step"] * 10
    with pytest.raises(Crowded, match="capturing a step does not fit in memory"):
        fit(model, exact, data, checkpoint=tmp_path / "beside", others_beside=True)


def test_a_divided_batch_is_not_captured(
    vit: ViTConfig, exact: TrainConfig, data: ResidentData, events: Events
) -> None:
    whole, divided = Pass.of(vit, exact, data), Pass.of(vit, exact, data)
    divided.micro.shrink_to(5)
    for run in (divided, whole):
        for epoch in (1, 2):
            run.epoch([epoch])
    assert steps(events) == [*["step"] * 10, *["step"] * 2, "capture", *["replay"] * 8]
    torch.testing.assert_close(divided.flat.values, whole.flat.values, rtol=0, atol=1e-6)


def test_a_few_replicas_at_a_time_are_captured_in_one_step(
    vit: ViTConfig, exact: TrainConfig, data: ResidentData, events: Events
) -> None:
    exact = exact.replace(seeds=(3, 5, 8))
    whole, some = Pass.of(vit, exact, data), Pass.of(vit, exact, data)
    some._take_at_once(2)
    for run in (some, whole):
        for epoch in (1, 2):
            run.epoch([epoch])
    assert steps(events) == 2 * [*["step"] * 2, "capture", *["replay"] * 8]
    torch.testing.assert_close(some.flat.values, whole.flat.values, rtol=0, atol=1e-6)


def test_what_is_timed_is_what_an_epoch_repeats(
    vit: ViTConfig, exact: TrainConfig, data: ResidentData, events: Events
) -> None:
    seconds_per_epoch(vit, exact, data)
    assert steps(events) == ["step", "step", "capture", *["replay"] * 5]


def test_a_probe_times_replays_alone(
    vit: ViTConfig,
    exact: TrainConfig,
    data: ResidentData,
    events: Events,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(probe, "replays", lambda device: True)
    timed: list[Events] = []
    clock = probe.time.process_time

    def noted() -> float:
        timed.append(list(events))
        return clock()

    monkeypatch.setattr(probe.time, "process_time", noted)
    run = Pass.of(vit, exact, data)
    for compute in (
        lambda: probe._seconds_of_a_step(run, exact),
        lambda: probe._seconds(lambda: run.evaluate(data.val), CPU),
    ):
        events.clear()
        timed.clear()
        compute()
        assert {what for what, _ in timed[-1][len(timed[0]) :]} <= {"replay", "look"}
        assert len(timed[-1]) > len(timed[0])


def test_all_batches_of_an_evaluation_are_replayed(
    model: ModelConfig, exact: TrainConfig, data: ResidentData, events: Events
) -> None:
    """The last one, too, which looks again at images of the one before it."""
    images = len(data.val)
    batches = -(-images // EVALUATED["cpu"])
    assert images % EVALUATED["cpu"]
    run = Pass.of(model, exact, data)
    plainly, _ = run._tally(data.val), run._tally(data.val)  # the second is captured
    events.clear()
    replayed = run._tally(data.val)
    assert events == [("look", 0)] * batches
    expected = evaluate.tally(run.model, data, data.val, run.replicas, run.dtype)
    for counted in (plainly, replayed):
        assert torch.equal(counted.correct, expected.correct)
        torch.testing.assert_close(counted.loss, expected.loss)


def test_what_little_memory_divides_captures_nothing(
    vit: ViTConfig, exact: TrainConfig, data: ResidentData, events: Events
) -> None:
    """A graph of the evaluation would keep what the parts were made small for."""
    run = Pass.of(vit, exact.replace(seeds=(3,)), data)
    for _ in range(2):
        run.evaluate(data.val)
    run._divide()
    assert run._forwards == {}, "what was captured before goes"
    events.clear()
    assert run.micro.divided
    for _ in range(3):
        run.evaluate(data.val)
    assert events == []


def test_what_is_evaluated_when_a_run_leaves_is_not_captured(
    vit: ViTConfig, exact: TrainConfig, data: ResidentData, events: Events
) -> None:
    """It is done once, and a capture stops all lanes."""
    rounds = Rounds(data, at_once=True)
    runs = [Run(Member(vit, exact.replace(epochs=e, seeds=(e,))), data) for e in (1, 2)]
    for run in runs:
        rounds.join(run)
    for turn in rounds.round():
        turn.take()
    assert runs[0].over
    events.clear()
    rounds.leave(runs[0])
    assert events == []


def test_captured_evaluations_keep_batches_apart(data: ResidentData, events: Events) -> None:
    """What one gave is read before the next one overwrites it, and other shapes go their own
    way."""
    forward = graphs.Forward()
    model = nn.Linear(3, 2)

    computed: list[int] = []

    def predicted(images: torch.Tensor) -> torch.Tensor:
        computed.append(len(images))
        return model(images)

    with torch.no_grad():
        for rows in (4, 4, 2, 4):
            images = torch.randn(rows, 3)
            assert torch.equal(forward(predicted, images), model(images))
    assert events == [("look", 0)] * 2
    # Twice in the replays; what is captured first is not computed again for that.
    assert computed == [4, 4, 2, 4]


def _trained(rounds: Rounds, runs: Sequence[Run]) -> list[FitResult]:
    for run in runs:
        rounds.join(run)
    results: dict[Run, FitResult] = {}
    while len(results) < len(runs):
        for turn in rounds.round():
            turn.take()
            if turn.run.over:
                results[turn.run] = rounds.leave(turn.run)
    return [results[run] for run in runs]
