"""The ViT against torchvision's, and its attention against torch's."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import VisionTransformer

from visweep import models
from visweep.config import ViTConfig
from visweep.draws import Draws
from visweep.models.layers import Dropout, attention, fused_attention, initialise
from visweep.models.vit import SelfAttention

CPU = torch.device("cpu")
SMALL = ViTConfig(
    image_size=12,
    in_chans=3,
    num_classes=5,
    patch_size=4,
    embed_dim=24,
    depth=3,
    num_heads=3,
    mlp_ratio=2.5,
    class_token=True,
)


def torchvision_vit(config: ViTConfig, seed: int) -> VisionTransformer:
    """Torchvision's model of the same shape; no parameter is left at zero or one."""
    reference = VisionTransformer(
        image_size=config.image_size,
        patch_size=config.patch_size,
        num_layers=config.depth,
        num_heads=config.num_heads,
        hidden_dim=config.embed_dim,
        mlp_dim=int(config.embed_dim * config.mlp_ratio),
        num_classes=config.num_classes,
    )
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.normal_(0.0, 0.2, generator=generator)
    return reference.eval()


def copied(reference: VisionTransformer) -> dict[str, Tensor]:
    """Torchvision's weights under our names, in our shapes, without the replica axis."""
    theirs = reference.state_dict()
    names = {"norm": "encoder.ln", "head": "heads.head"}
    for index in range(len(reference.encoder.layers)):
        block, layer = f"blocks.{index}", f"encoder.layers.encoder_layer_{index}"
        names |= {
            f"{block}.norm1": f"{layer}.ln_1",
            f"{block}.attn.qkv": f"{layer}.self_attention.in_proj_",
            f"{block}.attn.proj": f"{layer}.self_attention.out_proj",
            f"{block}.norm2": f"{layer}.ln_2",
            f"{block}.mlp.fc1": f"{layer}.mlp.0",
            f"{block}.mlp.fc2": f"{layer}.mlp.3",
        }
    ours = {
        "embedding.proj.weight": theirs["conv_proj.weight"].flatten(1).T,
        "embedding.proj.bias": theirs["conv_proj.bias"][None],
        "embedding.position": theirs["encoder.pos_embedding"][0],
        "embedding.class_token": theirs["class_token"][0],
    }
    for our, their in names.items():
        dot = "" if their.endswith("_") else "."
        weight, bias = theirs[f"{their}{dot}weight"], theirs[f"{their}{dot}bias"]
        is_norm = "norm" in our
        ours[f"{our}.weight"] = weight if is_norm else weight.T
        ours[f"{our}.bias"] = bias if is_norm else bias[None]
    return ours


def images(config: ViTConfig, count: int, seed: int = 0) -> Tensor:
    shape = (count, config.in_chans, config.image_size, config.image_size)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("replicas", [1, 2])
def test_logits_are_torchvisions(replicas: int) -> None:
    references = [torchvision_vit(SMALL, seed) for seed in range(replicas)]
    weights = [copied(reference) for reference in references]
    model = models.build(SMALL, replicas).eval()
    model.load_state_dict({n: torch.stack([w[n] for w in weights]) for n in weights[0]})
    x = torch.stack([images(SMALL, 4, seed) for seed in range(replicas)])
    with torch.no_grad():
        logits = model(x)
        for k, reference in enumerate(references):
            expected = reference(x[k])
            assert expected.std() > 0.1  # it says something about the images
            torch.testing.assert_close(logits[k], expected, rtol=0, atol=1e-5)


def test_number_of_parameters_is_torchvisions() -> None:
    ours = sum(p.numel() for p in models.build(SMALL).parameters())
    assert ours == sum(p.numel() for p in torchvision_vit(SMALL, 0).parameters())


