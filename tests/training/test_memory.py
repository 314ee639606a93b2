"""Memory that runs out: smaller micro-batches, the same training; or a clear end, with the memory
given back."""

import gc
import json
import os
import subprocess
import sys
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from visweep import models
from visweep.config import ConvNetConfig, ModelConfig, TrainConfig, ViTConfig
from visweep.data.dataset import Dataset
from visweep.data.resident import ResidentSplit, to_device
from visweep.errors import OutOfMemory, UsageError
from visweep.search.processes import tuned
from visweep.training import memory
from visweep.training.cost import seconds_per_epoch
from visweep.training.device import held_memory, peak_memory
from visweep.training.evaluate import Tally
from visweep.training.fit import fit
from visweep.training.lanes import Pieces
from visweep.training.memory import attempt, insist, is_out_of_memory
from visweep.training.passes import Pass
from visweep.training.results import FitResult

TOO_MUCH = 2**60
"""Bytes that no machine has: torch's own allocator refuses them."""

CPU = torch.device("cpu")


def starve(monkeypatch: pytest.MonkeyPatch, images: int, training: bool = True) -> list[nn.Module]:
    """From now on every model runs out of memory where it sees more than so many images.

    It does so in its head, when all other layers have run. Returns the models that are built.
    """
    stack = models.stack
    built: list[nn.Module] = []

    def hungry(head: nn.Module, arguments: tuple[torch.Tensor]) -> None:
        if head.training == training and arguments[0].shape[1] > images:
            torch.empty(TOO_MUCH, dtype=torch.uint8)

    def starved(*arguments: Any) -> nn.Module:
        model = stack(*arguments)
        model.head.register_forward_pre_hook(hungry)
        built.append(model)
        return model

    monkeypatch.setattr(models, "stack", starved)
    return built


@pytest.fixture
def exact(train: TrainConfig) -> TrainConfig:
    """20 steps of one replica in float64; the ghosts of a batch have 32, 32 and 36 images."""
    return train.replace(epochs=4, batch_size=100, precision="float64", seeds=(3,))


def gap(one: FitResult, other: FitResult) -> float:
    """The largest difference of weights and running statistics."""
    values = zip(one.model.state_dict().values(), other.model.state_dict().values(), strict=True)
    return max((a - b).abs().max().item() for a, b in values)


