"""Replicas that are trained a few at a time, and replicas that stop alone."""

import math
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from visweep import draws, models
from visweep.config import ModelConfig, TrainConfig, ViTConfig
from visweep.data.dataset import Dataset
from visweep.data.resident import ResidentData, to_device
from visweep.training.fit import fit
from visweep.training.passes import Member, Pass
from visweep.training.results import EpochResult, FitResult
from visweep.training.rounds import Rounds
from visweep.training.run import Run

CPU = torch.device("cpu")
SEEDS = (3, 5, 8, 13, 21)
TOO_MUCH = 2**60  # bytes that no machine has


@pytest.fixture(scope="module")
def data(quadrants: Dataset) -> ResidentData:
    return to_device(quadrants, CPU)


@pytest.fixture
def exact(train: TrainConfig) -> TrainConfig:
    return train.replace(precision="float64", seeds=SEEDS, train_curves=True)


def assert_equal(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=0, atol=1e-10)


def trained(model: ModelConfig, train: TrainConfig, data: ResidentData, at_once: int) -> Any:
    """A pass so divided, and what its epochs gave."""
    run = Pass.of(model, train, data)
    run._take_at_once(at_once)
    return run, [run.epoch([epoch])[0] for epoch in (1, 2)]


@pytest.mark.parametrize("at_once", [1, 2, 4])
def test_a_few_at_a_time_train_as_all_at_once(
    model: ModelConfig, exact: TrainConfig, data: ResidentData, at_once: int
) -> None:
    (whole, expected), (some, found) = (
        trained(model, exact, data, count) for count in (len(SEEDS), at_once)
    )
    assert_equal(some.flat.values, whole.flat.values)
    for one, other in zip(some.model.buffers(), whole.model.buffers(), strict=True):
        assert_equal(one, other)
    for mine, its in zip(found, expected, strict=True):
        assert mine.train_loss == pytest.approx(its.train_loss, abs=1e-10)
        assert mine.val_loss == pytest.approx(its.val_loss, abs=1e-10)
        assert mine.val_accuracy == its.val_accuracy
        assert mine.plain_train_accuracy == its.plain_train_accuracy
        assert mine.augmented_train_accuracy == its.augmented_train_accuracy
    assert torch.equal(some.validated(), whole.validated())


def test_in_parts_of_batches_too(
    model: ModelConfig, exact: TrainConfig, many_quadrants: Dataset
) -> None:
    many = to_device(many_quadrants, CPU)
    exact = exact.replace(batch_size=100)
    whole, some = (Pass.of(model, exact, many) for _ in range(2))
    some._take_at_once(2)
    some.micro.halve()
    for run in (whole, some):
        run.epoch([1])
    assert some.micro.divided
    assert_equal(some.flat.values, whole.flat.values)


def hungry(monkeypatch: pytest.MonkeyPatch, replicas: int) -> list[tuple[int, int]]:
    """From now on no model trains more than so many replicas at a time, or 8 images. Returns what
    is tried, replicas and images."""
    stack, tried = models.stack, list[tuple[int, int]]()

    def look(head: nn.Module, arguments: tuple[Tensor]) -> None:
        if head.training:
            tried.append((arguments[0].shape[0], arguments[0].shape[1]))
            if arguments[0].shape[0] > replicas or (replicas == 0 and arguments[0].shape[1] > 8):
                torch.empty(TOO_MUCH, dtype=torch.uint8)

    def starved(configs: Sequence[ModelConfig]) -> nn.Module:
        model = stack(configs)
        model.head.register_forward_pre_hook(look)
        return model

    monkeypatch.setattr(models, "stack", starved)
    return tried


