"""What is counted from a configuration alone is what the real modules have."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import pytest
import torch
from torch import nn

from visweep import models
from visweep.config import ConvNetConfig, ModelConfig, ViTConfig
from visweep.models.layers import Conv2d, Linear
from visweep.training.counts import convolutions, flops, multiply_adds, num_params

VITS = [
    ViTConfig(
        image_size=size,
        in_chans=chans,
        num_classes=classes,
        patch_size=patch,
        embed_dim=width,
        depth=depth,
        num_heads=heads,
        mlp_ratio=ratio,
        class_token=token,
        block=block,
    )
    for (size, patch), (chans, classes), (width, heads), depth, ratio, token, block in product(
        [(32, 4), (32, 16), (64, 64)],
        [(1, 10), (3, 2)],
        [(32, 8), (184, 2)],
        [1, 3],
        [4.0, 1.3],
        [False, True],
        ["pre_norm", "post_norm", "single_residual", "parallel"],
    )
]
CONVNETS = [
    ConvNetConfig(
        image_size=size, in_chans=chans, num_classes=classes, widths=widths, depths=depths,
        block=block,
    )
    for size, (chans, classes), (widths, depths), block in product(
        [32, 33],
        [(1, 10), (3, 2)],
        [((8,), (1,)), ((8, 8), (2, 1)), ((16, 32, 64), (1, 2, 3)), ((64, 16, 24), (2, 2, 1))],
        ["basic", "late_relu", "preadd_relu"],
    )
]  # fmt: skip
MODELS: list[ModelConfig] = [*VITS, *CONVNETS]


def shown(model: ModelConfig) -> str:
    return f"{model.kind}-{MODELS.index(model)}"


@pytest.mark.parametrize("model", MODELS, ids=shown)
def test_parameters(model: ModelConfig) -> None:
    with torch.device("meta"):
        built = models.build(model)
    assert num_params(model) == sum(p.numel() for p in built.parameters())


def products(built: nn.Module, images: torch.Tensor) -> Iterator[int]:
    """Multiply-adds of every linear layer and convolution of a forward pass, as it runs."""
    counted: list[int] = []

    def note(module: nn.Module, given: tuple[torch.Tensor, ...], out: torch.Tensor) -> None:
        if isinstance(module, Linear):
            counted.append(given[0][..., 0].numel() * module.weight[0].numel())
        elif isinstance(module, Conv2d):
            counted.append(out.shape[-1] * out.shape[-2] * module.weight[0].numel())

    for module in built.modules():
        module.register_forward_hook(note)
    with torch.no_grad():
        built.eval()(images)
    yield from counted


@pytest.mark.parametrize("model", [*VITS[::19], *CONVNETS[::5]], ids=shown)
def test_multiply_adds(model: ModelConfig) -> None:
    built = models.build(model)
    image = torch.zeros(1, 1, model.in_chans, model.image_size, model.image_size)
    found = sum(products(built, image))
    if isinstance(model, ViTConfig):
        found += 2 * model.num_tokens**2 * model.embed_dim * model.depth
    assert multiply_adds(model) == found
    assert flops(model) == 2 * found


def test_the_convolutions_of_a_model() -> None:
    model = ConvNetConfig(widths=(16, 32), depths=(1, 2), block="late_relu")
    found = [(c.size, c.in_channels, c.channels, c.kernel, c.normed) for c in convolutions(model)]
    assert found == [
        (32, 1, 16, 3, True),
        (32, 16, 16, 3, True),
        (32, 16, 16, 3, False),
        (16, 16, 32, 1, True),
        (16, 16, 32, 3, True),
        (16, 32, 32, 3, False),
        (16, 32, 32, 3, True),
        (16, 32, 32, 3, False),
    ]
    strided = [c for c in convolutions(model) if c.stride == 2]
    assert [c.inputs for c in strided] == [32 * 32 * 16] * 2
