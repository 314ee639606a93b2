"""Each stacked layer against torch.nn's, one reference module per replica."""

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from visweep.draws import Draws, key
from visweep.models.layers import (
    GHOST,
    BatchNorm2d,
    Conv2d,
    Dropout,
    LayerNorm,
    Linear,
    Stacked,
    ghosts,
    initialise,
    woven,
)

K = 3


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def randomised(module: nn.Module) -> nn.Module:
    """The module in float64, every parameter drawn from a normal distribution."""
    module = module.double()
    with torch.no_grad():
        for index, parameter in enumerate(module.parameters()):
            parameter.copy_(rand(*parameter.shape, seed=100 + index))
    return module


def gradients(module: nn.Module, x: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """The output, and the gradients of a random weighting of it with respect to everything."""
    x = x.clone().requires_grad_()
    out = module(x)
    out.backward(rand(*out.shape, seed=7))
    return out.detach(), x.grad, {name: p.grad for name, p in module.named_parameters()}


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


def test_linear_is_torchs_for_each_replica() -> None:
    ours, x = randomised(Linear(K, 5, 4)), rand(K, 7, 5)
    out, x_grad, grads = gradients(ours, x)
    weighting = rand(K, 7, 4, seed=7)
    for k in range(K):
        reference = nn.Linear(5, 4).double()
        reference.weight.data = ours.weight.data[k].T.clone()
        reference.bias.data = ours.bias.data[k, 0].clone()
        row = x[k].clone().requires_grad_()
        expected = reference(row)
        expected.backward(weighting[k])
        close(out[k], expected)
        close(x_grad[k], row.grad)
        close(grads["weight"][k].T, reference.weight.grad)
        close(grads["bias"][k, 0], reference.bias.grad)


@pytest.mark.parametrize("replicas", [1, K])
def test_layer_norm_is_torchs_for_each_replica(replicas: int) -> None:
    ours, x = randomised(LayerNorm(replicas, 6)), rand(replicas, 2, 4, 6)
    out, x_grad, grads = gradients(ours, x)
    weighting = rand(replicas, 2, 4, 6, seed=7)
    for k in range(replicas):
        reference = nn.LayerNorm(6, eps=ours.eps).double()
        reference.weight.data = ours.weight.data[k].clone()
        reference.bias.data = ours.bias.data[k].clone()
        row = x[k].clone().requires_grad_()
        expected = reference(row)
        expected.backward(weighting[k])
        close(out[k], expected)
        close(x_grad[k], row.grad)
        close(grads["weight"][k], reference.weight.grad)
        close(grads["bias"][k], reference.bias.grad)


def side_by_side(x: Tensor) -> Tensor:
    """(K, B, C, H, W) to (B, K·C, H, W)."""
    return x.transpose(0, 1).flatten(1, 2)


@pytest.mark.parametrize(("size", "stride"), [(3, 1), (3, 2), (1, 2)])
def test_convolution_is_torchs_for_each_replica(size: int, stride: int) -> None:
    ours, x = randomised(Conv2d(K, 2, 4, size, stride)), rand(K, 3, 2, 8, 8)
    out, x_grad, grads = gradients(ours, side_by_side(x))
    weighting = rand(*out.shape, seed=7)
    for k in range(K):
        reference = nn.Conv2d(2, 4, size, stride, padding=size // 2, bias=False).double()
        reference.weight.data = ours.weight.data[k].clone()
        row = x[k].clone().requires_grad_()
        expected = reference(row)
        expected.backward(weighting[:, 4 * k : 4 * k + 4])
        close(out[:, 4 * k : 4 * k + 4], expected)
        close(x_grad[:, 2 * k : 2 * k + 2], row.grad)
        close(grads["weight"][k], reference.weight.grad)


def test_batch_norm_is_torchs_for_each_replica_training_and_evaluating() -> None:
    ours = randomised(BatchNorm2d(K, 2))
    references = [nn.BatchNorm2d(2).double() for _ in range(K)]
    for k, reference in enumerate(references):
        reference.weight.data = ours.weight.data[k].clone()
        reference.bias.data = ours.bias.data[k].clone()
    for batch in range(3):  # the running statistics move on with each
        x = rand(K, 5, 2, 4, 4, seed=batch) * 3 + 1
        ours.zero_grad()
        out, x_grad, grads = gradients(ours, side_by_side(x))
        weighting = rand(*out.shape, seed=7)
        for k, reference in enumerate(references):
            reference.zero_grad()
            row = x[k].clone().requires_grad_()
            expected = reference(row)
            expected.backward(weighting[:, 2 * k : 2 * k + 2])
            close(out[:, 2 * k : 2 * k + 2], expected)
            close(x_grad[:, 2 * k : 2 * k + 2], row.grad)
            close(grads["weight"][k], reference.weight.grad)
            close(grads["bias"][k], reference.bias.grad)
            close(ours.running_mean[k], reference.running_mean)
            close(ours.running_var[k], reference.running_var)
    ours.eval()
    x = rand(K, 5, 2, 4, 4, seed=9)
    out = ours(side_by_side(x))
    for k, reference in enumerate(references):
        close(out[:, 2 * k : 2 * k + 2], reference.eval()(x[k]))


class TestGhosts:
    @given(st.integers(1, 400))
    def test_hold_each_image_once_and_none_is_small(self, images: int) -> None:
        parts = ghosts(images)
        assert sorted(image for part in parts for image in part) == list(range(images))
        assert len(parts) == max(1, images // GHOST)
        assert all(len(part) == GHOST for part in parts[:-1])
        assert GHOST <= len(parts[-1]) < 2 * GHOST or images < GHOST

    @given(st.integers(1, 400), st.data())
    def test_some_of_them_as_a_batch_of_their_own_are_the_same_ghosts(
        self, images: int, data: st.DataObject
    ) -> None:
        parts = ghosts(images)
        first = data.draw(st.integers(0, len(parts) - 1))
        some = parts[first : data.draw(st.integers(first + 1, len(parts)))]
        batch = woven(some)
        assert [[batch[i] for i in part] for part in ghosts(len(batch))] == [
            list(part) for part in some
        ]

    @pytest.mark.parametrize("images", [31, 32, 50, 64, 96, 100])
    def test_batch_norm_is_torchs_for_each_of_them_in_turn(self, images: int) -> None:
        ours = randomised(BatchNorm2d(K, 2))
        mean, variance = torch.zeros(2 * K).double(), torch.ones(2 * K).double()
        for batch in range(2):
            x = rand(images, 2 * K, 3, 3, seed=batch) * 3 + 1
            ours.zero_grad()
            out, x_grad, grads = gradients(ours, x)
            weighting = rand(*out.shape, seed=7)
            weight = ours.weight.detach().flatten().requires_grad_()
            bias = ours.bias.detach().flatten().requires_grad_()
            for part in map(list, ghosts(images)):
                those = x[part].clone().requires_grad_()
                expected = F.batch_norm(those, mean, variance, weight, bias, training=True)
                expected.backward(weighting[part])
                close(out[part], expected)
                close(x_grad[part], those.grad)
            close(grads["weight"].flatten(), weight.grad)
            close(grads["bias"].flatten(), bias.grad)
            close(ours.running_mean.flatten(), mean)
            close(ours.running_var.flatten(), variance)


class TestDropout:
    draws = Draws((3, 5), torch.device("cpu"), ("step", 0))

    def test_scales_what_it_keeps_and_drops_the_rest(self) -> None:
        x = torch.rand(2, 1000) + 1
        y = Dropout((0.25, 0.5), "here")(x, self.draws)
        for k, rate in enumerate((0.25, 0.5)):
            kept = y[k] != 0
            torch.testing.assert_close(y[k][kept], x[k][kept] / (1 - rate))
            assert abs((~kept).float().mean().item() - rate) < 0.07

    def test_gradient_passes_where_the_value_did(self) -> None:
        x = torch.ones(2, 1000, requires_grad=True)
        y = Dropout((0.25, 0.25), "here")(x, self.draws)
        y.sum().backward()
        assert torch.equal(x.grad, y)

    def test_does_nothing_in_evaluation_or_at_rate_zero(self) -> None:
        x = torch.rand(2, 10)
        assert torch.equal(Dropout((0.5, 0.5), "here").eval()(x, None), x)
        assert torch.equal(Dropout((0.0, 0.0), "here")(x, None), x)

    def test_a_rate_of_zero_beside_another_keeps_all(self) -> None:
        x = torch.rand(2, 1000)
        y = Dropout((0.0, 0.5), "here")(x, self.draws)
        assert torch.equal(y[0], x[0])
        assert not torch.equal(y[1], x[1])

    def test_without_draws_it_says_where(self) -> None:
        with pytest.raises(ValueError, match="'here'"):
            Dropout((0.5,), "here")(torch.rand(1, 10), None)


def test_initial_weights_depend_on_the_seed_and_the_name_alone() -> None:
    def made(*seeds: int) -> nn.Module:
        model = nn.ModuleDict({"a": Linear(len(seeds), 6, 5), "b": Linear(len(seeds), 6, 5)})
        initialise(model, Draws(seeds, torch.device("cpu"), ("init",)))
        return model

    stacked = made(3, 5, 8)
    for k, seed in enumerate((3, 5, 8)):
        for name in ("a", "b"):
            assert torch.equal(stacked[name].weight[k], made(seed)[name].weight[0])
    weights = [stacked[name].weight[k] for name in ("a", "b") for k in range(3)]
    for i, one in enumerate(weights):
        assert all(not torch.equal(one, other) for other in weights[:i])


@pytest.mark.parametrize(
    ("layer", "reference"),
    [
        (Linear(1, 30, 20), lambda w, g: nn.init.xavier_uniform_(w, generator=g)),
        (
            Conv2d(1, 8, 16, 3),
            lambda w, g: nn.init.kaiming_normal_(
                w, mode="fan_out", nonlinearity="relu", generator=g
            ),
        ),
    ],
    ids=["linear", "convolution"],
)
def test_initialisation_is_torchs(layer: Stacked, reference) -> None:  # type: ignore[no-untyped-def]
    layer = copy.deepcopy(layer)
    initialise(layer, Draws((4,), torch.device("cpu"), ("init",)))
    expected = torch.empty(layer.weight.shape[1:])
    reference(expected, torch.Generator().manual_seed(key(4, "init", "")))
    assert torch.equal(layer.weight[0], expected)
