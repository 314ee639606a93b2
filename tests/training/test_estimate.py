"""The estimate of a configuration, and the probe that calibrates it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from visweep import maskless, models
from visweep.config import ConvNetConfig, ModelConfig, Precision, TrainConfig, ViTConfig
from visweep.draws import Draws
from visweep.errors import OutOfMemory
from visweep.training import calibrations
from visweep.training.amounts import EVALUATED, amounts, priced
from visweep.training.device import reset_peak_memory
from visweep.training.estimate import (
    Calibration,
    Images,
    estimate,
    images_memory,
    pass_memory,
    peak_memory,
    seconds_per_epoch,
    step_memory,
    usual_memory,
)
from visweep.training.fit import fit
from visweep.training.memory_amounts import memory_amounts
from visweep.training.probe import (
    Measured,
    calibrate,
    measure,
    prices,
    prices_of_largest,
    synthetic,
)
from visweep.training.resolve import precision_on

CPU = torch.device("cpu")
# Elsewhere it is computed in float32, with copies of everything, and nobody asks for it.
HAS_BFLOAT16 = pytest.mark.skipif(
    precision_on("cpu", "auto") != "bfloat16", reason="needs a processor with bfloat16"
)
CALIBRATION = Calibration(
    device="cpu",
    precision="float32",
    step={"passes": 2.0},
    evaluation={"passes": 0.5},
    memory={"process": 1000.0, "parameters": 4.0},
    held=5000.0,
)


def of_a_block(counted: Callable[[ViTConfig], float], model: ViTConfig) -> float:
    """What one more block adds."""
    one, two = (counted(model.replace(depth=depth)) for depth in (1, 2))
    return two - one


def kept(model: ViTConfig) -> float:
    """Elements that autograd keeps of one image for the backward pass."""
    built = models.build(model)
    own = {parameter.untyped_storage().data_ptr() for parameter in built.parameters()}
    found: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            found[storage.data_ptr()] = storage.nbytes() // tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        out = built(torch.zeros(1, 1, 1, model.image_size, model.image_size))
    del out  # until then no storage takes another's place
    return sum(found.values())


def normed_and_added(model: ViTConfig) -> float:
    """Elements that norms and sums write for one image."""
    written: list[int] = []

    class Listening(TorchDispatchMode):
        def __torch_dispatch__(self, op: Any, types: Any, given: Any = (), named: Any = None):  # type: ignore[no-untyped-def]
            out = op(*given, **(named or {}))
            if op is torch.ops.aten.native_layer_norm.default:
                written.append(out[0].numel())
            elif op is torch.ops.aten.add.Tensor:
                written.append(out.numel())
            return out

    with Listening(), torch.no_grad():
        models.build(model)(torch.zeros(1, 1, 1, model.image_size, model.image_size))
    return sum(written)


def held(model: ModelConfig, train: TrainConfig, precision: str = "float32") -> dict[str, float]:
    """In a training step."""
    return memory_amounts(model, train, precision, "cpu")[0]


class TestAmounts:
    def test_they_grow_with_images_and_replicas(self, model: ModelConfig) -> None:
        one = amounts(model, 16, 1, training=True)
        for many in (amounts(model, 48, 1, training=True), amounts(model, 16, 3, training=True)):
            assert many["multiply-adds"] == 3 * one["multiply-adds"]
            assert many["elements"] == 3 * one["elements"]
            assert many["passes"] == one["passes"] == 1
        assert amounts(model, 16, 3, training=True)["parameters"] == 3 * one["parameters"]

    def test_they_are_linear_in_depth(self, vit: ViTConfig) -> None:
        one, two, three = (
            amounts(vit.replace(depth=depth), 16, 1, training=True) for depth in (1, 2, 3)
        )
        for name in one:
            assert three[name] - two[name] == two[name] - one[name]

    def test_masks_are_drawn_where_there_is_dropout(self, vit: ViTConfig) -> None:
        def masks(training: bool = True, **rates: float) -> float:
            model = vit.replace(**{"drop": 0.0, "attn_drop": 0.0, **rates})
            return amounts(model, 16, 1, training=training)["masks"]

        assert masks() == 0
        assert 0 < masks(attn_drop=0.1) < masks(attn_drop=0.1, drop=0.1)
        assert masks(drop=0.1, training=False) == 0

    @pytest.mark.parametrize(("threads", "some"), [(1, True), (2, False), (0, False)])
    def test_what_is_dropped_without_masks_is_counted_apart(
        self, vit: ViTConfig, threads: int, some: bool
    ) -> None:
        model = vit.replace(drop=0.1, attn_drop=0.1, embed_dim=64, num_heads=2)
        of_one = vit.replace(drop=0.1, attn_drop=0.0).num_tokens * 64
        images = maskless.LEAST // of_one  # of them the tokens just have so many features
        found = [
            amounts(model, count, 3, training=True, threads=threads)
            for count in (images, images - 1)
        ]
        for counted, count in zip(found, (images, images - 1), strict=True):
            whole = amounts(model, count, 3, training=True, threads=2)["masks"]
            assert counted["masks"] + counted["dropped without masks"] == whole
        less = found[0]["dropped without masks"] - found[1]["dropped without masks"]
        assert (less > (1 + 2 * model.depth) * 3 * of_one) == some

    @pytest.mark.parametrize("short", [0, 1])
    def test_it_is_what_is_dropped_so(self, one_thread: None, short: int) -> None:
        elements = maskless.LEAST - short
        draws = Draws((0,), torch.device("cpu"), ("step", 0))
        assert draws._without_mask(torch.empty(1, elements)) == maskless.pays(elements, 1)

    def test_memory_is_that_of_masks_where_there_are_some(self, train: TrainConfig) -> None:
        model = ViTConfig(patch_size=4, embed_dim=64, drop=0.1, attn_drop=0.1)
        whole = train.replace(batch_size=64)

        def added(**how: Any) -> float:
            return memory_amounts(model, whole, "bfloat16", "cpu", **how)[0]["added"]

        assert 0 < added() < added(threads=2) == added(divided=True)

    def test_memory_is_counted_in_bytes(self, model: ModelConfig, train: TrainConfig) -> None:
        wide, narrow = (held(model, train, p) for p in ("float32", "bfloat16"))
        assert wide["stored"] == 2 * narrow["stored"] > 0
        assert wide["parameters"] == narrow["parameters"] > 0
        double = held(model, train.replace(batch_size=2 * train.batch_size))
        assert double["stored"] == 2 * wide["stored"]
        assert double["parameters"] == wide["parameters"]

    def test_memory_is_that_of_the_largest_moment(
        self, model: ModelConfig, train: TrainConfig
    ) -> None:
        for device in ("cpu", "cuda"):
            moments = memory_amounts(model, train, "float32", device)
            assert all(moment.keys() == moments[0].keys() for moment in moments)
            for name in ("stored", "evaluated", "written"):
                prices = {name: 2.0, "process": 1.0}
                calibration = replace(CALIBRATION, device=device, memory=prices)
                largest = max(moment[name] for moment in moments)
                assert largest > 0
                assert peak_memory(model, train, calibration) == 1 + 2 * largest

    def test_what_a_gpu_has_captured_stays_beside_the_next_graph(
        self, model: ModelConfig, train: TrainConfig
    ) -> None:
        """As its evaluations do beside its step: one that all replicas see alike, and one as each
        of them sees it in training."""
        for device, divided, curves, graphs in (
            ("cuda", False, False, 1),
            ("cuda", False, True, 2),
            ("cuda", True, True, 0),
            ("cpu", False, True, 0),
        ):
            *steps, evaluation, _ = memory_amounts(
                model,
                train.replace(train_curves=curves),
                "bfloat16",
                device,
                divided=divided,
            )
            assert evaluation["evaluated"] > 0
            assert evaluation["stored"] == 0
            for step in steps:
                assert step["evaluated"] == graphs * evaluation["evaluated"]
                assert step["stored"] > 0
        curves = train.replace(seeds=(0, 1), train_curves=True)
        step, *_, evaluation, _ = memory_amounts(model, curves, "bfloat16", "cuda", at_once=1)
        assert step["evaluated"] == evaluation["evaluated"], "evaluations in shares are not"

    def test_what_a_convnet_keeps_depends_on_its_block(self, convnet: ConvNetConfig) -> None:
        stored = [
            held(convnet.replace(block=block), TrainConfig())["stored"]
            for block in ("basic", "late_relu", "preadd_relu")
        ]
        assert stored[0] == stored[1] < stored[2]

    def test_a_convnets_backward_pass_leaves_stage_after_stage(self, train: TrainConfig) -> None:
        model = ConvNetConfig(image_size=32, widths=(8, 16, 24), depths=(1, 2, 1))
        *steps, evaluation, writing = memory_amounts(model, train, "float32", "cpu")
        assert len(steps) == 3
        stored = [step["stored"] for step in steps]
        assert stored == sorted(set(stored))
        assert {step["stored"] + step["later"] for step in steps} == {stored[-1]}
        assert [bool(step["even"]) for step in steps] == [False, True, False]
        assert steps[1]["even"] == steps[1]["widest"]
        assert evaluation["stored"] == writing["stored"] == 0
        # The first stages keep what a model without the last one keeps.
        shorter = model.replace(widths=(8, 16), depths=(1, 2))
        assert memory_amounts(shorter, train, "float32", "cpu")[1]["stored"] == stored[1]

    def test_narrow_layers_fill_the_vectors_of_older_processors(self, train: TrainConfig) -> None:
        model = ConvNetConfig(image_size=32, widths=(8, 24), depths=(1, 1))
        old, new = (amounts(model, 1, 1, training=True, lanes=lanes) for lanes in (8, 16))
        assert old["multiply-adds"] < new["multiply-adds"]
        assert old["uneven"] == 0 < new["uneven"]
        price = Calibration(
            device="cpu",
            precision="float32",
            lanes=8,
            step={"multiply-adds": 1.0},
            evaluation={"multiply-adds": 1.0},
            memory={"even": 1.0},
            held=0.0,
        )
        for cost in (
            lambda price: seconds_per_epoch(model, train, Images(64, 64), price),
            lambda price: seconds_per_epoch(model, train, Images(0, 64), price),
            lambda price: -peak_memory(model, train, price),
            lambda price: -pass_memory(model, train, price, 1),
            lambda price: -step_memory(model, train, price),
        ):
            assert cost(price) < cost(replace(price, lanes=16))

    @pytest.mark.parametrize("block", ["post_norm", "single_residual", "parallel"])
    def test_blocks_differ_in_them_as_in_what_they_compute(self, block: str) -> None:
        model = ViTConfig(image_size=16, patch_size=4, embed_dim=32, num_heads=2)
        train = TrainConfig(batch_size=1)

        def stored(model: ViTConfig) -> float:
            return held(model, train)["stored"] / 4

        def elements(model: ViTConfig) -> float:
            return amounts(model, 1, 1, training=True)["elements"]

        def more(counted: Callable[[ViTConfig], float]) -> float:
            return of_a_block(counted, model.replace(block=block)) - of_a_block(counted, model)

        # A norm also keeps the mean and the deviation of every token.
        assert more(kept) == pytest.approx(more(stored), abs=2 * model.num_tokens)
        assert more(normed_and_added) == more(elements)
        assert (more(stored), more(elements)) != (0, 0) or block == "post_norm"

    def test_on_the_cpu_what_a_step_drops_counts_too(
        self, vit: ViTConfig, convnet: ConvNetConfig, train: TrainConfig
    ) -> None:
        late, pre, basic = (
            held(convnet.replace(block=block), train)["dropped"]
            for block in ("late_relu", "preadd_relu", "basic")
        )
        # Of each block one tensor more; the stem and the shortcuts have theirs in any.
        assert 0 < pre - late == basic - pre < late
        none, attention, both = (
            held(vit.replace(drop=drop, attn_drop=attn_drop), train)["dropped"]
            for drop, attn_drop in ((0.0, 0.0), (0.0, 0.1), (0.1, 0.1))
        )
        # A mask is made piece by piece.
        assert 0 < none == attention < both
        for moment in memory_amounts(convnet, train, "float32", "cuda"):
            assert moment["dropped"] == 0

    def test_in_bfloat16_a_short_softmax_is_kept_in_float32(self, train: TrainConfig) -> None:
        """Where there are 16 tokens, and not where there are 64: see `models.layers.softmax`."""
        for patch_size, kept in ((8, 2), (4, 0)):
            model = ViTConfig(
                image_size=32, patch_size=patch_size, num_heads=4, depth=1, attn_drop=0.1
            )
            on_gpu, on_cpu = (
                memory_amounts(model, train, "bfloat16", device)[0]["stored"]
                for device in ("cuda", "cpu")
            )
            scores = len(train.seeds) * train.batch_size * 4 * model.num_tokens**2 * 2
            assert on_cpu - on_gpu == kept * scores

    def test_on_a_gpu_attention_without_dropout_keeps_no_scores(
        self, vit: ViTConfig, train: TrainConfig
    ) -> None:
        (without, evaluation, _), (with_, same, _) = (
            memory_amounts(vit.replace(attn_drop=rate), train, "float32", "cuda")
            for rate in (0.0, 0.1)
        )
        (on_cpu, *_), _ = (
            memory_amounts(vit.replace(attn_drop=rate), train, "float32", "cpu")
            for rate in (0.0, 0.1)
        )
        scores = len(train.seeds) * train.batch_size * vit.num_heads * vit.num_tokens**2 * 4
        assert with_["stored"] - without["stored"] == vit.depth * scores
        assert on_cpu["stored"] == with_["stored"]
        assert evaluation == same

    @pytest.mark.parametrize(
        ("precision", "head_width", "kept"),
        [
            ("bfloat16", 23, False),
            ("float32", 24, False),
            ("float32", 23, True),
            ("float64", 24, True),
        ],
    )
    def test_where_a_gpu_has_no_kernel_for_that_it_keeps_them(
        self, vit: ViTConfig, train: TrainConfig, precision: str, head_width: int, kept: bool
    ) -> None:
        model = vit.replace(embed_dim=8 * head_width, num_heads=8, attn_drop=0.0)
        size = {"bfloat16": 2, "float32": 4, "float64": 8}[precision]
        scores = len(train.seeds) * 8 * model.num_tokens**2 * size
        step, evaluation, _ = memory_amounts(model, train, precision, "cuda")
        dropping, same, _ = memory_amounts(model.replace(attn_drop=0.1), train, precision, "cuda")
        by_dropping = dropping["stored"] - step["stored"]
        assert by_dropping == (0 if kept else model.depth * train.batch_size * scores)
        rows = len(train.seeds) * EVALUATED["cuda"] * model.num_tokens * 4 * model.embed_dim
        assert evaluation["evaluated"] - rows * size == kept * 2 * EVALUATED["cuda"] * scores
        assert evaluation == same


class TestEstimate:
    def test_an_epoch_is_its_steps_and_its_evaluations(self, vit: ViTConfig) -> None:
        train = TrainConfig(batch_size=10, precision="float32")
        for val, evaluations in ((1, 1), (128, 1), (129, 2), (256, 2)):
            found = seconds_per_epoch(vit, train, Images(109, val), CALIBRATION)
            assert found == 10 * 2.0 + evaluations * 0.5

    def test_it_tells_everything(self, vit: ViTConfig) -> None:
        found = estimate(vit, TrainConfig(precision="float32"), Images(64, 1), CALIBRATION)
        assert found.seconds_per_epoch == 2.5
        assert found.peak_memory == 1000 + 4 * 4 * found.num_params
        images = images_memory(vit, TrainConfig(), Images(64, 1))
        assert found.process_memory == found.peak_memory + images + 5000
        assert found.multiply_adds > found.num_params > 0

    @pytest.mark.parametrize("batches", [1, 4])
    def test_images_are_counted_as_they_lie(self, vit: ViTConfig, batches: int) -> None:
        train = TrainConfig(batch_size=50, translate=3)
        data = synthetic(vit, train, CPU, batches)
        splits = (data.train, data.val, data.probe)
        bytes_ = sum(t.nbytes for split in splits for t in (split.bordered, split.labels))
        assert images_memory(vit, train, Images(len(data.train), len(data.val))) == bytes_

    def test_a_calibration_survives_json(self) -> None:
        stored = json.loads(json.dumps(CALIBRATION.to_json()))
        assert Calibration.from_json(stored) == CALIBRATION
        with pytest.raises(TypeError):
            Calibration.from_json({**stored, "unknown": 1})


class TestPrices:
    def test_they_are_found(self) -> None:
        counted = [{"a": 1.0, "b": float(n), "c": float(n * n)} for n in range(1, 6)]
        found = prices(counted, [3.0 + 1e-3 * n * n for n in range(1, 6)])
        assert found == pytest.approx({"a": 3.0, "b": 0.0, "c": 1e-3}, abs=1e-9)

    def test_none_is_below_zero(self) -> None:
        counted = [{"a": 1.0, "b": float(n)} for n in range(1, 6)]
        found = prices(counted, [10.0 - n for n in range(1, 6)])
        assert min(found.values()) >= 0

    def test_an_amount_that_is_never_there_costs_nothing(self) -> None:
        counted = [{"a": 1.0, "b": 0.0} for _ in range(3)]
        assert prices(counted, [2.0, 2.0, 2.0]) == pytest.approx({"a": 2.0, "b": 0.0})

    def test_of_the_largest_of_several_sums(self) -> None:
        """Which of them it is changes halfway."""
        counted = [[{"a": float(n), "b": 0.0}, {"a": 0.0, "b": float(10 - n)}] for n in range(11)]
        measured = [max(2.0 * n, 3.0 * (10 - n)) for n in range(11)]
        assert prices_of_largest(counted, measured) == pytest.approx({"a": 2.0, "b": 3.0})

    def test_of_the_largest_where_the_sums_do_not_tell_at_first(self) -> None:
        """What is small costs much: taken for the larger of the two, `a` would explain little."""
        pairs = [(9.0, 1.0), (8.0, 3.0), (4.0, 2.0), (7.0, 1.0), (6.0, 4.0)]
        counted = [[{"a": a, "b": 0.0}, {"a": 0.0, "b": b}] for a, b in pairs]
        measured = [max(0.1 * a, 5.0 * b) for a, b in pairs]
        found = prices_of_largest(counted, measured)
        assert [max(found["a"] * a, found["b"] * b) for a, b in pairs] == pytest.approx(measured)


def measured_alone(model: ModelConfig, train: TrainConfig) -> Measured:
    [found] = measure([(model, train)], synthetic(model, train, CPU))
    assert found is not None
    return found


class TestMeasured:
    def test_the_median_of_all_bursts_and_of_all_runs_but_the_first(self) -> None:
        memory = (99.0, 10.0, 20.0, 12.0, 11.0)
        steps = (3.0, 2.0, 9.0, 4.0, 8.0)
        bursts = [
            Measured(s, 2.0 * s, m, 2.0 * m, 3.0 * m) for s, m in zip(steps, memory, strict=True)
        ]
        assert Measured.of(bursts) == Measured(4.0, 8.0, 11.5, 23.0, 3.0 * memory[0])


class TestProbe:
    def test_a_small_probe(self, model: ModelConfig, train: TrainConfig) -> None:
        """Rough, since the models are tiny: the order of magnitude, and which is dearer."""
        train = train.replace(seeds=(1,))
        larger = (
            model.replace(depths=(2, 2))
            if isinstance(model, ConvNetConfig)
            else model.replace(depth=8)
        )
        calibration = calibrate([(model, train), (larger, train)], CPU)
        assert Calibration.from_json(json.loads(json.dumps(calibration.to_json()))) == calibration
        images = Images(train.batch_size, EVALUATED["cpu"])
        measured = measured_alone(larger, train)
        found = estimate(larger, train, images, calibration)
        seconds = measured.step + measured.evaluation
        assert seconds / 3 < found.seconds_per_epoch < 3 * seconds
        assert found.seconds_per_epoch > seconds_per_epoch(model, train, images, calibration)

    @pytest.mark.slow
    def test_what_the_process_holds_is_told(self, vit: ViTConfig, train: TrainConfig) -> None:
        """Of a process with torch, hundreds of megabytes, the images of the probe aside."""
        model = vit.replace(embed_dim=128, depth=6)
        calibration = calibrate([(vit, train), (model, train)], CPU)
        data = synthetic(vit, train, CPU)
        found = estimate(model, train, Images(len(data.train), len(data.val)), calibration)
        reset_peak_memory(CPU)
        assert fit(model, train, data).peak_memory == pytest.approx(found.process_memory, rel=0.2)

    def test_of_several_batch_sizes_and_shifts(self, train: TrainConfig) -> None:
        model = ViTConfig(image_size=16, patch_size=8, embed_dim=16, depth=1, num_heads=2)
        trains = (train.replace(batch_size=8), train.replace(batch_size=32, translate=3))
        calibration = calibrate([(model, t) for t in trains], CPU)
        assert any(price > 0 for price in calibration.step.values())

    @pytest.mark.slow
    def test_memory_of_a_batch_is_measured(self, train: TrainConfig) -> None:
        model = ViTConfig(image_size=32, patch_size=4, embed_dim=128, depth=4, num_heads=4)
        train = train.replace(batch_size=64, seeds=(1,))
        measured = measured_alone(model, train)
        counted = held(model, train)
        least = counted["stored"] + 4 * counted["parameters"]
        assert 0.7 * least < measured.memory < 2 * least

    @pytest.mark.slow
    @pytest.mark.parametrize(
        "model",
        [
            ViTConfig(image_size=32, patch_size=4, embed_dim=128, depth=4, num_heads=4),
            ConvNetConfig(widths=(16, 32, 64), depths=(1, 1, 1)),
        ],
    )
    @pytest.mark.parametrize(
        "precision", ["float32", pytest.param("bfloat16", marks=HAS_BFLOAT16)]
    )
    def test_a_machine_that_was_not_probed_is_taken_for_a_usual_one(
        self, model: ModelConfig, precision: Precision, train: TrainConfig
    ) -> None:
        train = train.replace(batch_size=64, seeds=(1,), precision=precision)
        expected = step_memory(model, train, usual_memory("cpu", precision, 1))
        assert 0.6 * expected < measured_alone(model, train).memory < 1.6 * expected

    def test_what_does_not_fit_is_left_out(self, vit: ViTConfig, train: TrainConfig) -> None:
        vast = vit.replace(embed_dim=2**22)
        found = calibrate([(vit, train), (vast, train)], CPU)
        assert priced(amounts(vit, 16, 2, training=True), found.step) > 0
        with pytest.raises(OutOfMemory, match="the smallest model does not fit in memory"):
            calibrate([(vast, train)], CPU)


class TestCalibrations:
    @pytest.fixture(autouse=True)
    def _cache(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("VISWEEP_CACHE", str(tmp_path / "cache"))

    def test_one_is_kept_for_each_device_and_what_was_tried(self) -> None:
        paths = {
            calibrations.path_of("cpu", threads, probed)
            for threads in (1, 2)
            for probed in ("a", "b")
        }
        assert len(paths) == 4
        path = calibrations.path_of("cpu", 1, "a")
        assert calibrations.read(path, Calibration.from_json) is None
        calibrations.write(path, CALIBRATION.to_json())
        assert calibrations.read(path, Calibration.from_json) == CALIBRATION
        other = replace(CALIBRATION, step={"passes": 3.0})
        calibrations.write(path, other.to_json())
        assert calibrations.read(path, Calibration.from_json) == other

    @pytest.mark.parametrize("content", ["", "{", "[]", '{"device": "cpu"}', "null"])
    def test_a_damaged_one_is_made_anew(
        self, content: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        path = calibrations.path_of("cpu", 1, "a")
        path.parent.mkdir(parents=True)
        path.write_text(content)
        assert calibrations.read(path, Calibration.from_json) is None
        assert "is made anew" in caplog.text

    def test_where_nothing_can_be_kept_a_line_says_so(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        (tmp_path / "cache").write_text("no folder")
        path = calibrations.path_of("cpu", 1, "a")
        calibrations.write(path, CALIBRATION.to_json())
        assert "is not cached" in caplog.text
