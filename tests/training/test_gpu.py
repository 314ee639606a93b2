"""The same trainer on a GPU. Skipped only where there is none."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from visweep.config import ModelConfig, TrainConfig, ViTConfig
from visweep.data.dataset import Dataset
from visweep.data.resident import to_device
from visweep.draws import Draws
from visweep.errors import OutOfMemory, UsageError
from visweep.training import passes
from visweep.training.device import resolve_device
from visweep.training.fit import fit
from visweep.training.graphs import captured
from visweep.training.passes import Pass
from visweep.training.results import FitResult

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
        assert torch.equal(ours.cpu(), theirs)
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
    stacked = Draws((3, 5), cuda, ("step", 1))

    def mask(draws: Draws) -> torch.Tensor:
        return draws.dropout_mask((37,), [0.3] * len(draws), torch.float32, "a")

    for k, seed in enumerate((3, 5)):
        alone = Draws((seed,), cuda, ("step", 1))
        assert torch.equal(mask(stacked)[k], mask(alone)[0])
        assert torch.equal(stacked.permutation(99, "a")[k], alone.permutation(99, "a")[0])
        assert torch.equal(
            stacked.integers(0, 9, (5,), "a")[k], alone.integers(0, 9, (5,), "a")[0]
        )


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
        # Two steps of each epoch by themselves, and one while it is captured.
        assert len(forwards) == 2 + 1 + 2

    def test_draws_differ_from_replay_to_replay(self) -> None:
        cuda = torch.device("cuda")
        draws = Draws((3, 5), cuda, ())
        seen = torch.zeros(2, 800, device=cuda)

        def mask(draws: Draws) -> torch.Tensor:
            return draws.dropout_mask((800,), [0.3, 0.3], torch.float32, "here")

        def draw() -> None:
            seen.copy_(mask(draws))

        draw()
        graph = captured(draw, draws.generators)
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
def allow() -> Iterator[Callable[[int], None]]:
    """Let this process take so many bytes of the GPU beyond what it holds."""
    total = torch.cuda.get_device_properties(0).total_memory

    def limit(room: int) -> None:
        torch.cuda.empty_cache()
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
    train = train.replace(epochs=1, batch_size=64, precision="float32")
    data = to_device(many_quadrants, torch.device("cuda"))
    fit(vit, train, data)  # what the first run of a process loads is no matter of its size
    before = torch.cuda.memory_allocated()
    whole = fit(model, train, data)
    assert whole.micro_batch is None
    expected, peak = whole.history[0], whole.peak_memory - before
    del whole

    allow(peak // 3)
    divided = fit(model, train, data)
    assert divided.micro_batch in range(1, 64)
    assert divided.peak_memory - before <= peak // 3
    assert divided.history[0].train_loss == pytest.approx(expected.train_loss, abs=1e-3)
    assert divided.history[0].val_loss == pytest.approx(expected.val_loss, abs=1e-2)
    del divided

    allow(2**21)
    with pytest.raises(OutOfMemory, match="does not fit in memory: CUDA out of memory"):
        fit(model, train, data)
    assert torch.cuda.memory_allocated() == before
    allow(peak * 2)
    assert fit(model, train, data).micro_batch is None


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
