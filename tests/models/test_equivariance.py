"""What each architecture does with a shifted or a rearranged image.

A convolution sees the same pattern wherever it lies; a ViT knows where a patch lies, and only
through its position embedding.
"""

import pytest
import torch
from torch import Tensor

from visweep import models
from visweep.config import ConvNetConfig, ViTConfig
from visweep.draws import Draws
from visweep.models.layers import Conv2d, initialise

VIT = ViTConfig(image_size=16, patch_size=4, embed_dim=32, depth=2, num_heads=4)
SIDE = VIT.image_size // VIT.patch_size


@pytest.fixture
def images() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(1, 2, 1, 16, 16, dtype=torch.float64, generator=generator)


@pytest.fixture
def vit() -> models.ViT:
    model = models.build(VIT)
    initialise(model, Draws((0,), torch.device("cpu"), ("init",)))
    return model.double().eval()


def token_map(vit: models.ViT, images: Tensor) -> Tensor:
    """The tokens after the last block, where their patches lie: (B, D, rows, columns)."""
    x = vit.embedding(images)
    for block in vit.blocks:
        x = block(x, None)
    return x[0].transpose(1, 2).unflatten(2, (SIDE, SIDE))


@torch.no_grad()
def mismatch(actual: Tensor, expected: Tensor) -> float:
    """Root mean square difference, relative to the spread of what is expected."""
    return ((actual - expected).square().mean().sqrt() / expected.std()).item()


@pytest.mark.parametrize("shift", [(1, 0), (0, 1), (2, 3)])
def test_a_convolution_moves_with_its_image(images: Tensor, shift: tuple[int, int]) -> None:
    layer = Conv2d(1, 1, 8, size=3)
    initialise(layer, Draws((0,), torch.device("cpu"), ("init",)))
    layer = layer.double()
    moved = layer(images[0].roll(shift, (2, 3)))
    expected = layer(images[0]).roll(shift, (2, 3))
    interior = (..., slice(4, -4), slice(4, -4))
    assert mismatch(moved[interior], expected[interior]) < 1e-12


def test_the_convnets_first_stage_moves_with_its_image(images: Tensor) -> None:
    model = models.build(ConvNetConfig(image_size=16, widths=(8,), depths=(1,)))
    initialise(model, Draws((0,), torch.device("cpu"), ("init",)))
    model = model.double().eval()

    def features(x: Tensor) -> Tensor:
        return model.blocks[0](model.stem_norm(model.stem(x)).relu())

    moved, expected = features(images[0].roll(1, 3)), features(images[0]).roll(1, 3)
    interior = (..., slice(4, -4), slice(4, -4))
    assert mismatch(moved[interior], expected[interior]) < 1e-12


def test_a_vit_does_not_even_by_a_whole_patch(vit: models.ViT, images: Tensor) -> None:
    tokens = token_map(vit, images)
    by_patch = token_map(vit, images.roll(VIT.patch_size, 4))
    assert mismatch(by_patch[..., 1:-1], tokens.roll(1, 3)[..., 1:-1]) > 0.01
    # A shift by less than a patch changes what each patch holds.
    by_pixel = token_map(vit, images.roll(1, 4))
    assert mismatch(by_pixel[..., 1:-1], tokens[..., 1:-1]) > 0.1


def rearranged(images: Tensor, order: Tensor) -> Tensor:
    """The images with their patches in another order."""
    K, B, C, height, width = images.shape
    P = VIT.patch_size
    patches = images.view(K, B, C, SIDE, P, SIDE, P).permute(0, 1, 3, 5, 2, 4, 6).flatten(2, 3)
    back = patches[:, :, order].unflatten(2, (SIDE, SIDE)).permute(0, 1, 4, 2, 5, 3, 6)
    return back.reshape(K, B, C, height, width)


def test_a_vit_knows_the_order_of_its_patches_only_from_their_positions(
    vit: models.ViT, images: Tensor
) -> None:
    order = torch.randperm(SIDE * SIDE, generator=torch.Generator().manual_seed(1))
    moved = rearranged(images, order)
    assert mismatch(vit(moved), vit(images)) > 1e-3
    with torch.no_grad():
        vit.embedding.position.zero_()
    assert mismatch(vit(moved), vit(images)) < 1e-12
    tokens, moved_tokens = (token_map(vit, x).flatten(2) for x in (images, moved))
    assert mismatch(moved_tokens, tokens[..., order]) < 1e-12
