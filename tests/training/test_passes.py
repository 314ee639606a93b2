"""Promise 3 for different runs that share a pass: each result is that of the run alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from visweep import draws as draws_module
from visweep import models
from visweep.config import ConvNetConfig, TrainConfig, ViTConfig
from visweep.data.dataset import Dataset
from visweep.data.resident import ResidentData, to_device
from visweep.draws import Draws
from visweep.errors import Crowded, OutOfMemory
from visweep.training import rounds as rounds_module
from visweep.training.fit import fit
from visweep.training.lanes import Pieces
from visweep.training.passes import Member, Pass
from visweep.training.results import EpochResult, FitResult
from visweep.training.rounds import Rounds
from visweep.training.run import Run

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def data(quadrants: Dataset) -> ResidentData:
    return to_device(quadrants, CPU)


@pytest.fixture
def exact(train: TrainConfig) -> TrainConfig:
    """20 steps in float64."""
    return train.replace(precision="float64")


@pytest.fixture
def ragged(vit: ViTConfig, exact: TrainConfig) -> list[Member]:
    """A bucket with nothing alike that need not be: neither sorted nor side by side."""
    return [
        Member(vit, exact.replace(seeds=(3, 5))),
        Member(vit.replace(depth=3, num_heads=4, drop=0.3), exact.replace(seeds=(3,), lr=2e-3)),
        Member(vit.replace(depth=1, attn_drop=0.0), exact.replace(seeds=(8,), weight_decay=0.3)),
        Member(vit.replace(depth=3, num_heads=1, drop=0.0), exact.replace(epochs=2)),
        Member(vit.replace(depth=2, num_heads=4), exact.replace(clip_norm=0.05, warmup_epochs=0)),
    ]


@pytest.fixture
def wide(convnet: ConvNetConfig, exact: TrainConfig) -> list[Member]:
    return [
        Member(convnet, exact),
        Member(convnet.replace(drop=0.4), exact.replace(seeds=(7,), lr=1e-3, epochs=2)),
    ]


def together(members: Sequence[Member], data: ResidentData, **joins: int) -> list[FitResult]:
    """Train all side by side; run i joins before round `join_i`."""
    rounds = Rounds(data)
    runs = [Run(member, data) for member in members]
    waiting = [(joins.get(f"join_{i}", 0), run) for i, run in enumerate(runs)]
    results: dict[Run, FitResult] = {}
    number = 0
    while len(results) < len(runs):
        for when, run in waiting:
            if when == number:
                rounds.join(run)
        for turn in rounds.round():
            turn.take()
            if turn.run.over:
                results[turn.run] = rounds.leave(turn.run)
        number += 1
    return [results[run] for run in runs]


def assert_alike(one: FitResult, other: FitResult, tolerance: float = 1e-8) -> None:
    ours, theirs = one.model.state_dict(), other.model.state_dict()
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name], rtol=0, atol=tolerance)
    assert one.train_accuracy == other.train_accuracy
    assert (one.ended, one.num_params) == (other.ended, other.num_params)
    for mine, its in zip(one.history, other.history, strict=True):
        assert mine.val_accuracy == its.val_accuracy
        assert mine.images == its.images
        assert mine.train_loss == pytest.approx(its.train_loss, abs=tolerance)
        assert mine.val_loss == pytest.approx(its.val_loss, abs=tolerance)


@pytest.mark.parametrize("bucket", ["ragged", "wide"])
def test_sharing_a_pass_changes_no_result(
    request: pytest.FixtureRequest, data: ResidentData, bucket: str
) -> None:
    members: list[Member] = request.getfixturevalue(bucket)
    assert len({member.bucket for member in members}) == 1
    for member, result in zip(members, together(members, data), strict=True):
        assert_alike(result, fit(member.model, member.train, data))


@pytest.mark.parametrize("bucket", ["ragged", "wide"])
def test_joining_late_and_leaving_early_change_no_result(
    request: pytest.FixtureRequest, data: ResidentData, bucket: str
) -> None:
    members: list[Member] = request.getfixturevalue(bucket)
    for member, result in zip(
        members, together(members, data, join_0=1, join_1=3, join_3=2), strict=True
    ):
        assert_alike(result, fit(member.model, member.train, data))


@pytest.mark.parametrize("bucket", ["ragged", "wide"])
def test_nor_does_it_where_draws_follow_one_another_as_on_a_gpu(
    request: pytest.FixtureRequest,
    data: ResidentData,
    bucket: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(draws_module, "_seeds_for_every_place", lambda device: False)
    members: list[Member] = request.getfixturevalue(bucket)
    results = together(members, data, join_1=2)
    for member, result in zip(members, results, strict=True):
        assert_alike(result, fit(member.model, member.train, data))
    monkeypatch.undo()
    usual = fit(members[0].model, members[0].train, data)
    assert usual.history[0].train_loss != results[0].history[0].train_loss


def test_runs_of_different_buckets_train_side_by_side(
    ragged: list[Member], wide: list[Member], data: ResidentData
) -> None:
    members = [ragged[0], wide[0], ragged[1], wide[1]]
    for member, result in zip(members, together(members, data), strict=True):
        assert_alike(result, fit(member.model, member.train, data))


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_bucket(vit: ViTConfig, train: TrainConfig, data: ResidentData, drawn: Any) -> None:
    rate = st.sampled_from([0.0, 0.1, 0.5])
    member = st.builds(
        lambda depth, heads, drop, attn_drop, seed: Member(
            vit.replace(depth=depth, num_heads=heads, drop=drop, attn_drop=attn_drop),
            train.replace(precision="float64", epochs=1, seeds=(seed,)),
        ),
        st.integers(1, 3),
        st.sampled_from([1, 2, 4]),
        rate,
        rate,
        st.integers(0, 3),
    )
    members = drawn.draw(st.lists(member, min_size=2, max_size=4))
    for found, result in zip(members, together(members, data), strict=True):
        assert_alike(result, fit(found.model, found.train, data))


def test_in_float32_the_first_steps_agree_to_rounding(
    ragged: list[Member], data: ResidentData
) -> None:
    members = [replace(m, train=m.train.replace(precision="float32", epochs=1)) for m in ragged]
    for member, result in zip(members, together(members, data), strict=True):
        alone = fit(member.model, member.train, data)
        for name, value in result.model.state_dict().items():
            torch.testing.assert_close(value, alone.model.state_dict()[name], rtol=0, atol=5e-3)


def test_one_pass_is_one_forward_over_all(ragged: list[Member], data: ResidentData) -> None:
    shared = Pass(ragged, data)
    rows: list[int] = []
    shared.model.register_forward_pre_hook(lambda _, given: rows.append(len(given[0])))
    shared.epoch([1] * len(ragged))
    evaluations = 1
    assert rows == [sum(m.replicas for m in ragged)] * (shared.steps_per_epoch + evaluations)
    # Each block runs over the replicas that have it, and no more.
    depths = [m.model.depth for m in ragged for _ in m.train.seeds]
    reach = [len(block.norm1.weight) for block in shared.model.blocks]
    assert reach == [sum(depth > index for depth in depths) for index in range(3)]


@pytest.mark.parametrize("curves", [False, True])
def test_only_the_last_piece_of_an_epoch_waits_for_the_device(
    vit: ViTConfig, exact: TrainConfig, data: ResidentData, curves: bool
) -> None:
    shared = Pass.of(vit, exact.replace(train_curves=curves), data)
    waits = list(shared.pieces([1]))
    assert waits == [False] * (shared.steps_per_epoch + (2 if curves else 0)) + [True]


@pytest.mark.parametrize("bucket", ["ragged", "wide"])
def test_a_step_that_is_left_to_itself_is_the_same_step(
    request: pytest.FixtureRequest, data: ResidentData, bucket: str
) -> None:
    """What is captured on a GPU: it knows the step, and so images and learning rate, by itself."""
    members = request.getfixturevalue(bucket)[:2]
    guided, alone = Pass(members, data), Pass(members, data)
    for epoch in (1, 2):
        expected = [loss for r in guided.epoch([epoch] * 2) for loss in r.train_loss]
        draws, count = alone.draws.at_each("epoch", [epoch] * alone.replicas), 5
        unattended = alone._unattended
        order = draws.permutation(len(data.train), "order")
        nothing = torch.zeros(alone.replicas, dtype=torch.float64)
        first = (epoch - 1) * count
        unattended.begin([first] * alone.replicas, order, nothing)
        alone.model.train()
        for step in range(first, first + count):
            unattended.step(alone.draws.at_each("step", [step] * alone.replicas))
        losses = [unattended.losses[row] / count for rows in alone.rows for row in rows]
        assert losses == pytest.approx(expected, abs=1e-6)
    # The learning rates are float32 here, as they are on a GPU.
    torch.testing.assert_close(alone.flat.values, guided.flat.values, rtol=0, atol=1e-6)


def test_what_diverges_leaves_its_neighbours_alone(
    ragged: list[Member], data: ResidentData
) -> None:
    wild = replace(ragged[2], train=ragged[2].train.replace(lr=1e300, weight_decay=1e300))
    results = together([ragged[0], wild, ragged[1]], data)
    assert [result.ended for result in results] == ["completed", "diverged", "completed"]
    assert_alike(results[0], fit(ragged[0].model, ragged[0].train, data))
    assert_alike(results[2], fit(ragged[1].model, ragged[1].train, data))


def test_what_was_begun_in_company_goes_on_alone(
    ragged: list[Member], data: ResidentData, tmp_path: Path
) -> None:
    paths = [tmp_path / str(index) for index in range(len(ragged))]
    runs = [Run(m, data, after_second, path) for m, path in zip(ragged, paths, strict=True)]
    side_by_side(runs, data, rounds=2)
    for member, path in zip(ragged, paths, strict=True):
        resumed = fit(member.model, member.train, data, checkpoint=path)
        assert_alike(resumed, fit(member.model, member.train, data))


def test_what_was_begun_alone_goes_on_in_company(
    ragged: list[Member], data: ResidentData, tmp_path: Path
) -> None:
    paths = [tmp_path / str(index) for index in range(len(ragged))]
    for member, path in zip(ragged, paths, strict=True):
        fit(member.model, member.train, data, checkpoint=path, on_epoch=after_second)
    runs = [Run(m, data, None, path) for m, path in zip(ragged, paths, strict=True)]
    results = side_by_side(runs, data, rounds=2)
    for member, result in zip(ragged, results, strict=True):
        assert_alike(result, fit(member.model, member.train, data))


def after_second(result: EpochResult) -> bool:
    return result.epoch == 2


def side_by_side(runs: Sequence[Run], data: ResidentData, rounds: int) -> list[FitResult]:
    """So many epochs of all runs that are not over; what came of them."""
    shared = Rounds(data)
    for run in runs:
        if not run.over:
            shared.join(run)
    for _ in range(rounds):
        for turn in shared.round():
            turn.take()
    return [shared.leave(run) for run in runs]


class TestFailures:
    """What a pass over several runs fails with is that of the run that fails alone."""

    @pytest.fixture
    def kept(
        self, ragged: list[Member], data: ResidentData, tmp_path: Path
    ) -> Callable[[], list[Run]]:
        return lambda: [
            Run(member, data, None, tmp_path / str(index)) for index, member in enumerate(ragged)
        ]

    def test_what_does_not_fit_together_is_trained_in_smaller_passes(
        self,
        ragged: list[Member],
        data: ResidentData,
        kept: Callable[[], list[Run]],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        sizes: list[int] = []
        pieces = Pass.pieces

        def small(self: Pass, numbers: Sequence[int]) -> Pieces[list[EpochResult]]:
            sizes.append(len(self.members))
            results = yield from pieces(self, numbers)
            # In the midst of it, when all have moved on.
            if len(self.members) > 2 and max(numbers) == 2:
                raise OutOfMemory("full")
            return results

        monkeypatch.setattr(Pass, "pieces", small)
        results = trained(Rounds(data), kept())
        assert sizes[:2] == [5, 5]
        assert max(sizes[2:]) == 2
        monkeypatch.undo()
        for member, result in zip(ragged, results, strict=True):
            assert_alike(result, fit(member.model, member.train, data))

    def test_only_the_one_that_fails_alone_has_failed(
        self,
        ragged: list[Member],
        data: ResidentData,
        kept: Callable[[], list[Run]],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        loss = Pass._loss

        def faulty(self: Pass, *arguments: Any) -> torch.Tensor:
            if any(member.train.clip_norm == 0.05 for member in self.members):
                raise ArithmeticError("a defect")
            return loss(self, *arguments)

        monkeypatch.setattr(Pass, "_loss", faulty)
        runs, rounds = kept(), Rounds(data)
        with pytest.raises(ArithmeticError, match="a defect"):
            trained(rounds, runs)
        rounds.drop(runs[4])
        results = trained(rounds, runs[:4], joined=True)
        monkeypatch.undo()
        for member, result in zip(ragged, results, strict=False):
            assert_alike(result, fit(member.model, member.train, data))

    def test_a_run_without_a_checkpoint_cannot_go_back(
        self, ragged: list[Member], data: ResidentData, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        rounds = Rounds(data)
        for member in ragged:
            rounds.join(Run(member, data))
        for turn in rounds.round():
            turn.take()

        def full(self: Pass, *arguments: Any) -> torch.Tensor:
            raise MemoryError

        monkeypatch.setattr(Pass, "_loss", full)
        turns = list(rounds.round())
        assert len(turns) == 5
        for turn in turns:
            with pytest.raises(OutOfMemory):
                turn.take()


class TestAtOnce:
    """Passes that are under way at the same time, as on a GPU."""

    def test_do_their_steps_in_turns_and_change_no_result(
        self,
        ragged: list[Member],
        wide: list[Member],
        data: ResidentData,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        members = [ragged[0], wide[0], ragged[3]]
        monkeypatch.setattr(rounds_module, "seconds_of_a_piece", lambda *_: 1.0)
        stepped: list[int] = []
        step = Pass.step

        def noted(self: Pass, steps: Sequence[int], indices: torch.Tensor) -> torch.Tensor:
            stepped.append(len(self.members))
            return step(self, steps, indices)

        monkeypatch.setattr(Pass, "step", noted)
        rounds = Rounds(data, at_once=True)
        results = trained(rounds, [Run(member, data) for member in members])
        # The two of one bucket share a pass, which takes turns with that of the third.
        assert stepped[:6] == [2, 1, 2, 1, 2, 1]
        monkeypatch.undo()
        for member, result in zip(members, results, strict=True):
            assert_alike(result, fit(member.model, member.train, data))

    @pytest.fixture
    def runs(
        self, ragged: list[Member], wide: list[Member], data: ResidentData, tmp_path: Path
    ) -> list[Run]:
        """Three in one pass, and one in another."""
        members = [*ragged[:3], wide[0]]
        return [Run(m, data, None, tmp_path / str(i)) for i, m in enumerate(members)]

    def test_half_of_a_pass_makes_room_and_goes_on_later(
        self, runs: list[Run], data: ResidentData, room: Callable[[int], None]
    ) -> None:
        rounds = Rounds(data, at_once=True)
        for run in runs:
            rounds.join(run)
        take_all(rounds)
        take_all(rounds)
        assert [len(run.history) for run in runs] == [1, 1, 1, 1]
        room(2)
        crowded = []
        while len(crowded) < 2:
            for turn in rounds.round():
                if isinstance(turn.outcome, Crowded):
                    crowded.append(turn.run)
                    with pytest.raises(Crowded, match=r"beside others, .*not fit in memory"):
                        turn.take()
                    rounds.drop(turn.run)
                else:
                    turn.take()
        assert crowded == runs[1:3]
        assert [len(run.history) for run in runs[:3]] == [1, 1, 1]
        rest = trained(rounds, [runs[0], runs[3]], joined=True)
        later = trained(Rounds(data, at_once=True), [again(run, data) for run in crowded])
        for run, result in zip([runs[0], runs[3], *crowded], [*rest, *later], strict=True):
            assert_alike(result, fit(run.member.model, run.member.train, data))

    def test_the_last_one_is_tried_alone_before_it_is_given_up(
        self, runs: list[Run], data: ResidentData, room: Callable[[int], None]
    ) -> None:
        rounds = Rounds(data, at_once=True)
        alone = [runs[0], runs[3]]
        for run in alone:
            rounds.join(run)
        room(0)
        (turn,) = rounds.round()
        assert isinstance(turn.outcome, Crowded)
        rounds.drop(turn.run)
        (turn,) = rounds.round()
        assert isinstance(turn.outcome, OutOfMemory)
        assert turn.run is runs[3]

    def test_beside_other_processes_even_the_last_one_makes_room(
        self, ragged: list[Member], data: ResidentData, tmp_path: Path, room: Callable[[int], None]
    ) -> None:
        room(0)
        member = ragged[0]
        with pytest.raises(Crowded):
            fit(
                member.model,
                member.train,
                data,
                checkpoint=tmp_path / "run",
                others_beside=True,
            )
        with pytest.raises(OutOfMemory):
            fit(member.model, member.train, data, checkpoint=tmp_path / "run")

    @pytest.fixture
    def room(self, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
        """Makes passes over more runs than so many fail, however they are divided."""
        loss = Pass._loss

        def make(most: int) -> None:
            def full(self: Pass, *arguments: Any) -> torch.Tensor:
                if len(self.members) > most:
                    raise MemoryError
                return loss(self, *arguments)

            monkeypatch.setattr(Pass, "_loss", full)

        return make


def take_all(rounds: Rounds) -> None:
    for turn in rounds.round():
        turn.take()


def again(run: Run, data: ResidentData) -> Run:
    """The same run from its checkpoint, as by another worker."""
    return Run(run.member, data, None, run._checkpoint)


def trained(rounds: Rounds, runs: Sequence[Run], joined: bool = False) -> list[FitResult]:
    for run in [] if joined else runs:
        rounds.join(run)
    results: dict[Run, FitResult] = {}
    while len(results) < len(runs):
        for turn in rounds.round():
            turn.take()
            if turn.run.over:
                results[turn.run] = rounds.leave(turn.run)
    return [results[run] for run in runs]


@pytest.mark.parametrize(
    ("change", "shares"),
    [
        ({"depth": 5, "num_heads": 8, "drop": 0.5, "attn_drop": 0.5}, True),
        ({"patch_size": 2}, False),
        ({"embed_dim": 32}, False),
        ({"mlp_ratio": 2.0}, False),
        ({"class_token": False}, False),
    ],
    ids=str,
)
def test_what_decides_a_bucket(vit: ViTConfig, change: dict[str, Any], shares: bool) -> None:
    assert (vit.replace(**change).bucket == vit.bucket) == shares


@pytest.mark.parametrize(
    ("change", "shares"),
    [
        ({"lr": 1e-4, "weight_decay": 0.0, "seeds": (1, 2), "epochs": 9, "clip_norm": 2.0}, True),
        ({"batch_size": 8}, False),
        ({"label_smoothing": 0.0}, False),
        ({"translate": 0}, False),
        ({"precision": "float32"}, False),
    ],
    ids=str,
)
def test_what_of_the_training_decides_it(
    train: TrainConfig, change: dict[str, Any], shares: bool
) -> None:
    train = train.replace(precision="bfloat16")
    assert (train.replace(**change).bucket == train.bucket) == shares


def test_what_cannot_stack_is_refused(vit: ViTConfig) -> None:
    with pytest.raises(ValueError, match="different buckets"):
        models.stack([vit, vit.replace(embed_dim=32)])
    with pytest.raises(ValueError, match="deepest"):
        models.stack([vit, vit.replace(depth=5)])


def test_equal_streams_are_drawn_once_and_are_those_of_each_alone() -> None:
    rates = [0.3, 0.4, 0.3, 0.3]
    draws = Draws((3, 3, 5, 3), CPU, ()).at_each("step", (7, 7, 7, 8))
    mask = draws.dropout_mask((100,), rates, torch.float32, "here")
    keys = zip([(3, 7), (3, 7), (5, 7), (3, 8)], rates, strict=True)
    for row, ((seed, step), rate) in zip(mask, keys, strict=True):
        alone = Draws((seed,), CPU, ("step", step)).dropout_mask(
            (100,), [rate], torch.float32, "here"
        )
        assert torch.equal(row, alone[0])
    part = draws.rows((1, 2)).dropout_mask((100,), rates[1:3], torch.float32, "here")
    assert torch.equal(part, mask[1:3])
