"""The ConvNet's blocks against torchvision's and against their equations."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock as Reference

from visweep import models
from visweep.config import ConvBlock, ConvNetConfig
from visweep.draws import Draws
from visweep.models.convnet import BasicBlock
from visweep.models.layers import initialise

SHAPES = [(4, 4, 1), (4, 6, 1), (4, 6, 2)]  # channels in, channels out, stride


def rand(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def reference_block(in_channels: int, channels: int, stride: int, seed: int) -> Reference:
    downsample = None
    if stride != 1 or in_channels != channels:
        downsample = nn.Sequential(
            nn.Conv2d(in_channels, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
        )
    block = Reference(in_channels, channels, stride, downsample).double()
    with torch.no_grad():
        for index, parameter in enumerate(block.parameters()):
            parameter.copy_(0.5 * rand(*parameter.shape, seed=10 * seed + index))
    return block


def our_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Torchvision's state of a basic block under our names."""
    return {
        name.replace("bn", "norm").replace("downsample", "shortcut"): value
        for name, value in state.items()
        if not name.endswith("num_batches_tracked")
    }


@pytest.mark.parametrize(("in_channels", "channels", "stride"), SHAPES)
def test_basic_block_is_torchvisions(in_channels: int, channels: int, stride: int) -> None:
    """Output, gradients and running statistics, of two stacked replicas."""
    references = [reference_block(in_channels, channels, stride, seed) for seed in (1, 2)]
    ours = BasicBlock("basic", 2, in_channels, channels, stride).double()
    states = [our_names(r.state_dict()) for r in references]
    ours.load_state_dict({n: torch.stack([s[n] for s in states]) for n in states[0]})

    for batch, training in enumerate((True, True, False)):
        ours.train(training).zero_grad()
        x = rand(3, 2 * in_channels, 6, 6, seed=batch).requires_grad_()
        out = ours(x)
        weighting = rand(*out.shape, seed=50)
        out.backward(weighting)
        for k, reference in enumerate(references):
            reference.train(training).zero_grad()
            mine = slice(in_channels * k, in_channels * (k + 1))
            rows = slice(channels * k, channels * (k + 1))
            their_x = x.detach()[:, mine].clone().requires_grad_()
            expected = reference(their_x)
            expected.backward(weighting[:, rows])
            torch.testing.assert_close(out[:, rows], expected)
            torch.testing.assert_close(x.grad[:, mine], their_x.grad)
            grads = our_names({n: p.grad for n, p in reference.named_parameters()})
            for name, parameter in ours.named_parameters():
                torch.testing.assert_close(parameter.grad[k], grads[name])
            state = our_names(reference.state_dict())
            for name, buffer in ours.named_buffers():
                torch.testing.assert_close(buffer[k], state[name])


def norm(layer: nn.Module, x: Tensor) -> Tensor:
    return F.batch_norm(x, None, None, layer.weight[0], layer.bias[0], training=True)


def conv(layer: nn.Module, x: Tensor) -> Tensor:
    return F.conv2d(x, layer.weight[0], stride=layer.stride, padding=layer.weight.shape[-1] // 2)


def basic(b: BasicBlock, x: Tensor, shortcut: Tensor) -> Tensor:
    return F.relu(shortcut + norm(b.norm2, conv(b.conv2, F.relu(norm(b.norm1, conv(b.conv1, x))))))


def late_relu(b: BasicBlock, x: Tensor, shortcut: Tensor) -> Tensor:
    return shortcut + F.relu(conv(b.conv2, norm(b.norm1, conv(b.conv1, x))))


def preadd_relu(b: BasicBlock, x: Tensor, shortcut: Tensor) -> Tensor:
    return shortcut + F.relu(norm(b.norm2, conv(b.conv2, F.relu(norm(b.norm1, conv(b.conv1, x))))))


@pytest.mark.parametrize("equation", [basic, late_relu, preadd_relu])
@pytest.mark.parametrize(("in_channels", "channels", "stride"), SHAPES)
def test_block_types_follow_their_equations(
    equation, in_channels: int, channels: int, stride: int
) -> None:  # type: ignore[no-untyped-def]
    """Output and gradients."""
    kind: ConvBlock = equation.__name__
    block = BasicBlock(kind, 1, in_channels, channels, stride).double()
    with torch.no_grad():
        for index, parameter in enumerate(block.parameters()):
            parameter.copy_(rand(*parameter.shape, seed=index))
    x = rand(3, in_channels, 6, 6, seed=99).requires_grad_()
    shortcut = (
        x
        if (stride, in_channels) == (1, channels)
        else norm(block.shortcut[1], conv(block.shortcut[0], x))
    )
    out, expected = block(x), equation(block, x, shortcut)
    torch.testing.assert_close(out, expected)
    weighting = rand(*out.shape, seed=50)
    inputs = [x, *block.parameters()]
    for ours, wanted in zip(
        torch.autograd.grad(out, inputs, weighting),
        torch.autograd.grad(expected, inputs, weighting),
        strict=True,
    ):
        torch.testing.assert_close(ours, wanted)


def test_stages_halve_the_image_and_set_the_width() -> None:
    config = ConvNetConfig(image_size=16, in_chans=3, widths=(4, 6, 8), depths=(2, 1, 2))
    model = models.build(config, 2).double()
    initialise(model, Draws((0, 1), torch.device("cpu"), ("init",)))
    shapes = []
    for block in model.blocks:
        block.register_forward_hook(lambda module, args, out: shapes.append(out.shape))
    logits = model(rand(2, 3, 3, 16, 16, seed=0))
    assert logits.shape == (2, 3, 10)
    sizes = [(4, 16), (4, 16), (6, 8), (8, 4), (8, 4)]
    assert shapes == [(3, 2 * width, size, size) for width, size in sizes]


def test_head_sees_the_mean_over_the_image_and_dropout_falls_on_it() -> None:
    config = ConvNetConfig(image_size=8, widths=(64, 64), depths=(1, 1), drop=0.5)
    model = models.build(config).double()
    initialise(model, Draws((0,), torch.device("cpu"), ("init",)))
    features, pooled = [], []
    model.blocks[-1].register_forward_hook(lambda module, args, out: features.append(out))
    model.head.register_forward_hook(lambda module, args, out: pooled.append(args[0]))
    model(rand(1, 4, 1, 8, 8, seed=0), Draws((0,), torch.device("cpu"), ("step", 0)))
    mean, seen = features[0].mean((2, 3)), pooled[0][0]
    kept = seen != 0
    assert 0.3 < kept.double().mean() < 0.7
    torch.testing.assert_close(seen[kept], 2 * mean[kept])