def test_what_does_not_fit_is_divided_once_and_nothing_changes(
    model: ModelConfig,
    exact: TrainConfig,
    data: ResidentData,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = fit(model, exact, data)
    tried = hungry(monkeypatch, 2)
    divided = fit(model, exact, data)
    steps = exact.epochs * (len(data.train) // exact.batch_size)
    assert [count for count, _ in tried] == [5, 3, *[2, 2, 1] * steps]
    assert {images for _, images in tried} == {exact.batch_size}
    assert (divided.replicas_at_once, divided.micro_batch) == (2, None)
    for name, value in whole.model.state_dict().items():
        assert_equal(divided.model.state_dict()[name], value)


def test_on_a_gpu_what_is_tried_again_draws_the_same(
    vit: ViTConfig, exact: TrainConfig, data: ResidentData, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its generators have been drawn from by what failed."""
    monkeypatch.setattr(draws, "_seeds_for_every_place", lambda device: False)
    whole = fit(vit, exact, data)
    hungry(monkeypatch, 2)
    divided = fit(vit, exact, data)
    assert divided.replicas_at_once == 2
    for name, value in whole.model.state_dict().items():
        assert_equal(divided.model.state_dict()[name], value)


def test_a_resumed_run_is_divided_as_before_and_is_bit_identical(
    model: ModelConfig,
    train: TrainConfig,
    data: ResidentData,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    train, path = train.replace(seeds=SEEDS), tmp_path / "run"
    hungry(monkeypatch, 2)
    whole = fit(model, train, data)
    fit(model, train, data, checkpoint=path, on_epoch=lambda r: r.epoch == 2)
    monkeypatch.undo()  # and there is room enough again
    resumed = fit(model, train, data, checkpoint=path)
    assert resumed.replicas_at_once == 2
    for name, value in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], value)


def stopping(after: dict[int, Collection[int]]) -> Callable[[EpochResult], Any]:
    """Stops these seeds after these epochs."""
    return lambda result: after.get(result.epoch, False)


class TestStoppedAlone:
    AFTER: ClassVar[dict[int, Collection[int]]] = {1: (5,), 3: (3, 21)}  # of four epochs

    def assert_as_expected(
        self, result: FitResult, model: ModelConfig, exact: TrainConfig, data: ResidentData
    ) -> None:
        """Whoever is left is what it would be alone."""
        assert [epoch.seeds for epoch in result.history] == [
            SEEDS, (3, 8, 13, 21), (3, 8, 13, 21), (8, 13),
        ]  # fmt: skip
        assert result.ended == "completed"
        assert len(result.train_accuracy) == 2
        for row, seed in enumerate((8, 13)):
            alone = fit(model, exact.replace(seeds=(seed,)), data)
            for name, value in alone.model.state_dict().items():
                assert_equal(result.model.state_dict()[name][row : row + 1], value)
            for mine, its in zip(result.history, alone.history, strict=True):
                place = mine.seeds.index(seed)
                assert mine.val_accuracy[place] == its.val_accuracy[0]
                assert mine.train_loss[place] == pytest.approx(its.train_loss[0], abs=1e-9)

    def test_they_leave_the_stack_and_the_others_go_on(
        self, model: ModelConfig, exact: TrainConfig, data: ResidentData
    ) -> None:
        result = fit(model, exact, data, on_epoch=stopping(self.AFTER))
        self.assert_as_expected(result, model, exact, data)

    def test_the_pass_becomes_smaller(
        self, vit: ViTConfig, exact: TrainConfig, data: ResidentData
    ) -> None:
        run, rounds = Run(Member(vit, exact), data, stopping(self.AFTER)), Rounds(data)
        rounds.join(run)
        replicas = []
        while not run.over:
            for turn in rounds.round():
                replicas.append(rounds._groups[0].shared().replicas)
                turn.take()
        assert replicas == [5, 4, 4, 2]

    @pytest.mark.parametrize("epoch", [1, 2, 3])
    def test_a_resumed_run_goes_on_without_them(
        self,
        model: ModelConfig,
        exact: TrainConfig,
        data: ResidentData,
        tmp_path: Path,
        epoch: int,
    ) -> None:
        """Also where it was ended after an epoch was kept and before its answer was heard."""

        class Ended(Exception):
            pass

        def end(result: EpochResult) -> Any:
            if result.epoch == epoch:
                raise Ended
            return stopping(self.AFTER)(result)

        with pytest.raises(Ended):
            fit(model, exact, data, checkpoint=tmp_path / "run", on_epoch=end)
        answer = stopping(self.AFTER)
        result = fit(model, exact, data, checkpoint=tmp_path / "run", on_epoch=answer)
        self.assert_as_expected(result, model, exact, data)

    def test_beside_others_in_a_pass(
        self, vit: ViTConfig, exact: TrainConfig, data: ResidentData
    ) -> None:
        other = vit.replace(depth=1, num_heads=4)
        first = Run(Member(vit, exact), data, stopping(self.AFTER))
        second = Run(Member(other, exact.replace(seeds=(3,))), data)
        rounds = Rounds(data)
        for run in (first, second):
            rounds.join(run)
        while not first.over:
            assert len(rounds._wanted()) == 1
            for turn in rounds.round():
                turn.take()
        self.assert_as_expected(rounds.leave(first), vit, exact, data)
        alone, found = fit(other, exact.replace(seeds=(3,)), data), rounds.leave(second)
        for name, value in alone.model.state_dict().items():
            assert_equal(found.model.state_dict()[name], value)

    def test_who_goes_back_to_what_was_kept_goes_on_without_them(
        self, vit: ViTConfig, exact: TrainConfig, data: ResidentData, tmp_path: Path
    ) -> None:
        run = Run(Member(vit, exact), data, stopping(self.AFTER), tmp_path / "run")
        rounds = Rounds(data)
        rounds.join(run)
        for number in range(exact.epochs):
            for turn in rounds.round():
                turn.take()
            if number == 0:
                rounds._again(rounds._groups[0], [run])
                assert run.member.train.seeds == (3, 8, 13, 21)
        self.assert_as_expected(rounds.leave(run), vit, exact, data)

    @pytest.mark.parametrize("all_", [True, SEEDS])
    def test_all_of_them(
        self, vit: ViTConfig, exact: TrainConfig, data: ResidentData, all_: Any
    ) -> None:
        result = fit(vit, exact, data, on_epoch=stopping({2: all_}))
        assert (result.ended, len(result.history)) == ("stopped", 2)
        assert len(result.train_accuracy) == len(SEEDS)

    def test_one_that_diverges_may_leave_and_ends_the_run_if_it_does_not(
        self,
        vit: ViTConfig,
        exact: TrainConfig,
        data: ResidentData,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        losses = Pass._loss

        def lost(self: Pass, share: Any, indices: Tensor, draws: Any) -> Tensor:
            found = losses(self, share, indices, draws)
            if 5 not in self._seeds:
                return found
            rows = torch.tensor([self._seeds[row] == 5 for row in share.rows])
            return torch.where(rows, torch.nan, found)

        monkeypatch.setattr(Pass, "_loss", lost)
        result = fit(vit, exact, data)
        assert (result.ended, len(result.history)) == ("diverged", 1)

        def without(result: EpochResult) -> list[int]:
            pairs = zip(result.seeds, result.train_loss, strict=True)
            return [seed for seed, loss in pairs if not math.isfinite(loss)]

        result = fit(vit, exact, data, on_epoch=without)
        assert (result.ended, result.history[-1].seeds) == ("completed", (3, 8, 13, 21))
        monkeypatch.undo()
        alone = fit(vit, exact.replace(seeds=(8,)), data)
        for name, value in alone.model.state_dict().items():
            assert_equal(result.model.state_dict()[name][1:2], value)

    def test_whoever_is_no_replica_cannot_be_stopped(
        self, vit: ViTConfig, exact: TrainConfig, data: ResidentData
    ) -> None:
        with pytest.raises(
            ValueError, match=r"on_epoch returned \{4\}, which are no seeds of this"
        ):
            fit(vit, exact, data, on_epoch=stopping({2: [3, 4]}))

    @pytest.mark.parametrize("answer", [torch.tensor(True), 1, "yes"])
    def test_what_is_true_stops_all(
        self, vit: ViTConfig, exact: TrainConfig, data: ResidentData, answer: Any
    ) -> None:
        assert fit(vit, exact, data, on_epoch=lambda _: answer).ended == "stopped"

    def test_at_the_end_there_is_nothing_to_stop(
        self, vit: ViTConfig, exact: TrainConfig, data: ResidentData
    ) -> None:
        result = fit(vit, exact, data, on_epoch=stopping({exact.epochs: (3,)}))
        assert (result.ended, len(result.train_accuracy)) == ("completed", len(SEEDS))
