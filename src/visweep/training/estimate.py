"""What a configuration will cost on a device, from a formula that a probe has calibrated.

A pass over a batch is counted as a few amounts: arithmetic, elements that are read and written one
by one, operations to be launched, parameters to be updated. Its time is a sum of these amounts,
each with a price, and so is the memory that is held at a moment; a run's peak is that of the
largest of some moments. The prices are what `visweep.training.probe` measures on the device at
hand. Nothing here imports torch.

On the CPU a run takes up to twice what its tensors do. The C library often does not fit a tensor
into the place of one of its size that is gone: an aligned piece wants some bytes more, and those
beside it may serve small objects by then. So what a step makes and drops again is counted, too.
What is estimated is what a process of `visweep.search.processes` takes, as workers are, in small
pages; those of 2 MiB add what the last ones have to spare. One that trains in the command's own
process takes up to half as much again, see there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from visweep import maskless
from visweep.config import ConvNetConfig, ModelConfig, TrainConfig, ViTConfig
from visweep.training.counts import (
    Convolution,
    convolutions,
    hidden_width,
    multiply_adds,
    norms,
    num_params,
)

EVALUATED = {"cpu": 128, "cuda": 512}
"""Images per forward pass of an evaluation, by type of device: a GPU wants many; on the CPU they
only cost memory. What is estimated is what is done: the evaluation itself reads them here."""

_LANES = 16
"""Convolutions compute so many channels at a time, however few there are."""
_LABEL = 8
"""Bytes."""
_BYTES = {"bfloat16": 2, "float32": 4, "float64": 8}

Amounts = Mapping[str, float]


@dataclass(frozen=True)
class Images:
    """How many images an epoch goes over, for training and for validation."""

    train: int
    val: int


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """The prices of one kind of model on one device; JSON values.

    Attributes:
        device: `cpu` or `cuda`.
        precision: of the forward and backward pass.
        threads: of the processor, that compute; 0 where a GPU does.
        step: seconds per unit of each amount of a training step.
        evaluation: seconds per unit of each amount of a forward pass.
        memory: bytes per unit of each amount that is held.
        held: bytes that the process holds before it trains a model, but for the images. It has
            trained some ten others: on the CPU what is compiled for each of their shapes stays, so
            that one that has trained none holds a quarter less, and one that has trained many a
            tenth more.
    """

    device: str
    precision: str
    threads: int = 1
    step: Amounts
    evaluation: Amounts
    memory: Amounts
    held: float

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Calibration:
        """The calibration that `to_json` wrote.

        Raises:
            TypeError: it did not.
        """
        return cls(**values)


_USUAL_MEMORY = {
    "process": 2.0**20,
    "parameters": 5.0,
    "stored": 1.0,
    "added": 1.0,
    "widest": 4.0,
    "dropped": 0.5,
    "later": 1.0,
    "even": 3.0,
    "matrix": 6.0,
    "evaluated": 1.0,
    "written": 1.0,
}
"""Bytes per unit. Of a parameter there are the value, its gradient, two moments, and a narrow
copy; what the others come to on machines that were probed varies, and these are on the high
side."""


def usual_memory(device: str, precision: str, threads: int) -> Calibration:
    """What a machine that has not been probed is taken to need; it tells no times."""
    return Calibration(
        device=device.partition(":")[0],
        precision=precision,
        threads=threads,
        step={},
        evaluation={},
        memory=_USUAL_MEMORY,
        held=0.0,
    )


@dataclass(frozen=True)
class Estimate:
    """What one trial will cost.

    Attributes:
        num_params: parameters of one replica.
        multiply_adds: of one forward pass of one image.
        peak_memory: bytes at most, over what the process holds before: all replicas, a training
            step, an evaluation and the writing of a checkpoint.
        process_memory: bytes at most that the process holds, as `FitResult.peak_memory` tells:
            also torch, where it lies in the processor's memory, and the images.
        seconds_per_epoch: all replicas, training and evaluation, on a device of their own.
    """

    num_params: int
    multiply_adds: int
    peak_memory: float
    process_memory: float
    seconds_per_epoch: float


def estimate(
    model: ModelConfig, train: TrainConfig, images: Images, calibration: Calibration
) -> Estimate:
    """What a configuration will cost where `calibration` was measured."""
    peak = peak_memory(model, train, calibration)
    return Estimate(
        num_params=num_params(model),
        multiply_adds=multiply_adds(model),
        peak_memory=peak,
        process_memory=calibration.held + images_memory(model, train, images) + peak,
        seconds_per_epoch=seconds_per_epoch(model, train, images, calibration),
    )


def peak_memory(model: ModelConfig, train: TrainConfig, calibration: Calibration) -> float:
    """Bytes at most, as `Estimate` has it."""
    of, threads = (calibration.precision, calibration.device), calibration.threads
    moments = memory_amounts(model, train, *of, threads=threads)
    return max(priced(held, calibration.memory) for held in moments)


def pass_memory(
    model: ModelConfig, train: TrainConfig, calibration: Calibration, at_once: int
) -> float:
    """Bytes at most in a step or an evaluation of so many replicas at a time; a checkpoint, which
    is of all of them, may take more."""
    of, threads = (calibration.precision, calibration.device), calibration.threads
    *passes, _ = memory_amounts(model, train, *of, threads=threads, at_once=at_once)
    return max(priced(held, calibration.memory) for held in passes)


def images_memory(model: ModelConfig, train: TrainConfig, images: Images) -> float:
    """Bytes of the images and labels of `visweep.data.resident.ResidentData`."""
    plain, bordered = (
        model.in_chans * (model.image_size + 2 * margin) ** 2 + _LABEL
        for margin in (0, train.translate)
    )
    probe = min(images.train, images.val)
    return float((images.train + probe) * bordered + images.val * plain)


def step_memory(
    model: ModelConfig,
    train: TrainConfig,
    calibration: Calibration,
    *,
    divided: bool = False,
    at_once: int | None = None,
) -> float:
    """Bytes at most in a training step; an evaluation or a checkpoint may take more.

    Args:
        divided: what `train` calls a batch is a part of one.
        at_once: so many of the replicas are under way at a time; None for all.
    """
    of = calibration.precision, calibration.device
    *steps, _, _ = memory_amounts(
        model, train, *of, threads=calibration.threads, divided=divided, at_once=at_once
    )
    return max(priced(held, calibration.memory) for held in steps)


def seconds_per_epoch(
    model: ModelConfig, train: TrainConfig, images: Images, calibration: Calibration
) -> float:
    """Of training and evaluation."""
    replicas = len(train.seeds)
    steps = images.train // train.batch_size
    of_a_step = amounts(
        model, train.batch_size, replicas, training=True, threads=calibration.threads
    )
    evaluations = [images.val]
    if train.train_curves:
        evaluations += 2 * [min(images.train, images.val)]
    return steps * priced(of_a_step, calibration.step) + sum(
        _seconds_of_evaluation(model, replicas, count, calibration) for count in evaluations
    )


def _seconds_of_evaluation(
    model: ModelConfig, replicas: int, images: int, calibration: Calibration
) -> float:
    whole, rest = divmod(images, EVALUATED[calibration.device])
    passes = [EVALUATED[calibration.device]] * bool(whole) + [rest] * bool(rest)
    seconds = [
        priced(amounts(model, size, replicas, training=False), calibration.evaluation)
        for size in passes
    ]
    return (whole * seconds[0] if whole else 0.0) + (seconds[-1] if rest else 0.0)


def priced(counted: Amounts, prices: Amounts) -> float:
    """The sum of amounts, each times its price."""
    return sum(amount * prices.get(name, 0.0) for name, amount in counted.items())


def amounts(
    model: ModelConfig, images: int, replicas: int, *, training: bool, threads: int = 1
) -> dict[str, float]:
    """What a pass over a batch consists of: that of a training step, or forward only.

    Args:
        threads: see `Calibration`.
    """
    stacked = replicas * images
    counted = (
        _convnet(model, stacked)
        if isinstance(model, ConvNetConfig)
        else _vit(model, stacked)
        | _dropped(model, images, replicas, threads if training else None)
    )
    return {"passes": 1.0, "parameters": replicas * num_params(model), **counted}


def _vit(model: ViTConfig, stacked: int) -> dict[str, float]:
    width, tokens, depth = model.embed_dim, model.num_tokens, model.depth
    rows, hidden = stacked * tokens, hidden_width(model)
    attention = 2 * rows * tokens * width * depth
    # Of each block: query, key, value, what attention gave and its projection, the MLP's output,
    # and what each norm and each residual sum gave.
    residuals = 1 if model.block == "single_residual" else 2
    block = (6 + norms(model) + residuals) * width + 2 * hidden
    return {
        "blocks": depth,
        "multiply-adds": stacked * multiply_adds(model) - attention,
        "attention": attention,
        "matrices": stacked * model.num_heads * depth,
        "elements": rows * (3 * width + depth * block),
        "scores": stacked * model.num_heads * tokens**2 * depth,
    }


def _dropped(
    model: ViTConfig, images: int, replicas: int, threads: int | None
) -> dict[str, float]:
    """Elements, by masks and without them; none where `threads` is None."""
    width, tokens, depth = model.embed_dim, model.num_tokens, model.depth
    each: list[int] = []
    if threads is not None and model.drop:
        each += [tokens * width] * (1 + 2 * depth) + [tokens * hidden_width(model)] * depth
    if threads is not None and model.attn_drop:
        each += [model.num_heads * tokens**2] * depth
    maskless_ones = sum(n for n in each if maskless.pays(images * n, threads or 0))
    return {
        "masks": replicas * images * (sum(each) - maskless_ones),
        "dropped without masks": replicas * images * maskless_ones,
    }


def _convnet(model: ConvNetConfig, stacked: int) -> dict[str, float]:
    layers = list(convolutions(model))
    return {
        "convolutions": len(layers),
        "multiply-adds": stacked
        * sum(
            layer.size**2 * layer.kernel**2 * _padded(layer.in_channels) * _padded(layer.channels)
            for layer in layers
        ),
        "inputs": stacked * sum(layer.inputs for layer in layers),
        "elements": stacked * sum(layer.outputs for layer in layers),
        "normed": stacked * sum(layer.outputs for layer in layers if layer.normed),
        "uneven": stacked * sum(layer.outputs for layer in layers if layer.channels % _LANES),
    }


def _padded(channels: int) -> int:
    return -(-channels // _LANES) * _LANES


def memory_amounts(
    model: ModelConfig,
    train: TrainConfig,
    precision: str,
    device: str,
    *,
    threads: int = 1,
    divided: bool = False,
    at_once: int | None = None,
) -> list[dict[str, float]]:
    """Bytes that a trial holds at each moment that may be its peak: in a training step, in an
    evaluation, and while its checkpoint is written.

    Args:
        threads: see `Calibration`.
        divided, at_once: see `step_memory`.
    """
    replicas, size = len(train.seeds), _BYTES[precision]
    together = at_once or replicas
    stacked, evaluated = together * train.batch_size, together * EVALUATED[device]
    on_cpu = device == "cpu"
    counted = (
        _stored_by_convnet(model)
        if isinstance(model, ConvNetConfig)
        else _stored_by_vit(
            model,
            on_cpu=on_cpu,
            narrow=precision == "bfloat16",
            # Parts of batches have masks, as all has on a GPU.
            dropping=None if divided or not on_cpu else (train.batch_size, threads),
        )
    )
    pixels = model.in_chans * model.image_size**2
    weight = replicas * max(4, size)
    parameters = float(weight * num_params(model))
    none = dict.fromkeys((*_OF_A_STEP, "matrix", "evaluated", "written"), 0.0)
    always = {**none, "process": 1.0, "parameters": parameters}
    evaluation = {"evaluated": float(evaluated * counted.evaluated * size)}
    steps = [
        {
            "stored": float(stacked * (step.stored + pixels) * size),
            "added": float(stacked * step.added * size),
            "widest": float(stacked * step.widest * size),
            # A GPU's allocator serves one tensor from the place of another.
            "dropped": float(on_cpu * stacked * step.dropped * size),
            "later": float(on_cpu * stacked * step.later * size),
            "even": float(on_cpu * stacked * step.even * size),
            "matrix": float(on_cpu * together * max(4, size) * counted.matrix),
        }
        for step in counted.steps
    ]
    writing = {**always, "written": parameters}
    return [*({**always, **step} for step in steps), {**always, **evaluation}, writing]


_OF_A_STEP = ("stored", "added", "widest", "dropped", "later", "even")


@dataclass(frozen=True, kw_only=True)
class _Step:
    """Elements per image at a moment of a step.

    Attributes:
        stored: what layers keep for the backward pass, which has not come to them yet.
        added: what dropout adds to it.
        widest: the largest tensor, of which there are some at a time.
        dropped: what layers make on their way forward that nothing keeps.
        later: what later layers kept: the places of it serve what follows in part.
        even: `widest` where its channels fill vectors, which other kernels compute.
    """

    stored: int
    added: int = 0
    widest: int
    dropped: int
    later: int = 0
    even: int = 0


@dataclass(frozen=True, kw_only=True)
class _Stored:
    """What a model holds.

    Attributes:
        steps: the moments of a step that may be its peak.
        evaluated: elements per image, the most that a forward pass alone holds at a time.
        matrix: weights of the largest layer, of which a product keeps copies in its own order.
    """

    steps: tuple[_Step, ...]
    evaluated: int
    matrix: int


def _stored_by_vit(
    model: ViTConfig, *, on_cpu: bool, narrow: bool, dropping: tuple[int, int] | None
) -> _Stored:
    """
    Args:
        narrow: whether it computes in bfloat16.
        dropping: images and threads where some is dropped without masks.
    """
    width, tokens, hidden = model.embed_dim, model.num_tokens, hidden_width(model)
    all_scores = model.num_heads * tokens**2
    # A GPU's attention without dropout makes none: see `visweep.models.layers.attention`.
    scores = all_scores if on_cpu or model.attn_drop else 0
    # Of each block: the norms' inputs and outputs, query (also as it was scaled), key, value, and
    # what attention gave.
    block = tokens * ((5 + 2 * norms(model)) * width + 2 * hidden) + scores
    # And what nothing keeps: query, key and value as they were before they were copied; the
    # attention of the heads, then of all, and what the MLP gave; the scores.
    passing = 6 * tokens * width + scores
    if on_cpu and narrow and 8 <= tokens < 32:  # see `visweep.models.layers.softmax`
        block += 2 * scores
        passing += 2 * scores

    def mask(count: int) -> int:
        if dropping is None:
            return count
        images, threads = dropping
        return 0 if maskless.pays(images * count, threads) else count

    masks = 0
    if model.drop:
        masks += 2 * mask(tokens * width) + mask(tokens * hidden)
        # What the shortcut was added to.
        passing += tokens * 2 * width
    if model.attn_drop:
        masks += mask(scores) + scores
    outside = 3 * tokens * width
    widest = max(tokens * hidden, 3 * tokens * width, scores)
    step = _Step(
        stored=model.depth * block + outside,
        added=model.depth * masks,
        widest=widest,
        dropped=model.depth * passing,
    )
    return _Stored(
        steps=(step,),
        evaluated=tokens * 4 * width + (2 * all_scores if on_cpu else 0),
        matrix=width * hidden,
    )


def _stored_by_convnet(model: ConvNetConfig) -> _Stored:
    layers = list(convolutions(model))
    largest = max(layer.outputs for layer in layers)
    copied = max(layer.size**2 * _padded(layer.channels) for layer in layers)
    # Before the last convolution of a block: the shortcut, the input with and without its norm or
    # ReLU, and the output.
    held = 3 if model.block == "late_relu" else 4
    return _Stored(
        steps=tuple(_backward_through(model, stage) for stage in range(len(model.widths))),
        evaluated=held * largest + copied,
        matrix=max(layer.weights for layer in layers),
    )


def _backward_through(model: ConvNetConfig, stage: int) -> _Step:
    """While the backward pass is in a stage, with all later ones behind it."""
    kept = [_kept_of(model, of) for of in range(len(model.widths))]
    last = _layers(model, stage)[-1]
    return _Step(
        stored=sum(kept[: stage + 1]),
        widest=last.outputs,
        dropped=_dropped_of(model, stage),
        later=sum(kept[stage + 1 :]),
        even=0 if last.channels % _LANES else last.outputs,
    )


def _kept_of(model: ConvNetConfig, stage: int) -> int:
    """Elements per image that a stage keeps for the backward pass."""
    layers = _layers(model, stage)
    # A norm keeps its input, and what follows it its own; a shortcut is added at once.
    kept = sum((int(layer.normed) + int(layer.kernel > 1)) * layer.outputs for layer in layers)
    # In other blocks the ReLU before the sum keeps its own, and what follows the sum that.
    return kept if model.block == "basic" else kept + model.depths[stage] * layers[-1].outputs


def _dropped_of(model: ConvNetConfig, stage: int) -> int:
    """Elements per image: what norms and sums give to a ReLU or a sum, and what a ReLU is given
    by a convolution."""
    layers = _layers(model, stage)
    # The norms of the stem, and of the shortcuts.
    stem = layers[0].outputs if stage == 0 else 0
    shortcuts = sum(layer.outputs for layer in layers if layer.kernel == 1)
    times = {"basic": 3, "late_relu": 1, "preadd_relu": 2}[model.block]
    return stem + shortcuts + times * model.depths[stage] * layers[-1].outputs


def _layers(model: ConvNetConfig, stage: int) -> list[Convolution]:
    return [layer for layer in convolutions(model) if layer.stage == stage]
