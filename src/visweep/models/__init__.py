"""The models: a Vision Transformer and a ConvNet, each for K replicas at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from visweep.config import ModelConfig, ViTConfig
from visweep.models.convnet import ConvNet
from visweep.models.vit import ViT

__all__ = ["ConvNet", "ViT", "build", "stack"]


def build(config: ModelConfig, replicas: int = 1) -> ViT | ConvNet:
    """The model that `config` describes, its parameters not yet drawn."""
    return stack([config] * replicas)


def stack(configs: Sequence[ModelConfig]) -> ViT | ConvNet:
    """Models of one bucket as one, their parameters not yet drawn.

    Args:
        configs: one per replica, those of lower `stack_order` first.

    Raises:
        ValueError: they are not of one bucket, or not in this order.
    """
    if len({config.bucket for config in configs}) > 1:
        raise ValueError("models of different buckets do not stack")
    orders = [config.stack_order for config in configs]
    if orders != sorted(orders):
        raise ValueError("the deepest models come first in a stack")
    rows: Any = configs
    return ViT(rows) if isinstance(configs[0], ViTConfig) else ConvNet(rows)
