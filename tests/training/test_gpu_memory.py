"""What a run takes of a GPU's memory, and what is done where that is too little. Skipped only
where there is no GPU."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from visweep.config import ModelConfig, TrainConfig, ViTConfig
from visweep.data.dataset import Dataset
from visweep.data.resident import to_device
from visweep.errors import Crowded, OutOfMemory
from visweep.training.device import (
    free_memory,
    held_memory,
    resolve_precision,
)
from visweep.training.estimate import pass_memory, usual_memory
from visweep.training.fit import fit
from visweep.training.lanes import all_of
from visweep.training.memory import give_back
from visweep.training.passes import Member, Pass
from visweep.training.room import Room
from visweep.training.rounds import Rounds
from visweep.training.run import Run

CUDA = torch.device("cuda")

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.fixture
def allow() -> Iterator[Callable[[int], None]]:
    """Let this process take so many bytes of the GPU beyond what it holds."""
    total = torch.cuda.get_device_properties(0).total_memory

    def limit(room: int) -> None:
        give_back()
        torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + room) / total)

    yield limit
    torch.cuda.set_per_process_memory_fraction(1.0)


def test_what_does_not_fit_is_divided_and_then_given_up_with_its_memory(
    vit: ViTConfig,
    train: TrainConfig,
    many_quadrants: Dataset,
    allow: Callable[[int], None],
) -> None:
    """Attention over 64 heads takes hundreds of megabytes for a whole batch."""
    model = vit.replace(patch_size=1, embed_dim=64, num_heads=64)
    train = train.replace(epochs=1, batch_size=64, precision="float32", seeds=(3,))
    data = to_device(many_quadrants, torch.device("cuda"))
    fit(vit, train, data)  # what the first run of a process loads is no matter of its size
    give_back()
    before, allocated = torch.cuda.memory_reserved(), torch.cuda.memory_allocated()
    whole = fit(model, train, data)
    assert whole.micro_batch is None
    expected, peak = whole.history[0], whole.peak_memory - before
    del whole

    allow(peak // 3)
    divided = fit(model, train, data)
    assert divided.micro_batch in range(1, 64)
    # Where the allocator has pieces of memory already, there is room in them, too.
    assert divided.peak_memory - before <= peak // 2
    assert divided.history[0].train_loss == pytest.approx(expected.train_loss, abs=1e-3)
    assert divided.history[0].val_loss == pytest.approx(expected.val_loss, abs=1e-2)
    del divided

    allow(2**21)
    with pytest.raises(OutOfMemory, match="does not fit in memory: CUDA out of memory"):
        fit(model, train, data)
    assert torch.cuda.memory_allocated() == allocated
    allow(peak * 2)
    assert fit(model, train, data).micro_batch is None


def test_a_lane_that_runs_out_of_memory_leaves_its_room_to_the_others(
    vit: ViTConfig,
    train: TrainConfig,
    many_quadrants: Dataset,
    allow: Callable[[int], None],
    tmp_path: Path,
) -> None:
    """Steps of two lanes fit after each other, what both have captured does not."""
    model = vit.replace(patch_size=1, embed_dim=64, num_heads=64)
    train = train.replace(epochs=2, batch_size=64, precision="float32")
    data = to_device(many_quadrants, CUDA)
    fit(vit, train, data)
    give_back()
    before = held_memory(CUDA)
    made = Pass.of(model, train, data)
    all_of(made.training([1]))
    give_back()
    captured_step = held_memory(CUDA) - before
    del made

    allow(captured_step * 3 // 2)
    runs = [
        Run(Member(model, train.replace(label_smoothing=rate)), data, None, tmp_path / str(rate))
        for rate in (0.1, 0.2)
    ]
    rounds = Rounds(data)
    for run in runs:
        rounds.join(run)
    (crowded,) = rounds.round()
    assert crowded.run is runs[1]
    with pytest.raises(Crowded, match="beside others"):
        crowded.take()
    rounds.drop(crowded.run)
    while not runs[0].over:
        (alone,) = rounds.round()
        alone.take()
    assert rounds.leave(runs[0]).ended == "completed"
    give_back()
    later = fit(runs[1].member.model, runs[1].member.train, data, checkpoint=tmp_path / "0.2")
    assert later.ended == "completed"


def test_memory_that_graphs_keep_is_counted(
    model: ModelConfig, train: TrainConfig, many_quadrants: Dataset
) -> None:
    data = to_device(many_quadrants, CUDA)
    give_back()
    before, free = held_memory(CUDA), free_memory(CUDA)
    made = Pass.of(model, train, data)
    for epoch in (1, 2):
        made.epoch([epoch])
    give_back()
    kept = held_memory(CUDA) - before
    assert held_memory(CUDA) > torch.cuda.memory_allocated()
    assert free - free_memory(CUDA) >= kept
    assert free_memory(CUDA) < free_memory(CUDA, others_beside=True)
    del made
    give_back()
    assert held_memory(CUDA) == before


def test_replicas_that_are_estimated_not_to_fit_are_divided(
    model: ModelConfig, train: TrainConfig, many_quadrants: Dataset
) -> None:
    data = to_device(many_quadrants, CUDA)
    train = train.replace(seeds=(3, 5, 8))
    usual = usual_memory("cuda", resolve_precision(train.precision, CUDA), 0)
    some = Room(pass_memory(model, train, usual, 2), usual)
    assert fit(model, train, data, room=some).replicas_at_once == 2
    card = Room(free_memory(CUDA), usual)
    assert fit(model, train, data, room=card).replicas_at_once is None
