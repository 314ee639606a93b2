"""What a trained model makes of images on the way to its logits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import isqrt

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from visweep.config import ModelConfig, ViTConfig
from visweep.data.resident import ResidentData
from visweep.models import ConvNet, ViT
from visweep.training.evaluate import predict


@dataclass
class Features:
    """What a model of one replica makes of some images.

    Attributes:
        maps: (B, D, rows, columns), the feature map before the blocks and after each, by the names
            of `strides_of`. A Transformer's is its tokens where their patches lie; a class token
            lies nowhere, and is left out.
        pooled: (B, D), what the head reads.
        logits: (B, classes).
    """

    maps: dict[str, Tensor] = field(default_factory=dict)
    pooled: Tensor = field(default_factory=lambda: torch.empty(0))
    logits: Tensor = field(default_factory=lambda: torch.empty(0))


def strides_of(config: ModelConfig) -> dict[str, int]:
    """By how many pixels the cells of each layer's map lie apart, by the layers' names."""
    if isinstance(config, ViTConfig):
        names = ["embedding", *(f"block {number}" for number in range(1, 1 + config.depth))]
        return dict.fromkeys(names, config.patch_size)
    blocks = [stage for stage, depth in enumerate(config.depths) for _ in range(depth)]
    return {"stem": 1, **{f"block {n}": 2**stage for n, stage in enumerate(blocks, start=1)}}


@torch.no_grad()
def features(
    model: ViT | ConvNet, data: ResidentData, images: Tensor, *, maps: bool = False
) -> Features:
    """What a model in evaluation mode makes of uint8 images (B, C, H, W), in float32.

    Args:
        model: of one replica.
        data: tells how pixels are scaled.
        images: on the model's device.
        maps: whether maps are wanted, which take much memory.
    """
    found = Features()
    with _watched(model, found, maps):
        found.logits = predict(model, data, images, 1, torch.float32)[0]
    return found


@contextmanager
def _watched(model: ViT | ConvNet, found: Features, maps: bool) -> Iterator[None]:
    def keep_pooled(_: nn.Module, given: tuple[Tensor, ...]) -> None:
        found.pooled = given[0][0]

    hooks = [model.head.register_forward_pre_hook(keep_pooled)]
    if maps:
        hooks += _keeping_maps(model, found.maps)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _keeping_maps(model: ViT | ConvNet, maps: dict[str, Tensor]) -> Iterator[RemovableHandle]:
    def keep(name: str) -> Callable[[nn.Module, object, Tensor], None]:
        def kept(_: nn.Module, given: object, out: Tensor) -> None:
            maps[name] = _as_map(model, out)

        return kept

    def keep_first(_: nn.Module, given: tuple[Tensor, ...]) -> None:
        maps["embedding" if isinstance(model, ViT) else "stem"] = _as_map(model, given[0])

    yield model.blocks[0].register_forward_pre_hook(keep_first)
    for number, block in enumerate(model.blocks, start=1):
        yield block.register_forward_hook(keep(f"block {number}"))


def _as_map(model: ViT | ConvNet, out: Tensor) -> Tensor:
    if isinstance(model, ConvNet):
        return out
    tokens = out[0][:, int(model.class_token) :]
    side = isqrt(tokens.shape[1])
    return tokens.transpose(1, 2).reshape(len(tokens), -1, side, side)
