"""What a configuration costs: parameters, arithmetic, and time measured on the device at hand."""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass

import torch

from visweep import models
from visweep.config import ConvNetConfig, ModelConfig, TrainConfig, ViTConfig
from visweep.data.resident import ResidentData
from visweep.training.fit import Run
from visweep.training.memory import insist

_WARM_STEPS, _TIMED_STEPS = 1, 3


@dataclass(frozen=True)
class Cost:
    """What one trial costs.

    Attributes:
        num_params: parameters of one replica.
        multiply_adds: of one forward pass of one image.
        seconds_per_epoch: all replicas, training only.
    """

    num_params: int
    multiply_adds: int
    seconds_per_epoch: float


def num_params(config: ModelConfig) -> int:
    """Parameters of one replica; nothing is allocated."""
    with torch.device("meta"):
        return sum(p.numel() for p in models.build(config).parameters())


def multiply_adds(config: ModelConfig) -> int:
    """Multiply-adds of one forward pass of one image, in its matrix products and convolutions."""
    return _vit(config) if isinstance(config, ViTConfig) else _convnet(config)


def _vit(config: ViTConfig) -> int:
    width, tokens = config.embed_dim, config.num_tokens
    hidden = int(width * config.mlp_ratio)
    embedding = config.num_patches * config.in_chans * config.patch_size**2 * width
    linear = tokens * (4 * width * width + 2 * width * hidden)
    attention = 2 * tokens * tokens * width
    return embedding + config.depth * (linear + attention) + width * config.num_classes


def _convnet(config: ConvNetConfig) -> int:
    size, channels = config.image_size, config.widths[0]
    total = size * size * 9 * config.in_chans * channels
    for stage, (width, depth) in enumerate(zip(config.widths, config.depths, strict=True)):
        for index in range(depth):
            strided = stage > 0 and index == 0
            size = -(-size // 2) if strided else size
            total += size * size * 9 * width * (channels + width)
            if strided or channels != width:
                total += size * size * channels * width
            channels = width
    return total + channels * config.num_classes


def measure(model: ModelConfig, train: TrainConfig, data: ResidentData) -> Cost:
    """The cost of a configuration, timed on a few steps of a model that is thrown away.

    Raises:
        OutOfMemory: it does not fit in memory.
    """
    return insist(lambda: _measure(model, train, data), "the model")


def _measure(model: ModelConfig, train: TrainConfig, data: ResidentData) -> Cost:
    run = Run(model, train, data)
    order = torch.arange(train.batch_size, device=data.device).expand(len(train.seeds), -1)
    run.model.train()
    # A run may be shorter than what is timed.
    steps = itertools.cycle(range(len(run.factors)))
    for _ in range(_WARM_STEPS):
        run.step(next(steps), order)
    _wait(data.device)
    started = time.perf_counter()
    for _ in range(_TIMED_STEPS):
        run.step(next(steps), order)
    _wait(data.device)
    per_step = (time.perf_counter() - started) / _TIMED_STEPS
    return Cost(
        num_params=num_params(model),
        multiply_adds=multiply_adds(model),
        seconds_per_epoch=per_step * run.steps_per_epoch,
    )


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
