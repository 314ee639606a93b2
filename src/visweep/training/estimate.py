"""What a configuration will cost on a device, from a formula that a probe has calibrated.

A pass over a batch is counted as a few amounts: arithmetic, elements that are read and written one
by one, operations to be launched, parameters to be updated. Its time, and its memory, is a sum of
these amounts, each with a price. The prices are what `visweep.training.probe` measures on the
device at hand. Nothing here imports torch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from visweep.config import ConvNetConfig, ModelConfig, TrainConfig, ViTConfig
from visweep.training.counts import convolutions, hidden_width, multiply_adds, num_params

EVALUATED = {"cpu": 128, "cuda": 512}
"""Images per forward pass of an evaluation, by type of device: a GPU wants many; on the CPU they
only cost memory."""

_LANES = 16
"""Convolutions compute so many channels at a time, however few there are."""
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
        step: seconds per unit of each amount of a training step.
        evaluation: seconds per unit of each amount of a forward pass.
        memory: bytes per unit of each amount that is held.
    """

    device: str
    precision: str
    step: Amounts
    evaluation: Amounts
    memory: Amounts

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Calibration:
        """The calibration that `to_json` wrote.

        Raises:
            TypeError: it did not.
        """
        return cls(**values)


@dataclass(frozen=True)
class Estimate:
    """What one trial will cost.

    Attributes:
        num_params: parameters of one replica.
        multiply_adds: of one forward pass of one image.
        peak_memory: bytes at most, over what the process holds before: all replicas, a training
            step, an evaluation and the writing of a checkpoint.
        seconds_per_epoch: all replicas, training and validation, on a device of their own.
    """

    num_params: int
    multiply_adds: int
    peak_memory: float
    seconds_per_epoch: float


def estimate(
    model: ModelConfig, train: TrainConfig, images: Images, calibration: Calibration
) -> Estimate:
    """What a configuration will cost where `calibration` was measured."""
    return Estimate(
        num_params=num_params(model),
        multiply_adds=multiply_adds(model),
        peak_memory=peak_memory(model, train, calibration),
        seconds_per_epoch=seconds_per_epoch(model, train, images, calibration),
    )


def peak_memory(model: ModelConfig, train: TrainConfig, calibration: Calibration) -> float:
    """Bytes at most, as `Estimate` has it."""
    held = memory_amounts(model, train, calibration.precision, calibration.device)
    return priced(held, calibration.memory)


def seconds_per_epoch(
    model: ModelConfig, train: TrainConfig, images: Images, calibration: Calibration
) -> float:
    """Of training and validation."""
    replicas = len(train.seeds)
    steps = images.train // train.batch_size
    step = priced(amounts(model, train.batch_size, replicas, training=True), calibration.step)
    whole, rest = divmod(images.val, EVALUATED[calibration.device])
    passes = [EVALUATED[calibration.device]] * bool(whole) + [rest] * bool(rest)
    seconds = [
        priced(amounts(model, size, replicas, training=False), calibration.evaluation)
        for size in passes
    ]
    evaluation = whole * seconds[0] if whole else 0.0
    return steps * step + evaluation + (seconds[-1] if rest else 0.0)


def priced(counted: Amounts, prices: Amounts) -> float:
    """The sum of amounts, each times its price."""
    return sum(amount * prices.get(name, 0.0) for name, amount in counted.items())


def amounts(model: ModelConfig, images: int, replicas: int, *, training: bool) -> dict[str, float]:
    """What a pass over a batch consists of: that of a training step, or forward only."""
    stacked = replicas * images
    counted = (
        _convnet(model, stacked)
        if isinstance(model, ConvNetConfig)
        else _vit(model, stacked, training)
    )
    return {"passes": 1.0, "parameters": replicas * num_params(model), **counted}


def _vit(model: ViTConfig, stacked: int, training: bool) -> dict[str, float]:
    width, tokens, depth = model.embed_dim, model.num_tokens, model.depth
    rows, hidden = stacked * tokens, hidden_width(model)
    attention = 2 * rows * tokens * width * depth
    scores = stacked * model.num_heads * tokens**2 * depth
    dropped = rows * (width + depth * (2 * width + hidden)) if model.drop else 0
    return {
        "blocks": depth,
        "multiply-adds": stacked * multiply_adds(model) - attention,
        "attention": attention,
        "matrices": stacked * model.num_heads * depth,
        "elements": rows * (3 * width + depth * (10 * width + 2 * hidden)),
        "scores": scores,
        "masks": (dropped + (scores if model.attn_drop else 0)) if training else 0,
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
    model: ModelConfig, train: TrainConfig, precision: str, device: str
) -> dict[str, float]:
    """Bytes that a trial holds: for the parameters, for the backward pass of a batch, and for the
    largest tensor of a step and of an evaluation."""
    replicas, size = len(train.seeds), _BYTES[precision]
    stacked = replicas * train.batch_size
    stored, added, widest = (
        _stored_by_convnet(model) if isinstance(model, ConvNetConfig) else _stored_by_vit(model)
    )
    pixels = model.in_chans * model.image_size**2
    return {
        "process": 1.0,
        "parameters": replicas * num_params(model) * max(4, size),
        "stored": stacked * (stored + pixels) * size,
        "added": stacked * added * size,
        "widest": stacked * widest * size,
        "evaluated": replicas * EVALUATED[device] * widest * size,
    }


def _stored_by_vit(model: ViTConfig) -> tuple[int, int, int]:
    """Elements per image: what all layers keep for the backward pass, what dropout adds to it, and
    the largest tensor."""
    width, tokens, hidden = model.embed_dim, model.num_tokens, hidden_width(model)
    scores = model.num_heads * tokens**2
    # Of each block: both norms' inputs and outputs, query, key, value, and what attention gave.
    block = tokens * (8 * width + 2 * hidden) + scores
    dropped = tokens * (2 * width + hidden) if model.drop else 0
    dropped += 2 * scores if model.attn_drop else 0
    outside = 3 * tokens * width
    widest = max(tokens * hidden, 3 * tokens * width, scores)
    return model.depth * block + outside, model.depth * dropped, widest


def _stored_by_convnet(model: ConvNetConfig) -> tuple[int, int, int]:
    """Elements per image: what all layers keep, what a ReLU over a sum adds, and the largest
    tensor."""
    stored, widest = 0, 0
    for layer in convolutions(model):
        # A norm keeps its input, and what follows it its own; a shortcut is added at once.
        kept = int(layer.normed) + int(layer.kernel > 1)
        stored += kept * layer.outputs
        widest = max(widest, layer.outputs)
    sizes = [-(-model.image_size // 2**stage) for stage in range(len(model.widths))]
    stages = zip(sizes, model.widths, model.depths, strict=True)
    sums = sum(size**2 * width * depth for size, width, depth in stages)
    if model.block == "basic":
        return stored, sums, widest
    return stored + sums, 0, widest
