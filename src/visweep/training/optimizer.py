"""AdamW over stacked models, each replica with rates of its own.

The parameters of K replicas live in one (K, P) buffer, those with weight decay first, and each
parameter of the model is a view of it. So a replica is one contiguous row: torch's own fused
AdamW updates it as two tensors with the replica's learning rate and weight decay, and clipping is
one norm per row. Dropping a replica is dropping a row.

AdamW: Loshchilov and Hutter 2019, https://arxiv.org/abs/1711.05101.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from visweep.config import TrainConfig
from visweep.models.layers import decayed_parameters, wide_parameters

_ALIGNED = 64
"""Numbers: a GPU's fastest matrix products want theirs to begin at a multiple of 16 bytes."""


class FlatParameters:
    """All parameters of a stacked model and their gradients, as two (K, P) buffers.

    Building one moves the model's parameters into `values`; afterwards each is a view of it. Where
    the forward pass works in a narrower format, most are views of a narrow copy instead: that is
    one conversion a step in place of one for every parameter and one for every gradient.

    A parameter that only the first replicas have leaves zeros in the rows of the others. Those
    lie behind all that such a replica has, in either half of its row.

    Args:
        model: the model, with its parameters drawn.
        dtype: of `values` and `grads`.
        device: where they are to be.
        narrow: the format of the forward pass; None for `dtype`.

    Attributes:
        values: (K, P), the parameters; whoever changes them says so by `refresh`.
        grads: (K, P), their gradients, as `gradients` left them.
        gradients: of the whole model.
        decayed: the first so many columns are weight matrices, which decay; norms, biases,
            tokens and positions do not.
    """

    def __init__(
        self,
        model: nn.Module,
        dtype: torch.dtype,
        device: torch.device,
        narrow: torch.dtype | None = None,
    ) -> None:
        matrices, others, wide = _by_columns(model)
        self._parameters = [*matrices, *others, *wide]
        self._matrices = len(matrices)
        self.decayed = _columns(matrices)
        replicas = max(len(p) for p in self._parameters)
        width = _columns(self._parameters)
        self.values = torch.zeros(replicas, width, dtype=dtype, device=device)
        self.grads = torch.zeros_like(self.values)
        for parameter, columns in zip(self._parameters, self._split(self.values), strict=True):
            columns[: len(parameter)] = parameter.detach().to(device, dtype).flatten(1)
        copies = narrow is not None and narrow != dtype
        self._narrow = [*matrices, *others] if copies else []
        self._wide = self._parameters[len(self._narrow) :]
        self._copy = _rows(replicas, _columns(self._narrow), narrow or dtype, device)
        self.refresh()
        _point(self._narrow, self._copy)
        _point(self._wide, self.values[:, self._copy.shape[1] :])
        self.gradients = Gradients(self._parameters, self.grads, len(self._narrow))

    def refresh(self) -> None:
        """Let the model see what `values` are by now."""
        self._copy.copy_(self.values[:, : self._copy.shape[1]])

    def widen(self) -> None:
        """Make every parameter of the model a view of `values`; it is not trained any more."""
        _point(self._parameters, self.values)

    def halves(self, replica: int) -> tuple[slice, slice]:
        """The columns of a replica's weight matrices, and of its other parameters."""
        own = [p[0].numel() if replica < len(p) else 0 for p in self._parameters]
        matrices, others = sum(own[: self._matrices]), sum(own[self._matrices :])
        return slice(0, matrices), slice(self.decayed, self.decayed + others)

    def rows(self, replicas: range) -> Tensor:
        """A copy of the parameters of some replicas of one architecture, (len(replicas), P): as
        they lie in a stack of their own."""
        rows = self.values[replicas.start : replicas.stop]
        return torch.cat([rows[:, half] for half in self.halves(replicas.start)], dim=1)

    def load_rows(self, replicas: range, rows: Tensor) -> None:
        """Set them to what `rows` returned; `refresh` when all are set."""
        matrices, others = self.halves(replicas.start)
        mine = self.values[replicas.start : replicas.stop]
        mine[:, matrices] = rows[:, : matrices.stop]
        mine[:, others] = rows[:, matrices.stop :]

    def gradients_of(self, model: nn.Module, rows: slice) -> Gradients:
        """Those of a model whose parameters are views of the whole model's, of these replicas."""
        matrices, others, wide = _by_columns(model)
        return Gradients([*matrices, *others, *wide], self.grads[rows], len(self._narrow))

    def clip(self, max_norms: Tensor | float) -> None:
        """Scale each replica's gradient down where its norm is larger: than its entry of (K, 1),
        or than the one number for all."""
        norms = torch.linalg.vector_norm(self.grads, dim=1, keepdim=True)
        self.grads.mul_((max_norms / (norms + 1e-6)).clamp_(max=1.0))

    def _split(self, buffer: Tensor) -> Sequence[Tensor]:
        return _split(buffer, self._parameters)


