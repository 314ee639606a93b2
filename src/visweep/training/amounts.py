"""What a pass over a batch consists of, in amounts that each have a price on a device.

A pass is counted as arithmetic, elements that are read and written one by one, operations to be
launched, parameters to be updated. Its time is the sum of these amounts, each times its price;
`visweep.training.probe` finds the prices. Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Mapping

from visweep import maskless
from visweep.config import ConvNetConfig, ModelConfig, ViTConfig
from visweep.training.counts import convolutions, hidden_width, multiply_adds, norms, num_params

EVALUATED = {"cpu": 128, "cuda": 512}
"""Images per forward pass of an evaluation, by type of device: a GPU wants many; on the CPU they
only cost memory. What is estimated is what is done: the evaluation itself reads them here."""

LANES = 16
"""Convolutions compute so many channels at a time, however few there are: numbers of a vector, of
which older processors have half as many."""

Amounts = Mapping[str, float]


def priced(counted: Amounts, prices: Amounts) -> float:
    """The sum of amounts, each times its price."""
    return sum(amount * prices.get(name, 0.0) for name, amount in counted.items())


def amounts(
    model: ModelConfig,
    images: int,
    replicas: int,
    *,
    training: bool,
    threads: int = 1,
    lanes: int = LANES,
) -> dict[str, float]:
    """What a pass over a batch consists of: that of a training step, or forward only.

    Args:
        threads: of the processor, that compute; 0 where a GPU does.
        lanes: how many numbers a vector of the processor has.
    """
    stacked = replicas * images
    counted = (
        _convnet(model, stacked, lanes)
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


def _convnet(model: ConvNetConfig, stacked: int, lanes: int) -> dict[str, float]:
    layers = list(convolutions(model))
    return {
        "convolutions": len(layers),
        "multiply-adds": stacked
        * sum(
            layer.size**2
            * layer.kernel**2
            * padded(layer.in_channels, lanes)
            * padded(layer.channels, lanes)
            for layer in layers
        ),
        "inputs": stacked * sum(layer.inputs for layer in layers),
        "elements": stacked * sum(layer.outputs for layer in layers),
        "normed": stacked * sum(layer.outputs for layer in layers if layer.normed),
        "uneven": stacked * sum(layer.outputs for layer in layers if layer.channels % lanes),
    }


def padded(channels: int, lanes: int) -> int:
    """So many channels are computed."""
    return -(-channels // lanes) * lanes