class TestDividing:
    def test_a_batch_that_does_not_fit_is_divided_and_nothing_changes(
        self,
        model: ModelConfig,
        exact: TrainConfig,
        many_quadrants: Dataset,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """The failed pass had run through every batch norm."""
        whole = fit(model, exact, many_quadrants, device="cpu")
        starve(monkeypatch, 70)
        result = fit(model, exact, many_quadrants, device="cpu")
        assert whole.micro_batch is None
        assert result.micro_batch == {"vit": 50, "convnet": 64}[model.kind]
        assert gap(result, whole) < 1e-10
        assert result.ended == "completed"

    def test_it_is_tried_once_and_not_at_every_step(
        self,
        vit: ViTConfig,
        exact: TrainConfig,
        many_quadrants: Dataset,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        starve(monkeypatch, 30)
        run = Pass.of(vit, exact, to_device(many_quadrants, CPU))
        seen: list[int] = []
        run.model.register_forward_pre_hook(
            lambda module, arguments: seen.append(arguments[0].shape[1])
        )
        for step in range(2):
            run.step([step], torch.arange(100).expand(1, -1))
        assert seen == [100, 50, *[25] * 4, *[25] * 4]

    def test_a_resumed_run_divides_as_before_and_is_bit_identical(
        self,
        model: ModelConfig,
        train: TrainConfig,
        many_quadrants: Dataset,
        monkeypatch: pytest.MonkeyPatch,
        tmp_path: Path,
    ) -> None:
        train, path = train.replace(batch_size=100, seeds=(3,)), tmp_path / "run"
        starve(monkeypatch, 70)
        whole = fit(model, train, many_quadrants, device="cpu")
        fit(
            model,
            train,
            many_quadrants,
            device="cpu",
            checkpoint=path,
            on_epoch=lambda r: r.epoch == 2,
        )
        monkeypatch.undo()  # and there is room enough again
        resumed = fit(model, train, many_quadrants, device="cpu", checkpoint=path)
        assert resumed.micro_batch == whole.micro_batch
        assert gap(resumed, whole) == 0.0

    def test_evaluation_takes_fewer_images_at_a_time(
        self,
        model: ModelConfig,
        exact: TrainConfig,
        many_quadrants: Dataset,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        whole = fit(model, exact.replace(epochs=1), many_quadrants, device="cpu")
        starve(monkeypatch, 7, training=False)
        result = fit(model, exact.replace(epochs=1), many_quadrants, device="cpu")
        assert result.micro_batch is None
        assert result.train_accuracy == whole.train_accuracy
        assert result.history[0].val_accuracy == whole.history[0].val_accuracy
        assert result.history[0].val_loss == pytest.approx(whole.history[0].val_loss, abs=1e-10)

    def test_the_peak_is_that_of_what_fitted(
        self, vit: ViTConfig, train: TrainConfig, quadrants: Dataset
    ) -> None:
        """What a failed attempt took does not count."""
        run = Pass.of(vit, train.replace(seeds=(3,)), to_device(quadrants, CPU))
        taken: list[torch.Tensor] = []

        def hungry(module: nn.Module, arguments: tuple[torch.Tensor]) -> None:
            if arguments[0].shape[1] == 16 and module.training:
                taken[:] = [torch.ones(2**28, dtype=torch.uint8)]
                peaks.append(peak_memory(CPU))
                taken.clear()
                torch.empty(TOO_MUCH, dtype=torch.uint8)

        peaks: list[int] = []
        run.model.register_forward_pre_hook(hungry)
        run.epoch([1])
        assert run.micro.size == 8
        assert peak_memory(CPU) < peaks[0] - 2**27


class TestMoments:
    def test_none_comes_on_top_of_what_another_left(
        self,
        vit: ViTConfig,
        train: TrainConfig,
        quadrants: Dataset,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """A step, an evaluation, and what follows: the checkpoint."""
        before: list[int] = []
        left: list[int] = []
        train_, tally = Pass.training, Pass._tally

        def leave_much() -> None:
            # Of a size that the C library never takes from the system one by one.
            assert [torch.ones(2**16, dtype=torch.uint8) for _ in range(2**12)]
            left.append(held_memory(CPU))

        def trained(self: Pass, numbers: Sequence[int]) -> Pieces[tuple[float, ...]]:
            before.append(held_memory(CPU))
            outcome = yield from train_(self, numbers)
            leave_much()
            return outcome

        def evaluated(self: Pass, split: ResidentSplit) -> Tally:
            before.append(held_memory(CPU))
            outcome = tally(self, split)
            leave_much()
            return outcome

        monkeypatch.setattr(Pass, "training", trained)
        monkeypatch.setattr(Pass, "_tally", evaluated)
        Pass.of(vit, train, to_device(quadrants, CPU)).epoch([1])
        before.append(held_memory(CPU))
        for held, next_ in zip(left, before[1:], strict=True):
            assert next_ < held - 2**27


class TestNothingFits:
    @pytest.mark.parametrize(
        ("kind", "training", "line"),
        [
            ("vit", True, "a pass over 1 of 16 images does not fit in memory: "),
            ("convnet", True, "a pass over 16 of 16 images does not fit in memory: "),
            ("vit", False, "the evaluation of an image does not fit in memory: "),
        ],
    )
    def test_it_ends_with_what_was_tried_and_holds_nothing(
        self,
        vit: ViTConfig,
        convnet: ConvNetConfig,
        train: TrainConfig,
        quadrants: Dataset,
        monkeypatch: pytest.MonkeyPatch,
        kind: str,
        training: bool,
        line: str,
    ) -> None:
        built = starve(monkeypatch, 0, training)
        model: ModelConfig = vit if kind == "vit" else convnet
        gc.collect()
        gc.disable()  # memory must not wait for the collector
        try:
            with pytest.raises(OutOfMemory) as refusal:
                fit(model, train, quadrants, device="cpu")
            assert str(refusal.value).startswith(line)
            assert "can't allocate memory" in str(refusal.value)
            assert isinstance(refusal.value.__cause__, RuntimeError)
            # While the error itself is still held.
            gone = weakref.ref(built.pop())
            assert gone() is None
        finally:
            gc.enable()

    @pytest.mark.parametrize("what", [fit, seconds_per_epoch])
    def test_a_model_that_cannot_be_built(
        self, vit: ViTConfig, train: TrainConfig, quadrants: Dataset, what: Callable[..., Any]
    ) -> None:
        with pytest.raises(OutOfMemory, match=r"^the model does not fit in memory: .*allocate"):
            what(vit.replace(embed_dim=2**22), train, to_device(quadrants, CPU))

    def test_a_batch_that_is_larger_than_an_epoch_is_refused(
        self, vit: ViTConfig, train: TrainConfig, quadrants: Dataset
    ) -> None:
        few = len(quadrants.train)
        with pytest.raises(UsageError, match=f"{few}"):
            seconds_per_epoch(vit, train.replace(batch_size=few + 1), to_device(quadrants, CPU))

    def test_other_errors_pass(
        self,
        vit: ViTConfig,
        train: TrainConfig,
        quadrants: Dataset,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        def wrong(*_: Any) -> None:
            raise RuntimeError("could not create a primitive")

        monkeypatch.setattr(Pass, "_gradient", wrong)
        with pytest.raises(RuntimeError, match=r"^could not create a primitive$"):
            fit(vit, train, quadrants, device="cpu")


class TestErrors:
    def test_of_every_kind_are_told_from_others(self) -> None:
        assert is_out_of_memory(MemoryError())
        assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory."))
        assert is_out_of_memory(RuntimeError("std::bad_alloc"))
        with pytest.raises(RuntimeError) as real:
            torch.empty(TOO_MUCH, dtype=torch.uint8)
        assert is_out_of_memory(real.value)
        assert not is_out_of_memory(RuntimeError("could not create a primitive"))
        assert not is_out_of_memory(ValueError("std::bad_alloc"))

    def test_what_was_said_for_want_of_memory_is_believed_again(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """OneDNN keeps what it failed to make."""
        monkeypatch.setattr(memory, "_told_for_memory", set())
        created, executed = (
            RuntimeError(f"could not {what} a primitive") for what in ("create", "execute")
        )
        with monkeypatch.context() as short:
            short.setattr(memory, "_is_left", lambda _: False)
            assert is_out_of_memory(created)
        assert is_out_of_memory(created)
        assert not is_out_of_memory(executed)

    @pytest.mark.parametrize(
        "said",
        [
            "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`",
            "cuDNN error: CUDNN_STATUS_NOT_INITIALIZED",
            "Unable to find an engine to execute this computation",
        ],
    )
    def test_what_a_library_of_the_gpu_says_is_judged_by_what_is_left_there(
        self, said: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (2**20, 2**36))
        assert is_out_of_memory(RuntimeError(said))
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (2**33, 2**36))
        assert not is_out_of_memory(RuntimeError(said))

    def test_attempt_holds_nothing(self) -> None:
        class Large:
            pass

        kept: list[weakref.ref[Large]] = []

        def compute() -> None:
            large = Large()
            kept.append(weakref.ref(large))
            raise MemoryError

        assert attempt(lambda: 3) == 3
        assert attempt(compute) is None
        with pytest.raises(OutOfMemory, match=r"^it does not fit in memory: MemoryError$"):
            insist(compute, "it")
        assert [ref() for ref in kept] == [None, None]


def in_a_process(model: str, room: str) -> dict[str, Any]:
    out = subprocess.run(
        [sys.executable, Path(__file__).with_name("memory_child.py"), model, room],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert out.returncode == 0, out.stderr
    found: dict[str, Any] = json.loads(out.stdout)
    return found


@pytest.mark.parametrize(
    ("model", "rooms", "sizes"),
    [
        ("vit", (4, 200), range(1, 64)),
        pytest.param("convnet", (4, 350), range(32, 128), marks=pytest.mark.slow),
    ],
)
def test_a_process_that_may_not_take_more(
    model: str, rooms: tuple[int, int], sizes: range
) -> None:
    """Too little for a part of a batch, then too little for a whole one, then no limit. Each in a
    process of its own: oneDNN may fail again where it has failed, whatever is left by then."""
    nothing, whole = in_a_process(model, str(rooms[0])), in_a_process(model, "all")
    # Of what every part needs it may keep that it failed, one time in fifty.
    tries = (in_a_process(model, str(rooms[1])) for _ in range(3))
    divided = next((found for found in tries if "error" not in found), {})
    assert "does not fit in memory" in nothing["error"]
    assert nothing["cause"] in ("RuntimeError", "MemoryError")  # torch's, or NumPy's
    assert divided["micro_batch"] in sizes
    assert whole["micro_batch"] is None
    # Rounding, of 4 steps in float32.
    assert divided["losses"] == pytest.approx(whole["losses"], abs=1e-4)
    assert divided["peak"] < whole["peak"] - 100


_LARGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


@pytest.mark.skipif(
    not _LARGE_PAGES.exists() or "[never]" in _LARGE_PAGES.read_text(), reason="no large pages"
)
def test_workers_take_large_pages_but_where_memory_is_measured() -> None:
    code = """if True:
        import re
        from contextlib import nullcontext
        from pathlib import Path
        import numpy as np
        from visweep.training.memory import keep_pages, small_pages, trim

        def large():
            told = Path("/proc/self/smaps_rollup").read_text()
            return int(re.search(r"AnonHugePages: +([0-9]+)", told)[1])

        keep_pages()
        for pages in (small_pages(), nullcontext()):
            trim()
            before = large()
            with pages:
                held = np.ones(2**26, np.uint8)
            print(large() - before)
            del held
    """
    with tuned():
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert out.returncode == 0, out.stderr
    measured, trained = map(int, out.stdout.split())
    assert measured == 0
    assert trained > 2**14  # KiB, of 64 MiB; the system need not have all of them in large pages
