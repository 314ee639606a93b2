"""The stacked layers that both models are made of.

Every parameter has a leading axis K: one entry per replica, so that K models of one architecture
train in one pass of batched matrix products. A layer works in the number format of its input,
whichever its parameters are in: the wide one that the optimiser updates, or a copy in that of the
input (see `visweep.training.optimizer.FlatParameters`).

    K  replicas     B  images of a batch     N  rows (images times tokens)     D  features
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from visweep.draws import Draws

GHOST = 32
"""Images over which batch norm takes its statistics, however many a batch has."""


class Stacked(nn.Module):
    """A module whose parameters are drawn anew, one replica at a time.

    Attributes:
        decayed: the parameters that weight decay applies to, by name: the weight matrices.
        wide: those that are used in the wide format of the optimiser whatever the input's is.
    """

    decayed: ClassVar[tuple[str, ...]] = ()
    wide: ClassVar[tuple[str, ...]] = ()

    def init_replica(self, replica: int, generator: torch.Generator) -> None:
        """Draw the parameters of one replica from `generator`."""
        raise NotImplementedError


def initialise(model: nn.Module, draws: Draws, replicas: Sequence[int] | None = None) -> None:
    """Draw the parameters of a model; each module's from a stream of its own, keyed by name.

    Args:
        model: the model.
        draws: of all its replicas.
        replicas: those that are to be drawn; None for all.
    """
    wanted = range(len(draws)) if replicas is None else replicas
    with torch.no_grad():
        for name, module in model.named_modules():
            if isinstance(module, Stacked):
                rows = len(next(module.parameters()))
                for replica in (r for r in wanted if r < rows):
                    module.init_replica(replica, draws.generator(replica, name))


def decayed_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that weight decay applies to, in the model's order."""
    return [getattr(module, name) for module in _stacked(model) for name in module.decayed]


