"""The stacked optimiser against torch's own, one per replica."""

import itertools
import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from visweep import models
from visweep.config import ConvNetConfig, TrainConfig, ViTConfig
from visweep.draws import Draws
from visweep.models.layers import BatchNorm2d, initialise
from visweep.training import optimizer
from visweep.training.optimizer import AdamW, FlatParameters, learning_rate_factor, schedule

CPU = torch.device("cpu")
VIT = ViTConfig(image_size=8, patch_size=4, embed_dim=8, depth=1, num_heads=2, class_token=True)
CONVNET = ConvNetConfig(image_size=8, widths=(4, 6), depths=(1, 1))


def drawn(config: ViTConfig | ConvNetConfig, replicas: int) -> nn.Module:
    model = models.build(config, replicas)
    initialise(model, Draws(range(replicas), CPU, ("init",)))
    return model.double()


def flat(config: ViTConfig | ConvNetConfig, replicas: int) -> tuple[nn.Module, FlatParameters]:
    model = drawn(config, replicas)
    return model, FlatParameters(model, torch.float64, CPU)


def loss_of(model: nn.Module, replicas: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(replicas, 4, 1, 8, 8, dtype=torch.float64, generator=generator)
    loss: Tensor = model(images).square().sum()
    return loss


def per_replica(model: nn.Module, k: int) -> dict[str, Tensor]:
    return {name: p.detach()[k].clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("narrow", [None, torch.bfloat16])
@pytest.mark.parametrize("add", [False, True])
def test_gradients_come_together_one_by_one_as_in_runs(
    narrow: torch.dtype | None, add: bool
) -> None:
    """As on the CPU, and as on a GPU; of models of several depths, in two formats."""
    model = models.stack([VIT.replace(depth=depth) for depth in (3, 2, 2)])
    parameters = FlatParameters(model, torch.float32, CPU, narrow)
    order = parameters._parameters
    in_runs = torch.ones_like(parameters.grads)
    parameters.grads.fill_(1)
    runs = optimizer._GradientsInRuns(order, in_runs, sections=[len(parameters._narrow)])
    grads = [torch.randn_like(p) for p in order]
    assert len({len(p) for p in order}) == 2
    for gather in (runs, parameters.gradients._gather):
        gather(grads, add=add)
    assert torch.equal(parameters.grads, in_runs)
    assert (in_runs != 1).any()


@pytest.mark.parametrize("config", [VIT, CONVNET], ids=["vit", "convnet"])
class TestFlatParameters:
    def test_moves_the_parameters_and_keeps_the_model(
        self, config: ViTConfig | ConvNetConfig
    ) -> None:
        model, untouched = drawn(config, 3), drawn(config, 3)
        parameters = FlatParameters(model, torch.float64, CPU)
        for moved, original in zip(model.parameters(), untouched.parameters(), strict=True):
            assert torch.equal(moved, original)
        assert torch.equal(loss_of(model, 3), loss_of(untouched, 3))
        assert parameters.values.shape == (3, sum(p[0].numel() for p in model.parameters()))
        parameters.values[1] = 0.5
        for moved, original in zip(model.parameters(), untouched.parameters(), strict=True):
            assert (moved[1] == 0.5).all()
            assert torch.equal(moved[[0, 2]], original[[0, 2]])

    def test_gradients_are_autograds(self, config: ViTConfig | ConvNetConfig) -> None:
        model, untouched = drawn(config, 3), drawn(config, 3)
        parameters = FlatParameters(model, torch.float64, CPU)
        parameters.gradients.backward(loss_of(model, 3, seed=1))  # overwritten by the next one
        parameters.gradients.backward(loss_of(model, 3))
        loss_of(untouched, 3).backward()
        # Where a parameter lies in the buffer is where its gradient lies.
        parameters.values.copy_(parameters.grads)
        for moved, original in zip(model.parameters(), untouched.parameters(), strict=True):
            torch.testing.assert_close(moved.detach(), original.grad)

    @pytest.mark.parametrize("max_norm", [1e-3, 1.0, 1e6])
    def test_clips_as_torch_does(self, config: ViTConfig | ConvNetConfig, max_norm: float) -> None:
        _, parameters = flat(config, 3)
        parameters.grads.normal_(generator=torch.Generator().manual_seed(0))
        parameters.grads.mul_(torch.tensor([[1e-3], [1.0], [1e3]]))
        expected = parameters.grads.clone()
        parameters.clip(max_norm)
        for k in range(3):
            alone = nn.Parameter(torch.zeros_like(expected[k]))
            alone.grad = expected[k].clone()
            nn.utils.clip_grad_norm_([alone], max_norm)
            torch.testing.assert_close(parameters.grads[k], alone.grad)

    def test_one_replicas_infinite_gradient_stays_its_own(
        self, config: ViTConfig | ConvNetConfig
    ) -> None:
        _, parameters = flat(config, 2)
        parameters.grads.fill_(1.0)
        parameters.grads[0, 0] = math.inf
        parameters.clip(1.0)
        assert parameters.grads[0].isnan().any()
        torch.testing.assert_close(
            parameters.grads[1].norm(), torch.tensor(1.0, dtype=torch.float64)
        )


def reference_groups(
    parameters: dict[str, nn.Parameter], decayed: Sequence[str], weight_decay: float
) -> list[dict[str, object]]:
    rates = {name: weight_decay if name in decayed else 0.0 for name in parameters}
    return [{"params": [p], "weight_decay": rates[name]} for name, p in parameters.items()]


DECAYED = {
    "vit": [
        "embedding.proj.weight",
        "blocks.0.attn.qkv.weight",
        "blocks.0.attn.proj.weight",
        "blocks.0.mlp.fc1.weight",
        "blocks.0.mlp.fc2.weight",
        "head.weight",
    ],
    "convnet": [
        "stem.weight",
        "blocks.0.conv1.weight",
        "blocks.0.conv2.weight",
        "blocks.1.conv1.weight",
        "blocks.1.conv2.weight",
        "blocks.1.shortcut.0.weight",
        "head.weight",
    ],
}


@pytest.mark.parametrize("config", [VIT, CONVNET], ids=["vit", "convnet"])
class TestAdamW:
    lrs, weight_decays = (1e-3, 3e-2, 5e-4), (0.0, 0.1, 2.0)

    def test_is_torchs_for_each_replica_across_a_save(
        self, config: ViTConfig | ConvNetConfig
    ) -> None:
        model, parameters = flat(config, 3)
        optimizer = AdamW(parameters, self.lrs, self.weight_decays)
        references = []
        for k, (lr, weight_decay) in enumerate(zip(self.lrs, self.weight_decays, strict=True)):
            alone = {n: nn.Parameter(p) for n, p in per_replica(model, k).items()}
            groups = reference_groups(alone, DECAYED[config.kind], weight_decay)
            references.append((alone, torch.optim.AdamW(groups, lr=lr, foreach=False), lr))

        for step in range(12):
            factor = learning_rate_factor(step, 12, 3)
            parameters.gradients.backward(loss_of(model, 3, seed=step))
            # Each reference gets the same gradient, in its own shapes.
            values = parameters.values.clone()
            parameters.values.copy_(parameters.grads)
            grads = [per_replica(model, k) for k in range(3)]
            parameters.values.copy_(values)
            for (alone, reference, lr), grad in zip(references, grads, strict=True):
                for name, parameter in alone.items():
                    parameter.grad = grad[name]
                for group in reference.param_groups:
                    group["lr"] = lr * factor
                reference.step()
            optimizer.step([factor] * 3)
            for k, (alone, _, _) in enumerate(references):
                for name, value in per_replica(model, k).items():
                    torch.testing.assert_close(value, alone[name], rtol=1e-12, atol=1e-12)
            if step == 5:  # go on with another optimiser, as after a resume
                state = optimizer.state(range(3))
                optimizer = AdamW(parameters, self.lrs, self.weight_decays)
                optimizer.load_state(range(3), state)

    def test_decays_weight_matrices_only(self, config: ViTConfig | ConvNetConfig) -> None:
        """Without a gradient, decay alone moves a parameter."""
        model, parameters = flat(config, 1)
        parameters.values.fill_(1.0)
        AdamW(parameters, [0.5], [0.1]).step([1.0])
        moved = {name for name, p in model.named_parameters() if not (p == 1.0).all()}
        assert moved == set(DECAYED[config.kind])
        for name, p in model.named_parameters():
            if name in moved:
                torch.testing.assert_close(p.detach(), torch.full_like(p, 1 - 0.5 * 0.1))

    def test_state_is_a_copy_once_loaded(self, config: ViTConfig | ConvNetConfig) -> None:
        model, parameters = flat(config, 2)
        optimizer = AdamW(parameters, [1e-3, 1e-3], [0.1, 0.1])
        parameters.gradients.backward(loss_of(model, 2))
        optimizer.step([1.0] * 2)
        state = [{n: v.clone() for n, v in group.items()} for group in optimizer.state(range(2))]
        other = AdamW(parameters, [1e-3, 1e-3], [0.1, 0.1])
        other.load_state(range(2), state)
        other.step([1.0] * 2)
        for group, saved in zip(optimizer.state(range(2)), state, strict=True):
            assert all(torch.equal(group[name], saved[name]) for name in saved)


STEPS = st.integers(1, 200)


class TestSchedule:
    @given(st.integers(1, 20), st.integers(1, 20), st.floats(0.0, 30.0))
    def test_rises_to_the_peak_and_falls_towards_zero(
        self, epochs: int, steps: int, warmup_epochs: float
    ) -> None:
        factors = schedule(TrainConfig(epochs=epochs, warmup_epochs=warmup_epochs), steps)
        assert len(factors) == epochs * steps
        peak = factors.index(max(factors))
        assert factors[peak] == 1.0
        assert all(0.0 < factor <= 1.0 for factor in factors)
        assert all(one < two for one, two in itertools.pairwise(factors[: peak + 1]))
        falling = factors[peak:]
        assert all(one >= two for one, two in itertools.pairwise(falling))

    @given(STEPS, STEPS)
    def test_is_torchs_linear_then_cosine(self, warmup: int, decay: int) -> None:
        parameter = nn.Parameter(torch.zeros(1))
        optimizer = torch.optim.SGD([parameter], lr=1.0)
        cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=decay)
        for step in range(warmup, warmup + decay):
            expected = optimizer.param_groups[0]["lr"]
            assert learning_rate_factor(step, warmup + decay, warmup) == pytest.approx(expected)
            optimizer.step()
            cosine.step()
        for step in range(warmup):
            factor = learning_rate_factor(step, warmup + decay, warmup)
            assert factor == pytest.approx((step + 1) / warmup)

    def test_a_warm_up_longer_than_the_run_leaves_one_step_of_decay(self) -> None:
        assert schedule(TrainConfig(epochs=1, warmup_epochs=9.0), 4) == [1 / 3, 2 / 3, 1.0, 1.0]

    def test_no_warm_up_starts_at_the_peak(self) -> None:
        assert schedule(TrainConfig(epochs=2, warmup_epochs=0.0), 3)[0] == 1.0


@pytest.mark.parametrize("config", [VIT, CONVNET], ids=["vit", "convnet"])
def test_a_narrow_copy_follows_the_values(config: ViTConfig | ConvNetConfig) -> None:
    model = models.build(config, 2)
    initialise(model, Draws(range(2), CPU, ("init",)))
    parameters = FlatParameters(model, torch.float32, CPU, torch.bfloat16)
    norms = [m for m in model.modules() if isinstance(m, BatchNorm2d)]
    wide = {id(p) for norm in norms for p in norm.parameters()}
    assert bool(wide) == (config is CONVNET)
    parameters.values.mul_(1.5)
    parameters.refresh()
    seen = {name: p.detach().clone() for name, p in model.named_parameters()}
    for name, parameter in model.named_parameters():
        expected = torch.float32 if id(parameter) in wide else torch.bfloat16
        assert parameter.dtype == expected, name
    parameters.widen()
    for name, parameter in model.named_parameters():
        assert parameter.dtype == torch.float32
        assert torch.equal(parameter.to(seen[name].dtype), seen[name]), name
