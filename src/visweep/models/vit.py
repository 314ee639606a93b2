"""The Vision Transformer of Dosovitskiy et al. 2021, for K replicas at once.

K  replicas    B  images    C  channels    T  tokens    D  embed_dim    H  heads
P  height and width of a patch
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from visweep.config import ViTConfig
from visweep.draws import Draws
from visweep.models.layers import Dropout, LayerNorm, Linear, Stacked, attention


class SelfAttention(nn.Module):
    """Multi-head self-attention over (K, B, T, D)."""

    def __init__(self, config: ViTConfig, replicas: int, place: str) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.qkv = Linear(replicas, config.embed_dim, 3 * config.embed_dim)
        self.attn_drop = Dropout((config.attn_drop,) * replicas, f"{place}.attn_drop")
        self.proj = Linear(replicas, config.embed_dim, config.embed_dim)
        self.proj_drop = Dropout((config.drop,) * replicas, f"{place}.proj_drop")

    def forward(self, x: Tensor, draws: Draws | None) -> Tensor:
        K, B, T, D = x.shape
        qkv = self.qkv(x.flatten(1, 2)).view(K, B, T, 3, self.num_heads, D // self.num_heads)
        # One copy here; products of views would copy each of them, in every product.
        q, k, v = qkv.permute(3, 0, 1, 4, 2, 5).contiguous().unbind()
        mixed = attention(q, k, v, self.attn_drop, draws)  # (K, B, H, T, D/H)
        mixed = mixed.transpose(2, 3).reshape(K, B * T, D)
        out: Tensor = self.proj_drop(self.proj(mixed).view(K, B, T, D), draws)
        return out


class MLP(nn.Module):
    """Two linear layers with a GELU between them, over (K, B, T, D)."""

    def __init__(self, config: ViTConfig, replicas: int, place: str) -> None:
        super().__init__()
        hidden = int(config.embed_dim * config.mlp_ratio)
        self.fc1 = Linear(replicas, config.embed_dim, hidden)
        self.drop1 = Dropout((config.drop,) * replicas, f"{place}.drop1")
        self.fc2 = Linear(replicas, hidden, config.embed_dim)
        self.drop2 = Dropout((config.drop,) * replicas, f"{place}.drop2")

    def forward(self, x: Tensor, draws: Draws | None) -> Tensor:
        hidden = self.drop1(nn.functional.gelu(self.fc1(x.flatten(1, 2))), draws)
        out: Tensor = self.drop2(self.fc2(hidden), draws)
        return out.view(x.shape)


class Block(nn.Module):
    """Pre-norm: x + attn(norm1(x)), then x + mlp(norm2(x))."""

    def __init__(self, config: ViTConfig, replicas: int, place: str) -> None:
        super().__init__()
        self.norm1 = LayerNorm(replicas, config.embed_dim)
        self.attn = SelfAttention(config, replicas, f"{place}.attn")
        self.norm2 = LayerNorm(replicas, config.embed_dim)
        self.mlp = MLP(config, replicas, f"{place}.mlp")

    def forward(self, x: Tensor, draws: Draws | None) -> Tensor:
        x = x + self.attn(self.norm1(x), draws)
        out: Tensor = x + self.mlp(self.norm2(x), draws)
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
    """Patches, pre-norm transformer blocks, a final norm and a linear head.

    `forward` takes normalised images (K, B, C, image_size, image_size) and returns logits
    (K, B, num_classes). While training, dropout needs the step's `draws`.
    """

    def __init__(self, config: ViTConfig, replicas: int = 1) -> None:
        super().__init__()
        self.config = config
        self.embedding = Embedding(config, replicas)
        self.pos_drop = Dropout((config.drop,) * replicas, "pos_drop")
        self.blocks = nn.ModuleList(
            Block(config, replicas, f"blocks.{index}") for index in range(config.depth)
        )
        self.norm = LayerNorm(replicas, config.embed_dim)
        self.head = Linear(replicas, config.embed_dim, config.num_classes)

    def forward(self, images: Tensor, draws: Draws | None = None) -> Tensor:
        x = self.pos_drop(self.embedding(images), draws)
        for block in self.blocks:
            x = block(x, draws)
        x = self.norm(x)
        x = x[:, :, 0] if self.config.class_token else x.mean(dim=2)
        logits: Tensor = self.head(x)
        return logits
