"""What a model consists of, counted from its configuration alone; torch is not imported."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from visweep.config import ConvNetConfig, ModelConfig, ViTConfig


@dataclass(frozen=True)
class Convolution:
    """One convolution of a ConvNet.

    Attributes:
        size: height and width of its output.
        in_channels: of its input.
        channels: of its output.
        kernel: height and width of its kernel.
        stride: how much smaller the output is than the input, each way.
        normed: whether a batch norm follows.
        stage: that it belongs to, from 0.
    """

    size: int
    in_channels: int
    channels: int
    kernel: int
    stride: int = 1
    normed: bool = True
    stage: int = 0

    @property
    def weights(self) -> int:
        return self.kernel**2 * self.in_channels * self.channels

    @property
    def multiply_adds(self) -> int:
        return self.size**2 * self.weights

    @property
    def inputs(self) -> int:
        return (self.size * self.stride) ** 2 * self.in_channels

    @property
    def outputs(self) -> int:
        return self.size**2 * self.channels


def convolutions(config: ConvNetConfig) -> Iterator[Convolution]:
    """Those of a ConvNet, in the order in which they are computed."""
    size, channels = config.image_size, config.widths[0]
    yield Convolution(size, config.in_chans, channels, 3)
    for stage, (width, depth) in enumerate(zip(config.widths, config.depths, strict=True)):
        for index in range(depth):
            stride = 2 if stage > 0 and index == 0 else 1
            size = -(-size // stride)
            if stride > 1 or channels != width:
                yield Convolution(size, channels, width, 1, stride, stage=stage)
            yield Convolution(size, channels, width, 3, stride, stage=stage)
            normed = config.block != "late_relu"
            yield Convolution(size, width, width, 3, normed=normed, stage=stage)
            channels = width


def hidden_width(config: ViTConfig) -> int:
    """Between the two layers of a block's MLP."""
    return int(config.embed_dim * config.mlp_ratio)


def norms(config: ViTConfig) -> int:
    """Layer norms of a block."""
    return 1 if config.block == "parallel" else 2


def num_params(config: ModelConfig) -> int:
    """Parameters of one replica."""
    if isinstance(config, ConvNetConfig):
        layers = list(convolutions(config))
        normed = sum(2 * layer.channels for layer in layers if layer.normed)
        head = (config.widths[-1] + 1) * config.num_classes
        return sum(layer.weights for layer in layers) + normed + head
    width, hidden = config.embed_dim, hidden_width(config)
    patches = (config.in_chans * config.patch_size**2 + 1) * width
    places = (config.num_tokens + int(config.class_token)) * width
    attention = 4 * width * (width + 1)
    mlp = (width + 1) * hidden + (hidden + 1) * width
    norm = 2 * width
    head = (width + 1) * config.num_classes
    block = attention + mlp + norms(config) * norm
    return patches + places + config.depth * block + norm + head


def multiply_adds(config: ModelConfig) -> int:
    """Multiply-adds of one forward pass of one image, in its matrix products and convolutions."""
    if isinstance(config, ConvNetConfig):
        head = config.widths[-1] * config.num_classes
        return sum(layer.multiply_adds for layer in convolutions(config)) + head
    width, tokens = config.embed_dim, config.num_tokens
    embedding = config.num_patches * config.in_chans * config.patch_size**2 * width
    linear = tokens * (4 * width * width + 2 * width * hidden_width(config))
    attention = 2 * tokens * tokens * width
    return embedding + config.depth * (linear + attention) + width * config.num_classes


def flops(config: ModelConfig) -> int:
    """Floating-point operations of one forward pass of one image: two a multiply-add."""
    return 2 * multiply_adds(config)
