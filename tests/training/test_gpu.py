"""The same trainer on a GPU. Skipped only where there is none."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from visweep.config import ConvNetConfig, ModelConfig, TrainConfig, ViTConfig
from visweep.data.dataset import Dataset
from visweep.data.resident import to_device
from visweep.draws import Draws
from visweep.errors import UsageError
from visweep.models.layers import Dropout, attention
from visweep.training import graphs, passes
from visweep.training.device import (
    resolve_device,
)
from visweep.training.fit import fit
from visweep.training.graphs import captured
from visweep.training.memory import give_back
from visweep.training.passes import Member, Pass
from visweep.training.results import FitResult
from visweep.training.rounds import Rounds
from visweep.training.run import Run

CUDA = torch.device("cuda")

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_learns(
    model: ModelConfig, train: TrainConfig, many_quadrants: Dataset, precision: str
) -> None:
    if isinstance(model, ViTConfig):
        model = model.replace(class_token=False)  # learns faster
    train = train.replace(epochs=8, lr=1e-2, translate=0, flip=False, precision=precision)
    result = fit(model, train, many_quadrants)
    assert {p.device.type for p in result.model.parameters()} == {"cuda"}
    assert min(result.history[-1].val_accuracy) > 0.9
    assert min(result.train_accuracy) > 0.9


def test_stacked_equals_alone(model: ModelConfig, train: TrainConfig, quadrants: Dataset) -> None:
    """20 steps in float64; grouped convolutions are summed in no fixed order."""
    train = train.replace(precision="float64")
    seeds = (3, 5, 8)
    stacked = fit(model, train.replace(seeds=seeds), quadrants, device="cuda")
    for k, seed in enumerate(seeds):
        alone = fit(model, train.replace(seeds=(seed,)), quadrants, device="cuda")
        weights = alone.model.state_dict()
        for name, value in stacked.model.state_dict().items():
            torch.testing.assert_close(value[k], weights[name][0], rtol=0, atol=1e-8)


def test_a_resumed_run_is_close_to_an_uninterrupted_one(
    model: ModelConfig, train: TrainConfig, quadrants: Dataset, tmp_path: Path
) -> None:
    train, path = train.replace(precision="float64"), tmp_path / "run"
    whole = fit(model, train, quadrants, device="cuda")
    fit(
        model,
        train,
        quadrants,
        device="cuda",
        checkpoint=path,
        on_epoch=lambda r: r.epoch == 2,
    )
    resumed = fit(model, train, quadrants, device="cuda", checkpoint=path)
    assert resumed.ended == "completed"
    for one, other in zip(whole.history, resumed.history, strict=True):
        assert one.train_loss == pytest.approx(other.train_loss, abs=1e-8)
        assert one.val_loss == pytest.approx(other.val_loss, abs=1e-8)


def test_a_run_begun_on_the_gpu_goes_on_without_one(
    model: ModelConfig, train: TrainConfig, quadrants: Dataset, tmp_path: Path
) -> None:
    path = tmp_path / "run"
    begun = fit(
        model, train, quadrants, device="cuda", checkpoint=path, on_epoch=lambda r: r.epoch == 2
    )
    result = fit(model, train, quadrants, device="cpu", checkpoint=path)
    assert result.ended == "completed"
    assert result.history[0].val_loss == begun.history[0].val_loss


def test_without_draws_it_computes_what_the_cpu_does(
    model: ModelConfig, train: TrainConfig, quadrants: Dataset
) -> None:
    """The initial weights are the same everywhere, whatever draws them later."""
    still = train.replace(epochs=1, lr=1e-30, weight_decay=0.0, precision="float64")
    for name in ("drop", "attn_drop") if isinstance(model, ViTConfig) else ("drop",):
        model = model.replace(**{name: 0.0})
    gpu, cpu = (fit(model, still, quadrants, device=device) for device in ("cuda", "cpu"))
    for ours, theirs in zip(gpu.model.parameters(), cpu.model.parameters(), strict=True):
        # What begins at zero has moved by the learning rate.
        torch.testing.assert_close(ours.cpu(), theirs, rtol=0, atol=1e-25)
    if isinstance(model, ViTConfig):  # a batch norm has seen other batches
        assert gpu.history[0].val_loss == pytest.approx(cpu.history[0].val_loss, abs=1e-9)


@pytest.mark.parametrize("rate", [0.0004, 0.1, 1 / 3, 0.9985])
def test_elements_are_dropped_at_the_rate(rate: float) -> None:
    steps, size = 2000, 4096
    dropped = torch.zeros((), dtype=torch.int64, device="cuda")
    for step in range(steps):
        draws = Draws((0,), torch.device("cuda"), ("step", step))
        dropped += (draws.dropout_mask((size,), [rate], torch.float32, "drop") == 0).sum()
    deviation = (size * steps * rate * (1 - rate)) ** 0.5
    rounded = size * steps / 2**17  # a number of 16 bits splits at the nearest multiple of 2**-16
    assert abs(dropped.item() - steps * size * rate) < 4 * deviation + rounded


def test_no_place_in_a_word_is_favoured() -> None:
    """A mask takes four numbers from each."""
    draws = Draws((0, 1), torch.device("cuda"), ("step", 0))
    mask = draws.dropout_mask((4 * 100_000,), [0.3, 0.3], torch.float32, "here")
    assert not torch.equal(mask[0], mask[1])
    dropped = (mask[0].view(-1, 4) == 0).sum(0).tolist()
    deviation = (100_000 * 0.3 * 0.7) ** 0.5
    assert all(abs(count - 30_000) < 4.5 * deviation for count in dropped)


def test_a_replica_draws_what_it_draws_alone() -> None:
    cuda = torch.device("cuda")

    def drawn(*seeds: int) -> list[torch.Tensor]:
        """One after the other, from where the step begins."""
        draws = Draws(seeds, cuda, ("step", 1))
        rates = [0.3] * len(seeds)
        return [
            draws.dropout_mask((37,), rates, torch.float32, "a"),
            draws.permutation(99, "a"),
            draws.integers(0, 9, (5,), "a"),
        ]

    stacked = drawn(3, 5)
    for k, seed in enumerate((3, 5)):
        for together, alone in zip(stacked, drawn(seed), strict=True):
            assert torch.equal(together[k], alone[0])


def test_attention_without_dropout_is_one_kernel() -> None:
    q, k, v = torch.randn(3, 2, 5, 4, 16, 32, device=CUDA, dtype=torch.bfloat16).unbind()
    none = Dropout([0.0, 0.0], "here")
    with sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION]):
        fused = attention(q, k, v, none, None)
    q, k, v = (each.float().cpu() for each in (q, k, v))
    torch.testing.assert_close(
        fused.float().cpu(), attention(q, k, v, none, None), rtol=0.02, atol=0.02
    )


@contextmanager
def no_waiting() -> Iterator[None]:
    """Whatever waits for the GPU meanwhile is an error."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