def test_attention_in_one_kernel_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which is that of a GPU: torch has one for inputs of four axes only."""
    shapes: list[torch.Size] = []
    kernel = F.scaled_dot_product_attention

    def noted(*inputs: Tensor) -> Tensor:
        shapes.extend(each.shape for each in inputs)
        return kernel(*inputs)

    monkeypatch.setattr(F, "scaled_dot_product_attention", noted)
    generator = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 2, 5, 4, 7, 8, dtype=torch.float64, generator=generator)
    expected = attention(q, k, v, Dropout([0.0, 0.0], "here"), None)
    torch.testing.assert_close(fused_attention(q, k, v), expected)
    assert shapes == [torch.Size([10, 4, 7, 8])] * 3


def test_attention_is_torchs_with_its_gradients() -> None:
    ours = SelfAttention([SMALL], "attn").double()
    reference = nn.MultiheadAttention(SMALL.embed_dim, SMALL.num_heads, batch_first=True).double()
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.normal_(generator=torch.Generator().manual_seed(parameter.numel()))
        ours.qkv.weight[0] = reference.in_proj_weight.T
        ours.qkv.bias[0, 0] = reference.in_proj_bias
        ours.proj.weight[0] = reference.out_proj.weight.T
        ours.proj.bias[0, 0] = reference.out_proj.bias
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 7, SMALL.embed_dim, dtype=torch.float64, generator=generator)
    weighting = torch.randn(x.shape, dtype=torch.float64, generator=generator)

    our_x, their_x = x[None].clone().requires_grad_(), x.clone().requires_grad_()
    out = ours(our_x, None)
    expected, _ = reference(their_x, their_x, their_x, need_weights=False)
    out.backward(weighting[None])
    expected.backward(weighting)

    for actual, wanted in (
        (out[0], expected),
        (our_x.grad[0], their_x.grad),
        (ours.qkv.weight.grad[0].T, reference.in_proj_weight.grad),
        (ours.qkv.bias.grad[0, 0], reference.in_proj_bias.grad),
        (ours.proj.weight.grad[0].T, reference.out_proj.weight.grad),
        (ours.proj.bias.grad[0, 0], reference.out_proj.bias.grad),
    ):
        torch.testing.assert_close(actual, wanted, rtol=1e-9, atol=1e-9)


def drawn(config: ViTConfig, seed: int = 0) -> models.ViT:
    model = models.build(config)
    initialise(model, Draws((seed,), torch.device("cpu"), ("init",)))
    return model


class TestDropoutPlaces:
    """Which tensors `drop` and `attn_drop` reach, seen from the masks that are drawn."""

    @staticmethod
    def drawn_places(config: ViTConfig) -> dict[str, tuple[int, ...]]:
        shapes: dict[str, tuple[int, ...]] = {}

        class Listening(Draws):
            def dropout_mask(self, shape, rates, dtype, place):  # type: ignore[no-untyped-def]
                assert place not in shapes, "two masks from one stream"
                shapes[place] = shape
                return super().dropout_mask(shape, rates, dtype, place)

        model = drawn(config)
        model(images(config, 2)[None], Listening((0,), torch.device("cpu"), ("step", 0)))
        return shapes

    def test_drop(self) -> None:
        places = self.drawn_places(SMALL.replace(drop=0.5, depth=2))
        width, hidden = SMALL.embed_dim, int(SMALL.embed_dim * SMALL.mlp_ratio)
        assert places == {
            "pos_drop": (2, 10, width),
            **{
                f"blocks.{i}.{place}": shape
                for i, (place, shape) in itertools.product(
                    range(2),
                    {
                        "attn.proj_drop": (20, width),
                        "mlp.drop1": (20, hidden),
                        "mlp.drop2": (20, width),
                    }.items(),
                )
            },
        }

    def test_attn_drop(self) -> None:
        places = self.drawn_places(SMALL.replace(attn_drop=0.5, depth=2))
        assert places == {f"blocks.{i}.attn.attn_drop": (2, 3, 10, 10) for i in range(2)}


def test_dropout_changes_training_and_never_evaluation() -> None:
    model, x = drawn(SMALL.replace(drop=0.3, attn_drop=0.3)), images(SMALL, 2)[None]
    steps = [Draws((0,), torch.device("cpu"), ("step", step)) for step in range(2)]
    one, again, other = model(x, steps[0]), model(x, steps[0]), model(x, steps[1])
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    model.eval()
    assert torch.equal(model(x, steps[0]), model(x))


@pytest.mark.parametrize("class_token", [True, False])
def test_pools_the_class_token_or_the_mean(class_token: bool) -> None:
    model = drawn(SMALL.replace(class_token=class_token)).eval()
    seen = []
    model.norm.register_forward_hook(lambda module, args, out: seen.append(out))
    logits = model(images(SMALL, 2)[None])
    tokens = seen[0]
    assert tokens.shape == (1, 2, 9 + class_token, SMALL.embed_dim)
    pooled = tokens[:, :, 0] if class_token else tokens.mean(2)
    torch.testing.assert_close(logits, model.head(pooled))


def test_equal_heads_share_an_attention_wherever_they_stand() -> None:
    """Of four replicas by depth, the first and the third have three heads, the others four."""
    configs = [
        SMALL.replace(depth=depth, num_heads=heads, drop=0.1, attn_drop=rate)
        for depth, heads, rate in ((3, 3, 0.3), (3, 4, 0.0), (2, 3, 0.2), (1, 4, 0.5))
    ]
    seeds = (5, 6, 7, 8)
    stacked = models.stack(configs).double()
    initialise(stacked, Draws(seeds, CPU, ("init",)))
    groups = [[heads.rows for heads in block.attn.heads] for block in stacked.blocks]
    assert groups == [[(0, 2), (1, 3)], [(0, 2), (1,)], [(0,), (1,)]]
    images = torch.rand(4, 6, 3, 12, 12, dtype=torch.float64, requires_grad=True)
    logits = stacked(images, Draws(seeds, CPU, ("step", 1)))
    (gradient,) = torch.autograd.grad(logits.square().sum(), images)
    for row, (config, seed) in enumerate(zip(configs, seeds, strict=True)):
        single = models.stack([config]).double()
        initialise(single, Draws((seed,), CPU, ("init",)))
        mine = images[row : row + 1].detach().requires_grad_()
        alone = single(mine, Draws((seed,), CPU, ("step", 1)))
        torch.testing.assert_close(logits[row : row + 1], alone)
        (its,) = torch.autograd.grad(alone.square().sum(), mine)
        torch.testing.assert_close(gradient[row : row + 1], its)
