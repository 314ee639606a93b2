"""The Vision Transformer of Dosovitskiy et al. 2021, for K replicas at once.

Replicas may differ in depth, heads and dropout. They come with the deepest first, so that block l
runs over the first so many of them, and its parameters have no more rows than that.

K  replicas    B  images    C  channels    T  tokens    D  embed_dim    H  heads
P  height and width of a patch
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from visweep.config import ViTConfig
from visweep.draws import Draws
from visweep.models.layers import Dropout, LayerNorm, Linear, Stacked, attention


class Heads(nn.Module):
    """Attention of the replicas that have equally many heads.

    Args:
        configs: one per replica.
        rows: which of the model's replicas they are.
        place: names the layer's stream of random draws.
    """

    def __init__(self, configs: Sequence[ViTConfig], rows: Sequence[int], place: str) -> None:
        super().__init__()
        self.rows = tuple(rows)
        self.num_heads = configs[0].num_heads
        self.attn_drop = Dropout([c.attn_drop for c in configs], place, self.rows)

    def forward(self, qkv: Tensor, draws: Draws | None) -> Tensor:
        """(K, B, T, 3 D) to (K, B, T, D)."""
        K, B, T, width = qkv.shape
        D = width // 3
        qkv = qkv.view(K, B, T, 3, self.num_heads, D // self.num_heads)
        # One copy here; products of views would copy each of them, in every product.
        q, k, v = qkv.permute(3, 0, 1, 4, 2, 5).contiguous().unbind()
        mixed = attention(q, k, v, self.attn_drop, draws)  # (K, B, H, T, D/H)
        return mixed.transpose(2, 3).reshape(K, B, T, D)


class SelfAttention(nn.Module):
    """Multi-head self-attention over (K, B, T, D)."""

    def __init__(self, configs: Sequence[ViTConfig], place: str) -> None:
        super().__init__()
        replicas, width = len(configs), configs[0].embed_dim
        self.qkv = Linear(replicas, width, 3 * width)
        self.heads = nn.ModuleList(
            Heads([configs[row] for row in rows], rows, f"{place}.attn_drop")
            for rows in _alike([c.num_heads for c in configs])
        )
        self.proj = Linear(replicas, width, width)
        self.proj_drop = Dropout([c.drop for c in configs], f"{place}.proj_drop", inplace=True)

    def forward(self, x: Tensor, draws: Draws | None) -> Tensor:
        K, B, T, D = x.shape
        qkv = self.qkv(x.flatten(1, 2)).view(K, B, T, 3 * D)
        all_ = self.heads[0](qkv, draws) if len(self.heads) == 1 else self._by_heads(qkv, draws)
        out: Tensor = self.proj_drop(self.proj(all_.reshape(K, B * T, D)), draws)
        return out.view(x.shape)

    def _by_heads(self, qkv: Tensor, draws: Draws | None) -> Tensor:
        # Not slices, the backward pass of each of which would fill a gradient of all rows.
        each = qkv.unbind()
        found: dict[int, Tensor] = {}
        for heads in self.heads:
            assert isinstance(heads, Heads)
            mixed = heads(torch.stack([each[row] for row in heads.rows]), draws)
            found.update(zip(heads.rows, mixed.unbind(), strict=True))
        return torch.stack([found[row] for row in range(len(each))])


class MLP(nn.Module):
    """Two linear layers with a GELU between them, over (K, B, T, D)."""

    def __init__(self, configs: Sequence[ViTConfig], place: str) -> None:
        super().__init__()
        replicas, width = len(configs), configs[0].embed_dim
        hidden = int(width * configs[0].mlp_ratio)
        rates = [c.drop for c in configs]
        self.fc1 = Linear(replicas, width, hidden)
        self.drop1 = Dropout(rates, f"{place}.drop1")
        self.fc2 = Linear(replicas, hidden, width)
        self.drop2 = Dropout(rates, f"{place}.drop2", inplace=True)

    def forward(self, x: Tensor, draws: Draws | None) -> Tensor:
        hidden = self.drop1.after_gelu(self.fc1(x.flatten(1, 2)), draws)
        out: Tensor = self.drop2(self.fc2(hidden), draws)
        return out.view(x.shape)


class Block(nn.Module):
    """Attention and an MLP with residual steps; `ViTConfig.block` gives the equations."""

    def __init__(self, configs: Sequence[ViTConfig], place: str) -> None:
        super().__init__()
        replicas, width = len(configs), configs[0].embed_dim
        self.block = configs[0].block
        self.norm1 = LayerNorm(replicas, width)
        self.attn = SelfAttention(configs, f"{place}.attn")
        self.norm2 = None if self.block == "parallel" else LayerNorm(replicas, width)
        self.mlp = MLP(configs, f"{place}.mlp")

    def forward(self, x: Tensor, draws: Draws | None) -> Tensor:
        out: Tensor
        if self.norm2 is None:
            normal = self.norm1(x)
            out = x + self.attn(normal, draws) + self.mlp(normal, draws)
        elif self.block == "post_norm":
            x = self.norm1(x + self.attn(x, draws))
            out = self.norm2(x + self.mlp(x, draws))
        elif self.block == "single_residual":
            out = x + self.mlp(self.norm2(self.attn(self.norm1(x), draws)), draws)
        else:
            x = x + self.attn(self.norm1(x), draws)
            out = x + self.mlp(self.norm2(x), draws)
        return out


class Embedding(Stacked):
    """Cut images into patches, project each linearly, add the learnt position."""

    def __init__(self, config: ViTConfig, replicas: int) -> None:
        super().__init__()
        self.patch_size = config.patch_size
        self.proj = Linear(replicas, config.in_chans * config.patch_size**2, config.embed_dim)
        self.position = nn.Parameter(torch.empty(replicas, config.num_tokens, config.embed_dim))
        self.class_token = (
            nn.Parameter(torch.empty(replicas, 1, config.embed_dim))
            if config.class_token
            else None
        )

    def init_replica(self, replica: int, generator: torch.Generator) -> None:
        nn.init.normal_(self.position[replica], std=0.02, generator=generator)
        if self.class_token is not None:
            nn.init.zeros_(self.class_token[replica])

    def forward(self, images: Tensor) -> Tensor:
        K, B, C, height, width = images.shape
        P = self.patch_size
        patches = images.view(K, B, C, height // P, P, width // P, P)
        patches = patches.permute(0, 1, 3, 5, 2, 4, 6).reshape(K, -1, C * P * P)
        x: Tensor = self.proj(patches)
        x = x.view(K, B, -1, x.shape[-1])
        if self.class_token is not None:
            token = self.class_token.to(x.dtype)[:, None].expand(K, B, 1, -1)
            x = torch.cat([token, x], dim=2)
        return x + self.position.to(x.dtype)[:, None]


class ViT(nn.Module):
    """Patches, transformer blocks, a final norm and a linear head.

    The final norm is there whichever the blocks are, as in `torch.nn.Transformer` and in timm, so
    that models of different blocks differ in nothing else. The first Transformer, whose blocks
    were `post_norm`, had none: its last block ends with a norm already.

    `forward` takes normalised images (K, B, C, image_size, image_size) and returns logits
    (K, B, num_classes). While training, dropout needs the step's `draws`.

    Args:
        configs: one per replica, the deepest first; equal but for what `ViTConfig.bucket` leaves
            out.
    """

    def __init__(self, configs: Sequence[ViTConfig]) -> None:
        super().__init__()
        config, replicas = configs[0], len(configs)
        self.class_token = config.class_token
        self.embedding = Embedding(config, replicas)
        self.pos_drop = Dropout([c.drop for c in configs], "pos_drop")
        # Before the blocks: all that a shallow replica has comes first among the parameters.
        self.norm = LayerNorm(replicas, config.embed_dim)
        self.head = Linear(replicas, config.embed_dim, config.num_classes)
        self._reach = [sum(c.depth > index for c in configs) for index in range(config.depth)]
        self.blocks = nn.ModuleList(
            Block(configs[:replicas], f"blocks.{index}")
            for index, replicas in enumerate(self._reach)
        )

    def forward(self, images: Tensor, draws: Draws | None = None) -> Tensor:
        x = self.pos_drop(self.embedding(images), draws)
        done: list[Tensor] = []  # of replicas that have no more blocks
        for block, replicas in zip(self.blocks, self._reach, strict=True):
            if replicas < len(x):
                done.append(x[replicas:])
                x = x[:replicas]
            x = block(x, draws)
        x = self.norm(torch.cat([x, *reversed(done)]) if done else x)
        x = x[:, :, 0] if self.class_token else x.mean(dim=2)
        logits: Tensor = self.head(x)
        return logits


def _alike(values: Sequence[int]) -> list[list[int]]:
    """Where equal values stand, by which comes first."""
    places: dict[int, list[int]] = {}
    for place, value in enumerate(values):
        places.setdefault(value, []).append(place)
    return list(places.values())