def _by_columns(
    model: nn.Module,
) -> tuple[list[nn.Parameter], list[nn.Parameter], list[nn.Parameter]]:
    """Its parameters in the order of their columns: those that decay, others, wide ones."""
    matrices, wide = decayed_parameters(model), wide_parameters(model)
    apart = {id(p) for p in (*matrices, *wide)}
    return matrices, [p for p in model.parameters() if id(p) not in apart], wide


def _split(buffer: Tensor, parameters: Sequence[Tensor]) -> Sequence[Tensor]:
    """Each parameter's columns of a (K, P) buffer."""
    return torch.split(buffer, [p[0].numel() for p in parameters], dim=1)


class Gradients:
    """Brings gradients to where they lie together.

    Args:
        parameters: whose gradients come, in the order of their columns.
        grads: (K, P), where to.
        narrow: so many of the first ones are in another format than the rest.
    """

    def __init__(self, parameters: Sequence[Tensor], grads: Tensor, narrow: int) -> None:
        self._parameters = tuple(parameters)
        self._gather: _EachGradient | _GradientsInRuns = (
            _EachGradient(self._parameters, _split(grads, self._parameters))
            if grads.device.type == "cpu"
            else _GradientsInRuns(self._parameters, grads, sections=[narrow])
        )

    def backward(self, loss: Tensor, *, add: bool = False) -> None:
        """Put the gradient of `loss` there, in place of what was there, or add it."""
        self._gather(torch.autograd.grad(loss, self._parameters), add=add)


class _EachGradient:
    """Brings gradients to where they lie together, one by one: on the CPU, where a call costs
    little, and each way through memory much.

    Args:
        parameters: whose gradients come.
        columns: of each, (K, P of the parameter).
    """

    def __init__(self, parameters: Sequence[Tensor], columns: Sequence[Tensor]) -> None:
        pairs = zip(parameters, columns, strict=True)
        self._places = [place[: len(p)].view(p.shape) for p, place in pairs]

    def __call__(self, grads: Sequence[Tensor], *, add: bool) -> None:
        if add:
            torch._foreach_add_(self._places, tuple(grads))
        else:
            torch._foreach_copy_(self._places, tuple(grads))


class _GradientsInRuns:
    """The same in a few kernels, as a GPU wants it.

    Args:
        parameters: whose gradients come.
        grads: (K, P), where to.
        sections: at which parameters another format begins.
    """

    def __init__(
        self, parameters: Sequence[Tensor], grads: Tensor, sections: Sequence[int]
    ) -> None:
        self._grads, self._runs = grads, _runs(parameters, sections)

    def __call__(self, grads: Sequence[Tensor], *, add: bool) -> None:
        for run in self._runs:
            joined = torch.cat([grad.flatten(1) for grad in grads[run.first : run.last]], dim=1)
            columns = self._grads[: len(joined), run.columns]
            columns.add_(joined) if add else columns.copy_(joined)


@dataclass(frozen=True)
class _Run:
    """Successive parameters that equally many replicas have: parameters [first, last)."""

    first: int
    last: int
    columns: slice


def _runs(parameters: Sequence[Tensor], sections: Sequence[int]) -> list[_Run]:
    """The parameters in runs, none of which goes on beyond the end of a section.

    Args:
        parameters: in the order of their columns.
        sections: at which parameters another format begins.
    """
    runs, first, column = [], 0, 0
    for last in range(1, len(parameters) + 1):
        if last == len(parameters) or last in sections or _differ(parameters[last - 1 : last + 1]):
            width = _columns(parameters[first:last])
            runs.append(_Run(first, last, slice(column, column + width)))
            first, column = last, column + width
    return runs


def _differ(pair: Sequence[Tensor]) -> bool:
    return len(pair[0]) != len(pair[1])


def _columns(parameters: Sequence[Tensor]) -> int:
    """How many numbers one replica has in them."""
    return sum(p[0].numel() for p in parameters)


