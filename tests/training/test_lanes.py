"""Works that share a device get their turns by what their pieces are expected to take."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from visweep.config import ConvNetConfig, TrainConfig, ViTConfig
from visweep.data.dataset import Dataset
from visweep.data.resident import ResidentData, to_device
from visweep.errors import Crowded, OutOfMemory
from visweep.training import rounds as rounds_module
from visweep.training.estimate import Images
from visweep.training.fit import fit
from visweep.training.lanes import AHEAD, Lane, Pieces, Work, until_one_is_done
from visweep.training.pacing import seconds_of_a_piece
from visweep.training.passes import Member, Pass
from visweep.training.results import FitResult
from visweep.training.rounds import Rounds
from visweep.training.run import Run

CPU = torch.device("cpu")
IMAGES = Images(60_000, 10_000)


class TestUntilOneIsDone:
    @pytest.fixture
    def done(self) -> list[str]:
        return []

    @pytest.fixture
    def work(self, done: list[str]) -> Callable[..., Work[str]]:
        def make(name: str, pieces: int, cost: float, clock: float = 0.0) -> Work[str]:
            def all_pieces() -> Pieces[str]:
                for number in range(pieces):
                    done.append(name)
                    yield number == pieces - 1
                done.append(name.upper())
                return name

            return Work(Lane(CPU), all_pieces(), cost, clock)

        return make

    def test_what_takes_a_third_has_three_turns(
        self, work: Callable[..., Work[str]], done: list[str]
    ) -> None:
        short, long = work("s", 60, 1.0), work("l", 60, 3.0)
        assert until_one_is_done([long, short]) == (short, "s")
        assert done.count("s") == 60
        assert done.count("l") in (20, 21)
        assert (short.clock, long.clock) == (61.0, pytest.approx(61.5, abs=1.5))

    def test_the_others_get_ahead_of_what_is_waited_for(
        self, work: Callable[..., Work[str]], done: list[str]
    ) -> None:
        piece = AHEAD / 8
        first, other = work("a", 5, piece), work("b", 100, piece)
        assert until_one_is_done([first, other]) == (first, "a")
        assert "".join(done[:10]) == "ababababab"
        assert "".join(done[10:]) == "b" * 8 + "A"

    def test_what_has_begun_later_has_its_share_from_then_on(
        self, work: Callable[..., Work[str]], done: list[str]
    ) -> None:
        late = work("l", 4, 1.0, clock=5.0)
        assert until_one_is_done([work("e", 99, 1.0), late])[0] == late
        assert "".join(done[:7]) == "eeeeeel"

    def test_what_fails_leaves_the_others_where_they_are(
        self, work: Callable[..., Work[str]], done: list[str]
    ) -> None:
        def failing() -> Pieces[str]:
            yield False
            raise ArithmeticError("a defect")

        def guarded(piece: Callable[[], None]) -> None:
            try:
                piece()
            except ArithmeticError as e:
                raise OutOfMemory("full") from e

        defect, other = Work(Lane(CPU), failing(), 1.0), work("b", 3, 1.0)
        found, error = until_one_is_done([defect, other], guarded)
        assert found == defect
        assert isinstance(error, OutOfMemory)
        assert until_one_is_done([other]) == (other, "b")
        assert done == ["b", "b", "b", "B"]

    @given(
        st.lists(
            st.tuples(st.integers(1, 9), st.integers(1, 32).map(lambda eighths: eighths / 8)),
            min_size=1,
            max_size=5,
        )
    )
    def test_all_are_done_in_the_order_of_their_ends(
        self, given_: list[tuple[int, float]]
    ) -> None:
        def pieces(count: int) -> Pieces[int]:
            for _ in range(count):
                yield False
            return count

        works = [Work(Lane(CPU), pieces(count), cost) for count, cost in given_]
        ends = []
        while works:
            work, count = until_one_is_done(works)
            assert isinstance(count, int)
            works.remove(work)
            ends.append(work.clock - work._cost)  # when its last piece began
        assert ends == sorted(ends)
        assert len(ends) == len(given_)


class TestRounds:
    @pytest.fixture
    def data(self, quadrants: Dataset) -> ResidentData:
        return to_device(quadrants, CPU)

    @pytest.fixture
    def large(self, vit: ViTConfig, train: TrainConfig) -> Member:
        return Member(vit, train.replace(precision="float64", epochs=2))

    @pytest.fixture
    def small(self, convnet: ConvNetConfig, large: Member) -> Member:
        return Member(convnet, large.train.replace(epochs=3, seeds=(7,)))

    @pytest.fixture(autouse=True)
    def fourfold(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A pass over Transformers takes four times as long as one over ConvNets."""

        def seconds(members: Sequence[tuple[object, TrainConfig]], images: Images) -> float:
            assert images == Images(86, 40)
            return 4.0 if isinstance(members[0][0], ViTConfig) else 1.0

        monkeypatch.setattr(rounds_module, "seconds_of_a_piece", seconds)

    def test_a_small_model_does_not_wait_for_a_large_one(
        self, large: Member, small: Member, data: ResidentData
    ) -> None:
        runs = [Run(large, data), Run(small, data)]
        order, results = trained(Rounds(data, at_once=True), runs)
        assert order == [runs[1]] * 3 + [runs[0]] * 2
        for run, result in zip(runs, results, strict=True):
            assert_alike(result, fit(run.member.model, run.member.train, data))

    def test_who_joins_has_an_epoch_before_the_large_one_has_its_first(
        self, large: Member, small: Member, data: ResidentData
    ) -> None:
        runs = [Run(large, data), Run(small, data), Run(small, data)]
        order, results = trained(Rounds(data, at_once=True), runs, late={2: 1})
        assert order.index(runs[2]) < order.index(runs[0])
        for run, result in zip(runs, results, strict=True):
            assert_alike(result, fit(run.member.model, run.member.train, data))

    def test_who_joins_late_has_no_turns_to_catch_up_on(
        self, small: Member, data: ResidentData
    ) -> None:
        other = replace(small, train=small.train.replace(label_smoothing=0.2))
        for at_once in (True, False):
            runs = [Run(small, data), Run(other, data)]
            order, _ = trained(Rounds(data, at_once=at_once), runs, late={1: 2})
            assert [runs.index(run) for run in order[:2]] == [0, 0]
            assert {runs.index(run) for run in order[2:4]} == {0, 1}

    def test_it_is_known_at_once_who_shares_the_memory(
        self, large: Member, small: Member, data: ResidentData, tmp_path: Path
    ) -> None:
        rounds = Rounds(data, at_once=True)
        first, other = (
            Run(large, data, None, tmp_path / "a"),
            Run(small, data, None, tmp_path / "b"),
        )
        rounds.join(first)
        rounds.join(other)
        rounds.round()
        shared = next(g.shared() for g in rounds._groups if g.runs == (first,))
        assert shared.beside
        rounds.drop(other)
        (turn,) = rounds.round()
        assert turn.run is first
        assert not shared.beside
        turn.take()
        rounds.join(Run(small, data))
        assert next(iter(rounds.round())).run is not first
        assert shared.beside

    def test_who_is_to_share_a_pass_waits_for_the_end_of_its_epoch(
        self, large: Member, small: Member, data: ResidentData, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        made: list[tuple[str, int]] = []
        begin = Pass.__init__

        def noted(self: Pass, members: Sequence[Member], *arguments: object) -> None:
            made.append((members[0].model.kind, len(members)))
            begin(self, members, *arguments)  # type: ignore[arg-type]

        runs = [Run(large, data), Run(small, data), Run(large, data)]
        with monkeypatch.context() as patch:
            patch.setattr(Pass, "__init__", noted)
            _, results = trained(Rounds(data, at_once=True), runs, late={2: 1})
        assert made[:3] == [("vit", 1), ("convnet", 1), ("vit", 2)]
        for run, result in zip(runs, results, strict=True):
            assert_alike(result, fit(run.member.model, run.member.train, data))

    def test_who_leaves_in_the_midst_of_an_epoch_takes_nobody_along(
        self, large: Member, small: Member, data: ResidentData, tmp_path: Path
    ) -> None:
        rounds = Rounds(data, at_once=True)
        gone, neighbour, other = Run(large, data), Run(large, data), Run(small, data)
        for run in (gone, neighbour, other):
            rounds.join(run)
        (turn,) = rounds.round()
        assert turn.run is other
        turn.take()
        rounds.drop(gone)
        order, results = trained(rounds, [neighbour, other], joined=True)
        assert gone not in order
        assert gone.history == []
        for run, result in zip([neighbour, other], results, strict=True):
            assert_alike(result, fit(run.member.model, run.member.train, data))

    def test_a_pass_that_all_have_left_is_given_up(
        self, large: Member, small: Member, data: ResidentData
    ) -> None:
        rounds = Rounds(data, at_once=True)
        gone, other = Run(large, data), Run(small, data)
        for run in (gone, other):
            rounds.join(run)
        rounds.round()
        (group,) = [group for group in rounds._groups if group.runs == (gone,)]
        assert group.under_way
        pieces = group.under_way._pieces
        assert rounds.is_under_way(gone)
        assert not rounds.is_under_way(other)
        rounds.drop(gone)
        assert group not in rounds._groups
        assert (group.under_way, group._shared) == (None, None)
        assert pieces.gi_frame is None, "it could go on"

    @pytest.mark.parametrize("kept", [True, False])
    def test_who_has_left_has_no_part_in_the_failure_of_its_pass(
        self,
        large: Member,
        small: Member,
        data: ResidentData,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        kept: bool,
    ) -> None:
        """Its checkpoint may be another one's by then; without one it could not go back."""
        small = replace(small, train=small.train.replace(epochs=30))
        rounds = Rounds(data, at_once=True)
        gone = Run(large, data, None, tmp_path / "gone" if kept else None)
        mate = Run(large, data, None, tmp_path / "mate")
        other = Run(small, data, None, tmp_path / "other")
        for run in (gone, mate, other):
            rounds.join(run)
        while not (mate.history and rounds.is_under_way(gone)):
            for turn in rounds.round():
                turn.take()
        rounds.drop(gone)
        if kept:
            (tmp_path / "gone").write_bytes(b"another one's")

        def full(self: Pass, *arguments: object) -> torch.Tensor:
            raise MemoryError

        with monkeypatch.context() as patch:
            patch.setattr(Pass, "_loss", full)
            turns = [turn for turn in rounds.round() if turn.run is mate]
            while not turns:
                turns = [turn for turn in rounds.round() if turn.run is mate]
        (turn,) = turns
        assert isinstance(turn.outcome, Crowded)
        assert len(mate.history) == 1

    def test_a_run_that_could_not_go_back_does_not_make_room(
        self, large: Member, small: Member, data: ResidentData, tmp_path: Path
    ) -> None:
        small = replace(small, train=small.train.replace(epochs=30))
        rounds = Rounds(data, at_once=True)
        loose, kept = Run(large, data), Run(small, data, None, tmp_path / "kept")
        rounds.join(loose)
        rounds.join(kept)
        while not (loose.history and rounds.is_under_way(loose)):
            for turn in rounds.round():
                turn.take()
        (group,) = [group for group in rounds._groups if group.runs == (loose,)]
        assert not group.shared().beside

    def test_elsewhere_a_pass_that_others_join_keeps_its_share(
        self, large: Member, small: Member, data: ResidentData
    ) -> None:
        """The four runs of a large pass end one after another, and the small one takes in who
        follows them."""
        runs = [
            Run(replace(large, train=large.train.replace(epochs=epochs)), data)
            for epochs in (1, 2, 3, 4)
        ]
        small = replace(small, train=small.train.replace(epochs=30))
        rounds = Rounds(data, at_once=False)
        for run in (*runs, Run(small, data)):
            rounds.join(run)
        order = ""
        while not all(run.over for run in runs):
            turns = rounds.round()
            order += "L" if turns[0].run in runs else "s"
            for turn in turns:
                turn.take()
                if turn.run.over:
                    rounds.leave(turn.run)
                    rounds.join(Run(small, data))
        assert [len(between) for between in order.split("L")] == [0, 4, 4, 4, 0]

    def test_elsewhere_a_new_pass_is_next(
        self, large: Member, small: Member, data: ResidentData
    ) -> None:
        other = replace(small, train=small.train.replace(label_smoothing=0.2))
        runs = [Run(large, data), Run(small, data), Run(other, data)]
        order, _ = trained(Rounds(data, at_once=False), runs, late={2: 1})
        assert [runs.index(run) for run in order[:3]] == [0, 1, 2]


def trained(
    rounds: Rounds, runs: Sequence[Run], late: dict[int, int] | None = None, joined: bool = False
) -> tuple[list[Run], list[FitResult]]:
    """Whose epochs came in which order, and what came of all; `late` says how many rounds after
    the others a run joins."""
    joins = dict.fromkeys(range(len(runs)), -1 if joined else 0) | (late or {})
    order: list[Run] = []
    results: dict[Run, FitResult] = {}
    number = 0
    while len(results) < len(runs):
        for index, run in enumerate(runs):
            if joins[index] == number:
                rounds.join(run)
        for turn in rounds.round():
            turn.take()
            order.append(turn.run)
            if turn.run.over:
                results[turn.run] = rounds.leave(turn.run)
        number += 1
    return order, [results[run] for run in runs]


def assert_alike(one: FitResult, other: FitResult) -> None:
    for name, value in one.model.state_dict().items():
        torch.testing.assert_close(value, other.model.state_dict()[name], rtol=0, atol=1e-8)
    assert [r.val_accuracy for r in one.history] == [r.val_accuracy for r in other.history]


class TestPacing:
    def piece(self, *configurations: tuple[ViTConfig | ConvNetConfig, TrainConfig]) -> float:
        return seconds_of_a_piece(configurations, IMAGES)

    def test_a_pass_over_several_costs_less_than_they_do(self) -> None:
        """They share its launches."""
        train = TrainConfig(seeds=(0,))
        small, deep = ViTConfig(depth=4, patch_size=16), ViTConfig(depth=16, patch_size=16)
        one, other = self.piece((small, train)), self.piece((deep, train))
        together = self.piece((small, train), (deep, train))
        assert other < together < one + other
        assert together == self.piece((deep, train), (small, train))

    def test_it_is_that_of_the_design_for_a_deep_model(self) -> None:
        """Captured, about 2 ms of launches in a step of 16 blocks."""
        deep = ViTConfig(depth=16, patch_size=16, embed_dim=128)
        seconds = self.piece((deep, TrainConfig(batch_size=128, seeds=(0,))))
        assert 2e-3 < seconds < 2.5e-3

    def test_what_has_more_to_compute_takes_longer(self) -> None:
        train = TrainConfig(seeds=(0,), batch_size=128)
        vit, convnet = ViTConfig(embed_dim=128), ConvNetConfig()
        assert self.piece((vit.replace(patch_size=4), train)) > self.piece((vit, train))
        assert self.piece((convnet, train.replace(seeds=(0, 1)))) > self.piece((convnet, train))
        curves = train.replace(train_curves=True)
        assert self.piece((convnet, curves)) > self.piece((convnet, train))