@pytest.mark.parametrize("replayed", [False, True])
def test_nothing_in_an_epoch_waits_for_the_gpu(
    model: ModelConfig,
    train: TrainConfig,
    many_quadrants: Dataset,
    monkeypatch: pytest.MonkeyPatch,
    replayed: bool,
) -> None:
    if not replayed:
        monkeypatch.setattr(passes, "captured", lambda *_, **__: None)
        monkeypatch.setattr(graphs, "captured", lambda *_, **__: None)
    shared = Pass.of(model, train, to_device(many_quadrants, CUDA))
    for _ in range(2):  # all is made and captured then
        shared.epoch([1])
    pieces = shared.pieces([2])
    with no_waiting():
        for _ in range(shared.steps_per_epoch + 1):  # the last of which is the evaluation
            next(pieces)
    with pytest.raises(StopIteration) as ended:
        next(pieces)
    (result,) = ended.value.value
    assert min(result.val_loss) > 0
    assert result.train_seconds > 0
    assert result.val_seconds > 0


class TestGraphs:
    """Steps that are captured once and replayed."""

    @pytest.fixture
    def eager(self, monkeypatch: pytest.MonkeyPatch) -> Callable[..., FitResult]:
        def run(*arguments: Any, **options: Any) -> FitResult:
            with monkeypatch.context() as patch:
                patch.setattr(passes, "captured", lambda *_, **__: None)
                return fit(*arguments, **options, device="cuda")

        return run

    def test_replayed_is_what_was_captured(
        self, model: ModelConfig, train: TrainConfig, many_quadrants: Dataset, eager: Any
    ) -> None:
        train = train.replace(precision="float64")
        replayed = fit(model, train, many_quadrants, device="cuda")
        expected = eager(model, train, many_quadrants)
        for ours, theirs in zip(
            replayed.model.parameters(), expected.model.parameters(), strict=True
        ):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-9)
        for mine, its in zip(replayed.history, expected.history, strict=True):
            assert mine.val_accuracy == its.val_accuracy
            assert mine.train_loss == pytest.approx(its.train_loss, abs=1e-9)

    def test_training_curves_come_from_replays_too(
        self, model: ModelConfig, train: TrainConfig, many_quadrants: Dataset, eager: Any
    ) -> None:
        train = train.replace(precision="float64", train_curves=True)
        replayed = fit(model, train, many_quadrants, device="cuda")
        for expected in (
            eager(model, train, many_quadrants),
            fit(model, train.replace(train_curves=False), many_quadrants, device="cuda"),
        ):
            for mine, its in zip(replayed.history, expected.history, strict=True):
                assert mine.val_accuracy == its.val_accuracy
                assert mine.train_loss == pytest.approx(its.train_loss, abs=1e-9)
                if its.plain_train_accuracy:
                    assert mine.plain_train_accuracy == its.plain_train_accuracy
                    assert mine.augmented_train_accuracy == its.augmented_train_accuracy
            assert replayed.train_accuracy == expected.train_accuracy

    def test_it_is_captured_once_and_replayed_for_all_other_steps(
        self, vit: ViTConfig, train: TrainConfig, many_quadrants: Dataset
    ) -> None:
        shared = Pass.of(vit, train, to_device(many_quadrants, torch.device("cuda")))
        forwards: list[int] = []
        shared.model.register_forward_pre_hook(
            lambda module, _: forwards.append(1) if module.training else None
        )
        for epoch in (1, 2):
            shared.epoch([epoch])
        # Two steps by themselves, and one while it is captured; the second epoch has none.
        assert len(forwards) == 2 + 1

    def test_what_cannot_be_captured_is_trained_step_by_step(
        self,
        model: ModelConfig,
        train: TrainConfig,
        many_quadrants: Dataset,
        eager: Any,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """A capture that has failed leaves nothing behind: neither its stream nor its pool of
        memory, and the generators draw as before."""
        train = train.replace(precision="float64", epochs=2)
        expected = eager(model, train, many_quadrants)
        monkeypatch.setattr(graphs, "_told", set())
        loss = Pass._loss

        def reading(self: Pass, *arguments: Any) -> torch.Tensor:
            found = loss(self, *arguments)
            assert float(found.sum()) > 0  # a captured step may not wait
            return found

        with monkeypatch.context() as patch:
            patch.setattr(Pass, "_loss", reading)
            found = fit(model, train, many_quadrants, device="cuda")
        (told,) = caplog.records
        assert told.getMessage().startswith("trained without CUDA graphs, more slowly: ")
        assert torch.cuda.current_stream() == torch.cuda.default_stream()
        for mine, its in zip(found.history, expected.history, strict=True):
            assert mine.train_loss == pytest.approx(its.train_loss, abs=1e-9)
        again = fit(model, train, many_quadrants, device="cuda")
        assert again.history[-1].train_loss == pytest.approx(
            expected.history[-1].train_loss, abs=1e-9
        )

    def test_nothing_is_held_when_it_is_over(
        self, model: ModelConfig, train: TrainConfig, many_quadrants: Dataset
    ) -> None:
        data = to_device(many_quadrants, CUDA)
        allocated, reserved = [], []
        for _ in range(5):
            fit(model, train, data)
            give_back()
            allocated.append(torch.cuda.memory_allocated())
            reserved.append(torch.cuda.memory_reserved())
        assert len(set(allocated[1:])) == 1
        assert reserved[-1] <= max(reserved[1:-1])

    def test_a_graph_outlives_those_that_were_captured_beside_it(
        self, vit: ViTConfig, train: TrainConfig, many_quadrants: Dataset
    ) -> None:
        """What it writes to is its own, and no other's by then."""
        train, data = train.replace(precision="bfloat16"), to_device(many_quadrants, CUDA)
        first, second, expected = (Pass.of(vit, train, data) for _ in range(3))
        for run in (first, second, expected):
            run.epoch([1])
        del first, run
        give_back()
        others = torch.full((2**28,), torch.nan, device=CUDA)
        assert others.isnan().all()
        second.epoch([2])
        assert others.isnan().all()
        expected.epoch([2])
        torch.testing.assert_close(second.flat.values, expected.flat.values, rtol=0, atol=1e-3)

    def test_draws_differ_from_replay_to_replay(self) -> None:
        cuda = torch.device("cuda")
        draws = Draws((3, 5), cuda, ())
        seen = torch.zeros(2, 800, device=cuda)

        def mask(draws: Draws) -> torch.Tensor:
            return draws.dropout_mask((800,), [0.3, 0.3], torch.float32, "here")

        def draw() -> None:
            seen.copy_(mask(draws))

        draw()
        graph = captured(draw, cuda, draws.generators)
        assert graph is not None
        replayed = []
        for step in (0, 1, 0):
            draws.at_each("step", (step, step))
            graph.replay()
            replayed.append(seen.clone())
            alone = mask(draws.at_each("step", (step, step)))
            assert torch.equal(replayed[-1], alone)
        assert torch.equal(replayed[0], replayed[2])
        assert not torch.equal(replayed[0], replayed[1])


@pytest.fixture
def members(vit: ViTConfig, convnet: ConvNetConfig, train: TrainConfig) -> list[Member]:
    """Three of one bucket, in nothing alike that need not be, and two of others."""
    train = train.replace(precision="float64", epochs=3)
    return [
        Member(vit, train),
        Member(convnet, train),
        Member(vit.replace(depth=3, num_heads=4, drop=0.3), train.replace(seeds=(3,), lr=2e-3)),
        Member(vit.replace(depth=1, attn_drop=0.0), train.replace(epochs=2, weight_decay=0.3)),
        Member(vit.replace(embed_dim=32), train),
    ]


def test_packed_runs_in_lanes_equal_runs_alone(
    members: list[Member], many_quadrants: Dataset
) -> None:
    """In three lanes, each replaying its own graphs; one run leaves its pass early."""
    data = to_device(many_quadrants, CUDA)
    rounds, results = Rounds(data), {}
    for member in members:
        rounds.join(Run(member, data))
    while len(results) < len(members):
        for turn in rounds.round():
            turn.take()
            if turn.run.over:
                results[turn.run.member] = rounds.leave(turn.run)
    for member, together in results.items():
        alone = fit(member.model, member.train, data)
        weights = alone.model.state_dict()
        for name, value in together.model.state_dict().items():
            torch.testing.assert_close(value, weights[name], rtol=0, atol=1e-8)
        assert together.train_accuracy == alone.train_accuracy
        for mine, its in zip(together.history, alone.history, strict=True):
            assert mine.val_accuracy == its.val_accuracy
            assert mine.train_loss == pytest.approx(its.train_loss, abs=1e-8)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_on_another_gpu_than_the_first(
    model: ModelConfig, train: TrainConfig, many_quadrants: Dataset
) -> None:
    train = train.replace(precision="float64", epochs=1)
    first, second = (fit(model, train, many_quadrants, device=f"cuda:{n}") for n in (0, 1))
    assert torch.cuda.current_device() == 0
    assert first.history[0].train_loss == pytest.approx(second.history[0].train_loss, abs=1e-9)
    assert first.train_accuracy == second.train_accuracy


@pytest.mark.parametrize("size", [13, 50])
def test_a_divided_batch_trains_what_the_whole_one_does(
    model: ModelConfig, train: TrainConfig, many_quadrants: Dataset, size: int
) -> None:
    train = train.replace(batch_size=100, precision="float64")
    data = to_device(many_quadrants, torch.device("cuda"))
    whole, divided = Pass.of(model, train, data), Pass.of(model, train, data)
    divided.micro.shrink_to(size)
    assert divided.micro.divided
    for run in (whole, divided):
        for epoch in range(1, train.epochs + 1):
            run.epoch([epoch])
    torch.testing.assert_close(divided.flat.values, whole.flat.values, rtol=0, atol=1e-8)


@pytest.mark.parametrize("at_once", [1, 2])
def test_a_few_replicas_at_a_time_are_captured_and_train_as_all_do(
    model: ModelConfig, train: TrainConfig, many_quadrants: Dataset, at_once: int
) -> None:
    train = train.replace(precision="float64", seeds=(3, 5, 8))
    data = to_device(many_quadrants, torch.device("cuda"))
    whole, some = Pass.of(model, train, data), Pass.of(model, train, data)
    some._take_at_once(at_once)
    for epoch in range(1, train.epochs + 1):
        for run in (whole, some):
            run.epoch([epoch])
    assert some._graph
    torch.testing.assert_close(some.flat.values, whole.flat.values, rtol=0, atol=1e-8)


def test_data_stay_where_they_are(vit: ViTConfig, train: TrainConfig, quadrants: Dataset) -> None:
    resident = to_device(quadrants, resolve_device("auto"))
    assert resident.device.type == "cuda"
    result = fit(vit, train.replace(epochs=1), resident, device="cpu")  # ignored, as documented
    assert next(result.model.parameters()).device.type == "cuda"
    assert result.peak_memory > 0


def test_a_gpu_that_is_not_there_is_refused() -> None:
    last = torch.cuda.device_count() - 1
    for name in (f"cuda:{last + 1}", "cuda:256"):
        with pytest.raises(UsageError, match=f"no such GPU; accepted: cuda:0 to cuda:{last}"):
            resolve_device(name)
