"""What is estimated not to fit in memory is divided before it is tried, and trains the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from visweep.config import ConvNetConfig, ModelConfig, TrainConfig, ViTConfig
from visweep.data.dataset import Dataset
from visweep.data.resident import ResidentData, to_device
from visweep.search import trainer as trainer_module
from visweep.search.making import TrainerMaker
from visweep.training import rounds as rounds_module
from visweep.training.estimate import Calibration, pass_memory, peak_memory, step_memory
from visweep.training.fit import fit
from visweep.training.passes import Member, Pass
from visweep.training.results import FitResult
from visweep.training.room import Division, Room
from visweep.training.rounds import Rounds
from visweep.training.run import Run

CALIBRATION = Calibration(
    device="cpu",
    precision="float32",
    step={},
    evaluation={},
    memory={
        "process": 1e4,
        "parameters": 4.0,
        "stored": 1.0,
        "added": 1.0,
        "evaluated": 1.0,
        "written": 1.0,
    },
    held=0.0,
)


@pytest.fixture(scope="module")
def data(quadrants: Dataset) -> ResidentData:
    return to_device(quadrants, torch.device("cpu"))


def assert_same(one: FitResult, other: FitResult) -> None:
    for name, value in one.model.state_dict().items():
        torch.testing.assert_close(value, other.model.state_dict()[name], rtol=0, atol=1e-9)


@given(
    batch=st.integers(1, 64),
    share=st.floats(0.01, 1.5),
    replicas=st.integers(1, 6),
    depth=st.integers(1, 6),
    drop=st.sampled_from([0.0, 0.1]),
)
def test_fewer_replicas_then_the_largest_part_of_a_batch_that_fits(
    batch: int, share: float, replicas: int, depth: int, drop: float
) -> None:
    model = ViTConfig(depth=depth, drop=drop)
    train = TrainConfig(batch_size=batch, seeds=tuple(range(replicas)))

    def taken_by(at_once: int) -> float:
        return pass_memory(model, train, CALIBRATION, at_once)

    def taken(size: int, at_once: int = 1) -> float:
        part = train.replace(batch_size=size)
        return step_memory(model, part, CALIBRATION, divided=size < batch, at_once=at_once)

    room = Room(share * taken_by(replicas), CALIBRATION)
    division = room.division(model, train)
    if division == Division(replicas, batch):
        if taken_by(replicas) > room.bytes:
            # Only an evaluation of one replica is too large, or everything is.
            assert taken(1) > room.bytes or (replicas == 1 and taken(batch) <= room.bytes)
        return
    assert taken(division.images, division.replicas) <= room.bytes
    if division.replicas > 1:
        assert division.images == batch
        assert taken_by(division.replicas) <= room.bytes
    if division.replicas < replicas:
        assert taken_by(min(replicas, 2 * division.replicas)) > room.bytes
    if division.images < batch:
        assert division.replicas == 1
        assert taken(min(batch, 2 * division.images)) > room.bytes


def test_what_fits_in_no_part_is_not_divided() -> None:
    """It would only be slower."""
    train = TrainConfig(batch_size=64, seeds=(0, 1, 2))
    assert Room(1e4, CALIBRATION).division(ViTConfig(), train) == Division(3, 64)


def test_a_part_of_a_batch_has_masks() -> None:
    """Of the whole batch, which is dropped without, it is less than half that is saved."""
    model = ViTConfig(patch_size=4, embed_dim=64, drop=0.1, attn_drop=0.1)
    train = TrainConfig(batch_size=128, seeds=(0,))
    half = train.replace(batch_size=64)
    without = Room(1.01 * step_memory(model, half, CALIBRATION), CALIBRATION)
    assert without.division(model, train).images == 32
    enough = step_memory(model, half, CALIBRATION, divided=True)
    assert Room(enough, CALIBRATION).division(model, train).images == 64


@given(st.lists(st.integers(1, 6), min_size=1, max_size=6), st.floats(0.01, 1.5))
def test_as_many_runs_as_fit_share_a_pass(depths: list[int], share: float) -> None:
    runs = [(ViTConfig(depth=depth), TrainConfig(seeds=(0,))) for depth in depths]

    def taken(some: Sequence[tuple[ViTConfig, TrainConfig]]) -> float:
        return 1e4 + sum(peak_memory(*run, CALIBRATION) - 1e4 for run in some)

    room = Room(share * taken(runs), CALIBRATION)
    count = room.together(runs)
    assert 1 <= count <= len(runs)
    assert count == 1 or taken(runs[:count]) <= room.bytes * (1 + 1e-12)
    assert count == len(runs) or taken(runs[: count + 1]) > room.bytes * (1 - 1e-12)


@pytest.mark.parametrize("kind", ["vit", "convnet"])
def test_a_run_that_does_not_fit_takes_its_batches_in_parts(
    request: pytest.FixtureRequest, train: TrainConfig, data: ResidentData, kind: str
) -> None:
    model: ViTConfig | ConvNetConfig = request.getfixturevalue(kind)
    exact = train.replace(precision="float64", batch_size=40, seeds=(3,))
    some = step_memory(model, exact.replace(batch_size=20), CALIBRATION)
    divided = fit(model, exact, data, room=Room(some, CALIBRATION))
    whole = fit(model, exact, data, room=Room(1e12, CALIBRATION))
    # A ConvNet's parts are of whole ghost batches, of which 40 images are one.
    assert divided.micro_batch == (20 if kind == "vit" else None)
    assert whole.micro_batch is None
    assert_same(divided, whole)


def test_replicas_that_do_not_fit_together_train_a_few_at_a_time(
    model: ModelConfig, train: TrainConfig, data: ResidentData
) -> None:
    exact = train.replace(precision="float64", seeds=(3, 5, 8, 13, 21))
    two = pass_memory(model, exact, CALIBRATION, 2)
    divided = fit(model, exact, data, room=Room(two, CALIBRATION))
    whole = fit(model, exact, data, room=Room(1e12, CALIBRATION))
    assert (divided.replicas_at_once, divided.micro_batch) == (2, None)
    assert (whole.replicas_at_once, whole.micro_batch) == (None, None)
    assert_same(divided, whole)


def test_runs_that_do_not_fit_together_train_in_several_passes(
    vit: ViTConfig, train: TrainConfig, data: ResidentData, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = train.replace(precision="float64", epochs=2, seeds=(3,))
    members = [Member(vit, exact), Member(vit.replace(depth=1), exact), Member(vit, exact)]
    made: list[int] = []

    class Counted(Pass):
        def __init__(self, members: Sequence[Member], *arguments: object) -> None:
            made.append(len(members))
            super().__init__(members, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(rounds_module, "Pass", Counted)
    two = sum(peak_memory(m.model, m.train, CALIBRATION) for m in members[:2])
    rounds = Rounds(data, room=Room(two, CALIBRATION))
    runs = [Run(member, data) for member in members]
    for run in runs:
        rounds.join(run)
    while not all(run.over for run in runs):
        for turn in rounds.round():
            turn.take()
    assert made == [2, 1]
    for run, member in zip(runs, members, strict=True):
        result = rounds.leave(run)
        assert result.micro_batch is None
        assert_same(result, fit(member.model, member.train, data))


def test_passes_that_are_under_way_at_once_are_not_made_smaller(
    vit: ViTConfig, train: TrainConfig, data: ResidentData
) -> None:
    """Two would hold what one holds."""
    rounds = Rounds(data, at_once=True, room=Room(1.0, CALIBRATION))
    runs = [Run(Member(vit, train), data) for _ in range(3)]
    for run in runs:
        rounds.join(run)
    assert rounds._wanted() == [tuple(runs)]


def test_a_gpu_tells_itself_what_it_has(
    vit: ViTConfig,
    train: TrainConfig,
    quadrants: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also what the others of a crew hold, since they make room where they are in the way."""
    seeds = (3, 5, 8)
    fitting = {False: 1, True: 2}
    calibration = replace(CALIBRATION, device="cuda")

    def free(device: torch.device, *, others_beside: bool) -> float:
        assert device == data.device
        return pass_memory(vit, train.replace(seeds=seeds), calibration, fitting[others_beside])

    monkeypatch.setattr(trainer_module, "free_memory", free)
    data = to_device(quadrants, torch.device("cpu"), margin=1)
    for crew in (False, True):
        made = TrainerMaker(
            images=quadrants, margin=1, device="cpu", threads=1, on_gpu=calibration
        )()
        made.others_beside = crew
        result = made.fit(
            vit,
            train.replace(epochs=1, seeds=seeds),
            on_epoch=lambda epoch: False,
            checkpoint=tmp_path / str(crew),
        )
        assert (result.replicas_at_once, result.micro_batch) == (fitting[crew], None)
        assert made.engine().rounds._room.bytes == free(data.device, others_beside=crew)


def test_a_workers_trainer_keeps_to_its_room(
    vit: ViTConfig, train: TrainConfig, quadrants: Dataset, tmp_path: Path
) -> None:
    train = train.replace(seeds=(3,))
    room = Room(step_memory(vit, train.replace(batch_size=4), CALIBRATION), CALIBRATION)
    maker = TrainerMaker(images=quadrants, margin=1, device="cpu", threads=1, room=room)
    result = maker().fit(
        vit, train, on_epoch=lambda epoch: False, checkpoint=tmp_path / "checkpoint"
    )
    assert result.micro_batch == 4
