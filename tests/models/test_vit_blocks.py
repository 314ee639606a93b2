"""The ViT's blocks against their equations, in torch's functions alone."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, get_args

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from visweep import models
from visweep.config import TrainConfig, ViTBlock, ViTConfig, bucket_parameters
from visweep.draws import Draws, key

CPU = torch.device("cpu")
STEP = ("step", 0)
BLOCKS: tuple[ViTBlock, ...] = get_args(ViTBlock)
SMALL = ViTConfig(
    image_size=12,
    in_chans=3,
    num_classes=5,
    patch_size=4,
    embed_dim=24,
    depth=3,
    num_heads=3,
    mlp_ratio=2.5,
    drop=0.3,
    attn_drop=0.2,
)

Values = Mapping[str, Tensor]


def drawn(configs: Sequence[ViTConfig], seeds: Sequence[int]) -> models.ViT:
    """In float64, no parameter left at zero or one; those of a replica follow from its seed."""
    model = models.stack(configs).double()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Norms that make everything small would leave nothing to compare.
            mean = 1.0 if re.search(r"norm\d?\.weight", name) else 0.0
            for row, seed in zip(parameter, seeds, strict=False):
                row.normal_(mean, 0.3, generator=torch.Generator().manual_seed(key(name, seed)))
    return model


def images(config: ViTConfig, seed: int, count: int = 4) -> Tensor:
    shape = (count, config.in_chans, config.image_size, config.image_size)
    return torch.randn(
        shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1000 + seed)
    )


class Recorded(Draws):
    """The draws of a step, with every mask that was asked for."""

    masks: dict[str, Tensor]

    def __init__(self, seed: int) -> None:
        super().__init__((seed,), CPU, STEP)
        self.masks = {}

    def dropout_mask(self, *arguments: Any) -> Tensor:
        mask = super().dropout_mask(*arguments)
        self.masks[arguments[-1]] = mask[0]
        return mask


class Reference:
    """One model and one block of it, as its equation has it.

    Args:
        config: of the model.
        values: its parameters, as ours are called, without the axis of replicas.
        masks: the factors of dropout by place; none where nothing is dropped.
    """

    def __init__(self, config: ViTConfig, values: Values, masks: Values) -> None:
        self.config, self.values, self.masks = config, values, masks

    def norm(self, name: str, x: Tensor) -> Tensor:
        weight, bias = self.values[f"{name}.weight"], self.values[f"{name}.bias"]
        return F.layer_norm(x, x.shape[-1:], weight, bias, 1e-6)

    def linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, self.values[f"{name}.weight"].T, self.values[f"{name}.bias"][0])

    def dropped(self, place: str, x: Tensor) -> Tensor:
        return x * self.masks[place].view(x.shape) if place in self.masks else x

    def attn(self, block: str, x: Tensor) -> Tensor:
        heads = self.config.num_heads
        q, k, v = (
            part.unflatten(2, (heads, -1)).transpose(1, 2)
            for part in self.linear(f"{block}.attn.qkv", x).chunk(3, dim=2)
        )
        weights = F.softmax(q @ k.mT / math.sqrt(q.shape[-1]), dim=-1)
        mixed = self.dropped(f"{block}.attn.attn_drop", weights) @ v
        out = self.linear(f"{block}.attn.proj", mixed.transpose(1, 2).flatten(2))
        return self.dropped(f"{block}.attn.proj_drop", out)

    def mlp(self, block: str, x: Tensor) -> Tensor:
        hidden = self.dropped(f"{block}.mlp.drop1", F.gelu(self.linear(f"{block}.mlp.fc1", x)))
        return self.dropped(f"{block}.mlp.drop2", self.linear(f"{block}.mlp.fc2", hidden))

    def logits(self, x: Tensor) -> Tensor:
        size = self.config.patch_size
        kernel = self.values["embedding.proj.weight"].T.unflatten(1, (-1, size, size))
        x = F.conv2d(x, kernel, self.values["embedding.proj.bias"][0], stride=size)
        x = x.flatten(2).transpose(1, 2)
        if self.config.class_token:
            x = torch.cat([self.values["embedding.class_token"].expand(len(x), 1, -1), x], dim=1)
        x = self.dropped("pos_drop", x + self.values["embedding.position"])
        for index in range(self.config.depth):
            x = EQUATIONS[self.config.block](self, f"blocks.{index}", x)
        x = self.norm("norm", x)
        return self.linear("head", x[:, 0] if self.config.class_token else x.mean(1))


def pre_norm(r: Reference, b: str, x: Tensor) -> Tensor:
    x = x + r.attn(b, r.norm(f"{b}.norm1", x))
    return x + r.mlp(b, r.norm(f"{b}.norm2", x))


def post_norm(r: Reference, b: str, x: Tensor) -> Tensor:
    x = r.norm(f"{b}.norm1", x + r.attn(b, x))
    return r.norm(f"{b}.norm2", x + r.mlp(b, x))


def single_residual(r: Reference, b: str, x: Tensor) -> Tensor:
    return x + r.mlp(b, r.norm(f"{b}.norm2", r.attn(b, r.norm(f"{b}.norm1", x))))


def parallel(r: Reference, b: str, x: Tensor) -> Tensor:
    return x + r.attn(b, r.norm(f"{b}.norm1", x)) + r.mlp(b, r.norm(f"{b}.norm1", x))


EQUATIONS: dict[ViTBlock, Callable[[Reference, str, Tensor], Tensor]] = {
    "pre_norm": pre_norm,
    "post_norm": post_norm,
    "single_residual": single_residual,
    "parallel": parallel,
}


@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
@pytest.mark.parametrize("class_token", [False, True], ids=["mean", "class token"])
@pytest.mark.parametrize("block", BLOCKS)
def test_logits_and_gradients_are_those_of_the_equation(
    block: ViTBlock, class_token: bool, training: bool
) -> None:
    config = SMALL.replace(block=block, class_token=class_token)
    ours, draws = drawn([config], [0]).train(training), Recorded(0)
    values = {n: p.detach()[0].clone().requires_grad_() for n, p in ours.named_parameters()}
    x, their_x = (images(config, 0).requires_grad_() for _ in range(2))

    logits = ours(x[None], draws)[0]
    expected = Reference(config, values, draws.masks).logits(their_x)
    assert bool(draws.masks) == training
    assert expected.std(0).min() > 0.05  # it says something about the images
    weighting = images(config, 1).flatten()[: expected.numel()].view(expected.shape)
    logits.backward(weighting)
    expected.backward(weighting)

    torch.testing.assert_close(logits, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(x.grad, their_x.grad, rtol=1e-9, atol=1e-9)
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad[0], values[name].grad, rtol=1e-9, atol=1e-9)


def test_no_two_blocks_are_the_same() -> None:
    x = images(SMALL, 0)[None]
    logits = [drawn([SMALL.replace(block=block)], [0]).eval()(x) for block in BLOCKS]
    for index, one in enumerate(logits):
        for other in logits[:index]:
            assert (one - other).abs().max() > 0.1


stackable = st.builds(
    lambda depth, heads, drop, attn_drop: (depth, heads, drop, attn_drop),
    st.integers(1, 3),
    st.sampled_from([1, 2, 3, 4]),
    st.sampled_from([0.0, 0.3]),
    st.sampled_from([0.0, 0.3]),
)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(BLOCKS), st.lists(stackable, min_size=2, max_size=4), st.booleans())
def test_a_stack_of_any_depths_and_heads_is_its_models_alone(
    block: ViTBlock, rows: list[tuple[int, int, float, float]], training: bool
) -> None:
    names = ("depth", "num_heads", "drop", "attn_drop")
    configs = [SMALL.replace(block=block, **dict(zip(names, row, strict=True))) for row in rows]
    configs.sort(key=lambda config: config.stack_order)
    seeds = range(len(configs))
    stacked = drawn(configs, seeds).train(training)
    x = torch.stack([images(SMALL, seed) for seed in seeds])
    logits = stacked(x, Draws(seeds, CPU, STEP))
    logits.square().sum().backward()
    for k, config in enumerate(configs):
        alone = drawn([config], [k]).train(training)
        expected = alone(x[k : k + 1], Draws((k,), CPU, STEP))
        expected.square().sum().backward()
        torch.testing.assert_close(logits[k], expected[0], rtol=1e-9, atol=1e-9)
        grads = {name: p.grad for name, p in stacked.named_parameters()}
        for name, parameter in alone.named_parameters():
            torch.testing.assert_close(grads[name][k], parameter.grad[0], rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("block", BLOCKS)
def test_dropout_changes_training_and_never_evaluation(block: ViTBlock) -> None:
    config = SMALL.replace(block=block)
    model, x = drawn([config], [0]), images(config, 0)[None]
    steps = [Draws((0,), CPU, ("step", step)) for step in range(2)]
    one, again, other = model(x, steps[0]), model(x, steps[0]), model(x, steps[1])
    assert torch.equal(one, again)
    assert (one - other).abs().max() > 0.01
    model.eval()
    assert torch.equal(model(x, steps[0]), model(x))


@pytest.mark.parametrize("block", BLOCKS)
def test_every_block_drops_at_the_same_places(block: ViTBlock) -> None:
    """So that trials of one seed differ in their blocks, and not in what they drop."""
    recorded = []
    for kind in ("pre_norm", block):
        draws = Recorded(0)
        config = SMALL.replace(block=kind)
        drawn([config], [0])(images(config, 0)[None], draws)
        recorded.append(draws.masks)
    usual, found = recorded
    assert list(found) == list(usual)
    assert all(torch.equal(found[place], mask) for place, mask in usual.items())


@pytest.mark.parametrize("block", BLOCKS)
def test_only_parallel_blocks_have_one_norm(block: ViTBlock) -> None:
    names = {name for name, _ in models.build(SMALL.replace(block=block)).named_parameters()}
    usual = {name for name, _ in models.build(SMALL).named_parameters()}
    missing = {n for n in usual if ".norm2." in n} if block == "parallel" else set()
    assert names == usual - missing


@pytest.mark.parametrize("block", BLOCKS[1:])
def test_different_blocks_do_not_stack(block: ViTBlock) -> None:
    other = SMALL.replace(block=block)
    assert other.bucket != SMALL.bucket
    assert other.replace(depth=1, num_heads=2, drop=0.0).bucket == other.bucket
    assert bucket_parameters(other, TrainConfig(), ["block", "depth"]) == {"block"}
    with pytest.raises(ValueError, match="different buckets"):
        models.stack([SMALL, other])