def wide_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that are used in the optimiser's format, in the model's order."""
    return [getattr(module, name) for module in _stacked(model) for name in module.wide]


def _stacked(model: nn.Module) -> Iterator[Stacked]:
    return (module for module in model.modules() if isinstance(module, Stacked))


class Linear(Stacked):
    """y = x W + b for each replica: (K, N, D_in) to (K, N, D_out).

    The weight is (K, D_in, D_out), the transpose of `torch.nn.Linear`'s, as `torch.baddbmm`
    takes it.
    """

    decayed = ("weight",)

    def __init__(self, replicas: int, in_features: int, out_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(replicas, in_features, out_features))
        self.bias = nn.Parameter(torch.empty(replicas, 1, out_features))

    def init_replica(self, replica: int, generator: torch.Generator) -> None:
        nn.init.xavier_uniform_(self.weight[replica], generator=generator)
        nn.init.zeros_(self.bias[replica])

    def forward(self, x: Tensor) -> Tensor:
        return torch.baddbmm(self.bias.to(x.dtype), x, self.weight.to(x.dtype))


class LayerNorm(Stacked):
    """Normalise over the last axis of (K, …, D), with a scale and a shift per replica."""

    def __init__(self, replicas: int, features: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(replicas, features))
        self.bias = nn.Parameter(torch.empty(replicas, features))

    def init_replica(self, replica: int, generator: torch.Generator) -> None:
        nn.init.ones_(self.weight[replica])
        nn.init.zeros_(self.bias[replica])

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)
        replicas, features = weight.shape
        if replicas == 1:
            return F.layer_norm(x, (features,), weight[0], bias[0], self.eps)
        spread = (replicas, *(1 for _ in x.shape[1:-1]), features)
        normal = F.layer_norm(x, (features,), eps=self.eps)
        return torch.addcmul(bias.view(spread), normal, weight.view(spread))


class Dropout(nn.Module):
    """Inverted dropout with one rate per replica, on (K, …) and only while training.

    Args:
        rates: probability of a zero, one per replica.
        place: names this layer's stream of random draws; unique within a replica's model.
        rows: which of the model's replicas come here; None for all.
        inplace: overwrite the input, which nothing else may need any more.
    """

    def __init__(
        self,
        rates: Sequence[float],
        place: str,
        rows: Sequence[int] | None = None,
        *,
        inplace: bool = False,
    ) -> None:
        super().__init__()
        self.inplace = inplace
        self.rates = tuple(rates)
        self.place = place
        self.rows = range(len(rates)) if rows is None else rows

    @property
    def active(self) -> bool:
        return self.training and any(self.rates)

    def forward(self, x: Tensor, draws: Draws | None) -> Tensor:
        if not self.active:
            return x
        return self._mine(draws).dropped(x, self.rates, self.place, inplace=self.inplace)

    def after_gelu(self, x: Tensor, draws: Draws | None) -> Tensor:
        """Dropout of GELU(x)."""
        if not self.active:
            return F.gelu(x)
        return self._mine(draws).dropped_gelu(x, self.rates, self.place)

    def _mine(self, draws: Draws | None) -> Draws:
        if draws is None:
            raise ValueError(f"dropout at {self.place!r} needs draws while training")
        return draws.rows(self.rows)


class Conv2d(Stacked):
    """A convolution per replica, as one grouped convolution: (B, K·C_in, H, W) to (B, K·C_out, …).

    The weight is (K, C_out, C_in, S, S). There is no bias: a batch norm follows.
    """

    decayed = ("weight",)

    def __init__(
        self, replicas: int, in_channels: int, out_channels: int, size: int, stride: int = 1
    ) -> None:
        super().__init__()
        self.stride = stride
        self.weight = nn.Parameter(torch.empty(replicas, out_channels, in_channels, size, size))

    def init_replica(self, replica: int, generator: torch.Generator) -> None:
        nn.init.kaiming_normal_(
            self.weight[replica], mode="fan_out", nonlinearity="relu", generator=generator
        )

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight.to(x.dtype)
        return F.conv2d(
            x,
            weight.flatten(0, 1),
            stride=self.stride,
            padding=weight.shape[-1] // 2,
            groups=weight.shape[0],
        )


def ghosts(images: int) -> list[range]:
    """Which images of a batch are normalised together.

    Each ghost batch has `GHOST` images; what is left over joins the last one, so that none is
    small. Those of just `GHOST` lie interleaved: seen so, a batch need not be copied.
    """
    even = _interleaved(images)
    whole = [range(first, even * GHOST, even) for first in range(even)]
    rest = range(even * GHOST, images)
    return [*whole, rest] if rest else whole


def _interleaved(images: int) -> int:
    """How many ghosts of a batch have just `GHOST` images."""
    return images // GHOST if images % GHOST == 0 else max(0, images // GHOST - 1)


def woven(parts: Sequence[Sequence[int]]) -> list[int]:
    """The images of successive ghosts, in the order in which they make the same ghosts as a batch
    of their own."""
    even = [part for part in parts if len(part) == len(parts[0])]
    rest = [image for part in parts[len(even) :] for image in part]
    return [image for row in zip(*even, strict=True) for image in row] + rest


class BatchNorm2d(Stacked):
    """Batch normalisation of (B, K·C, H, W); each replica's channels have their own statistics.

    While training they are those of ghost batches (Hoffer et al. 2017,
    https://arxiv.org/abs/1705.08741) of one fixed size, see `ghosts`, so that it makes no
    difference whether a batch is divided between them. The running statistics move on with each
    ghost in turn.
    """

    wide = ("weight", "bias")
    running_mean: Tensor
    running_var: Tensor

    def __init__(
        self, replicas: int, channels: int, eps: float = 1e-5, momentum: float = 0.1
    ) -> None:
        super().__init__()
        self.eps = eps
        self.momentum = momentum
        self.weight = nn.Parameter(torch.empty(replicas, channels))
        self.bias = nn.Parameter(torch.empty(replicas, channels))
        self.register_buffer("running_mean", torch.zeros(replicas, channels))
        self.register_buffer("running_var", torch.ones(replicas, channels))

    def init_replica(self, replica: int, generator: torch.Generator) -> None:
        nn.init.ones_(self.weight[replica])
        nn.init.zeros_(self.bias[replica])
        nn.init.zeros_(self.running_mean[replica])
        nn.init.ones_(self.running_var[replica])

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:  # asked first: how many images there are must not matter then
            return self._together(x)
        even = _interleaved(len(x))
        if len(x) <= GHOST or even == 0:
            return self._together(x)
        if even * GHOST == len(x):
            return self._by_ghost(x, even)
        first, rest = x[: even * GHOST], x[even * GHOST :]
        return torch.cat([self._by_ghost(first, even), self._together(rest)])

    def _together(self, x: Tensor) -> Tensor:
        return F.batch_norm(
            x,
            self.running_mean.view(-1),
            self.running_var.view(-1),
            self.weight.flatten(),
            self.bias.flatten(),
            training=self.training,
            momentum=self.momentum,
            eps=self.eps,
        )

    def _by_ghost(self, x: Tensor, count: int) -> Tensor:
        """Normalise `count` interleaved ghosts in one pass, as channels side by side."""
        means = self.running_mean.new_zeros(count, *self.running_mean.shape)
        variances = torch.zeros_like(means)
        normal = F.batch_norm(
            x.reshape(GHOST, count * x.shape[1], *x.shape[2:]),
            means.view(-1),
            variances.view(-1),
            self.weight.flatten().repeat(count),
            self.bias.flatten().repeat(count),
            training=True,
            momentum=1.0,  # the statistics of these images alone
            eps=self.eps,
        )
        for mean, variance in zip(means, variances, strict=True):
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance, self.momentum)
        return normal.view(x.shape)


def attention(q: Tensor, k: Tensor, v: Tensor, drop: Dropout, draws: Draws | None) -> Tensor:
    """Scaled dot-product attention over (K, B, heads, tokens, D_head).

    Torch's fused kernel draws its dropout mask from a generator that cannot be keyed, and was
    measured to be no faster on the CPU, so it serves only where neither matters.
    """
    if q.device.type != "cpu" and not drop.active:
        return fused_attention(q, k, v)
    scores = torch.matmul(q * (1.0 / math.sqrt(q.shape[-1])), k.transpose(-2, -1))
    return torch.matmul(drop(softmax(scores), draws), v)


def fused_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The same without dropout, in one kernel where torch has one: of inputs of four axes only."""
    mixed = F.scaled_dot_product_attention(q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1))
    return mixed.view(q.shape)


def softmax(x: Tensor) -> Tensor:
    """Softmax over the last axis.

    The CPU's kernel for bfloat16 falls back on single numbers where a row does not fill a vector
    of them, and is then five times slower than in float32, the conversions included; rows of a few
    are slow in either.
    """
    if x.device.type == "cpu" and x.dtype == torch.bfloat16 and 8 <= x.shape[-1] < 32:
        return x.softmax(dim=-1, dtype=torch.float32).to(x.dtype)
    return x.softmax(dim=-1)