def _rows(count: int, width: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(count, width), each row beginning at a multiple of `_ALIGNED`."""
    stride = -(-width // _ALIGNED) * _ALIGNED
    return torch.zeros(count, stride, dtype=dtype, device=device)[:, :width]


def _point(parameters: Sequence[nn.Parameter], buffer: Tensor) -> None:
    """Make parameters views of successive columns of a (K, …) buffer."""
    sizes = [p[0].numel() for p in parameters]
    for parameter, columns in zip(parameters, torch.split(buffer, sizes, dim=1), strict=True):
        parameter.data = columns[: len(parameter)].view(parameter.shape)


class AdamW:
    """Torch's fused AdamW with one learning rate and weight decay per replica.

    On a GPU the learning rates are tensors there, so that a captured step can change them. It is
    called as a function, since torch's class imports torch's compiler, which takes seconds.

    Args:
        flat: the parameters.
        lrs: peak learning rate of each replica.
        weight_decays: decoupled weight decay of each replica.
    """

    def __init__(
        self, flat: FlatParameters, lrs: Sequence[float], weight_decays: Sequence[float]
    ) -> None:
        device = flat.values.device
        on_gpu = device.type != "cpu"
        self._lrs = tuple(lrs)
        self._narrow_lrs = torch.tensor(lrs, dtype=torch.float32)
        self._peaks = self._narrow_lrs.to(device)
        self._now = torch.zeros_like(self._peaks) if on_gpu else None
        self._parts = [
            _Part(flat.values[replica, columns].detach(), flat.grads[replica, columns], decay)
            for replica, weight_decay in enumerate(weight_decays)
            for columns, decay in zip(flat.halves(replica), (weight_decay, 0.0), strict=True)
        ]

    def step(self, factors: Sequence[float] | Tensor) -> None:
        """One update, each replica at its factor times its learning rate.

        Args:
            factors: K of them; a tensor (K,) float32 lies where the parameters do.
        """
        rates = self._on_host(factors) if self._now is None else self._on_gpu(factors, self._now)
        with torch.no_grad():
            for index, part in enumerate(self._parts):
                part.update(rates[index // 2])

    def _on_host(self, factors: Sequence[float] | Tensor) -> Sequence[float | Tensor]:
        return [lr * float(factor) for lr, factor in zip(self._lrs, factors, strict=True)]

    def _on_gpu(self, factors: Sequence[float] | Tensor, now: Tensor) -> Sequence[float | Tensor]:
        rates = now.unbind()
        if isinstance(factors, Tensor):
            torch.mul(self._peaks, factors, out=now)
        else:
            # The same products; each travels as a kernel's argument, which no copy waits for.
            products = self._narrow_lrs * torch.tensor(factors, dtype=torch.float32)
            for rate, value in zip(rates, products.tolist(), strict=True):
                rate.fill_(value)
        return rates

    def state(self, replicas: range) -> list[dict[str, Tensor]]:
        """Of each replica's weight matrices, then of its other parameters: the step count and
        both moments."""
        return [dict(part.state) for part in self._of(replicas)]

    def load_state(self, replicas: range, state: Sequence[Mapping[str, Tensor]]) -> None:
        """Go on from what `state` returned."""
        for part, values in zip(self._of(replicas), state, strict=True):
            for name, value in part.state.items():
                value.copy_(values[name])

    def _of(self, replicas: range) -> list[_Part]:
        return self._parts[2 * replicas.start : 2 * replicas.stop]


class _Part:
    """Successive parameters of one replica that decay alike."""

    def __init__(self, values: Tensor, grads: Tensor, weight_decay: float) -> None:
        self._values, self._grads = values, grads
        self._weight_decay = weight_decay
        self.state = _fresh_state(values)

    def update(self, lr: float | Tensor) -> None:
        adamw(
            [self._values],
            [self._grads],
            [self.state["exp_avg"]],
            [self.state["exp_avg_sq"]],
            [],
            [self.state["step"]],
            fused=True,
            capturable=self._values.device.type != "cpu",
            amsgrad=False,
            beta1=0.9,
            beta2=0.999,
            lr=lr,
            weight_decay=self._weight_decay,
            eps=1e-8,
            maximize=False,
        )


def _fresh_state(parameter: Tensor) -> dict[str, Tensor]:
    """What torch's fused AdamW keeps of a parameter, before the first step."""
    return {
        "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
        "exp_avg": torch.zeros_like(parameter),
        "exp_avg_sq": torch.zeros_like(parameter),
    }


def learning_rate_factor(step: int, total_steps: int, warmup_steps: int) -> float:
    """Fraction of the peak learning rate at `step` (from 0): linear warm-up, cosine to zero."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return 0.5 * (1.0 + math.cos(math.pi * progress))


def schedule(config: TrainConfig, steps_per_epoch: int) -> list[float]:
    """The learning-rate factor of every step of a run."""
    total = config.epochs * steps_per_epoch
    warmup = min(round(config.warmup_epochs * steps_per_epoch), total - 1)
    return [learning_rate_factor(step, total, warmup) for step in range(total)]
