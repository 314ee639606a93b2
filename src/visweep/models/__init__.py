"""The models: a Vision Transformer and a ConvNet, each for K replicas at once."""

from __future__ import annotations

from visweep.config import ModelConfig, ViTConfig
from visweep.models.convnet import ConvNet
from visweep.models.vit import ViT

__all__ = ["ConvNet", "ViT", "build"]


def build(config: ModelConfig, replicas: int = 1) -> ViT | ConvNet:
    """The model that `config` describes, its parameters not yet drawn."""
    if isinstance(config, ViTConfig):
        return ViT(config, replicas)
    return ConvNet(config, replicas)
