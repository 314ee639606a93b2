"""The models in plain torch.nn, one at a time: what `conventional.py` trains.

The same architectures, dropout and initialisation as `visweep.models`, as one would write them
after torchvision's `vision_transformer.py` and `resnet.py`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock

from visweep.config import ConvNetConfig, ModelConfig, ViTConfig

_UNDECAYED = ("position", "class_token")


def build(config: ModelConfig) -> nn.Module:
    """The model that `config` describes, its parameters drawn from torch's global generator."""
    return ViT(config) if isinstance(config, ViTConfig) else ConvNet(config)


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """For the optimiser: weight matrices decay; norms, biases, position and token do not."""
    decayed, others = [], []
    for name, parameter in model.named_parameters():
        is_matrix = parameter.ndim > 1 and name not in _UNDECAYED
        (decayed if is_matrix else others).append(parameter)
    return [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]


class EncoderBlock(nn.Module):
    """Pre-norm self-attention and MLP, over (B, T, D)."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        width, hidden = config.embed_dim, int(config.embed_dim * config.mlp_ratio)
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attention = nn.MultiheadAttention(
            width, config.num_heads, dropout=config.attn_drop, batch_first=True
        )
        self.drop = nn.Dropout(config.drop)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.Sequential(
            nn.Linear(width, hidden),
            nn.GELU(),
            nn.Dropout(config.drop),
            nn.Linear(hidden, width),
            nn.Dropout(config.drop),
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        y, _ = self.attention(y, y, y, need_weights=False)
        x = x + self.drop(y)
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    """Normalised images (B, C, H, H) to logits (B, classes)."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        if config.block != "pre_norm":
            raise ValueError(f"block: {config.block!r} is not 'pre_norm', the only one here")
        width = config.embed_dim
        self.patches = nn.Conv2d(config.in_chans, width, config.patch_size, config.patch_size)
        self.position = nn.Parameter(0.02 * torch.randn(1, config.num_tokens, width))
        self.class_token = nn.Parameter(torch.zeros(1, 1, width)) if config.class_token else None
        self.drop = nn.Dropout(config.drop)
        self.blocks = nn.Sequential(*(EncoderBlock(config) for _ in range(config.depth)))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, config.num_classes)
        self.apply(_draw)

    def forward(self, images: Tensor) -> Tensor:
        x = self.patches(images).flatten(2).transpose(1, 2)
        if self.class_token is not None:
            x = torch.cat([self.class_token.expand(len(x), -1, -1), x], dim=1)
        x = self.norm(self.blocks(self.drop(x + self.position)))
        return self.head(x.mean(1) if self.class_token is None else x[:, 0])


def _draw(module: nn.Module) -> None:
    # `nn.MultiheadAttention` draws its input projection in this way itself.
    if isinstance(module, nn.Linear | nn.Conv2d):
        nn.init.xavier_uniform_(module.weight.flatten(1))
        nn.init.zeros_(module.bias)


class ConvNet(nn.Module):
    """Normalised images (B, C, H, H) to logits (B, classes); torchvision's residual blocks."""

    def __init__(self, config: ConvNetConfig) -> None:
        super().__init__()
        if config.block != "basic":
            raise ValueError(f"block: {config.block!r} is not 'basic', the only one here")
        channels = config.widths[0]
        self.stem = _conv(config.in_chans, channels, 3, 1)
        blocks = []
        for stage, (width, depth) in enumerate(zip(config.widths, config.depths, strict=True)):
            for index in range(depth):
                stride = 2 if stage > 0 and index == 0 else 1
                is_same = stride == 1 and channels == width
                shortcut = None if is_same else _conv(channels, width, 1, stride)
                blocks.append(BasicBlock(channels, width, stride, shortcut))
                channels = width
        self.blocks = nn.Sequential(*blocks)
        self.drop = nn.Dropout(config.drop)
        self.head = nn.Linear(channels, config.num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        _draw(self.head)

    def forward(self, images: Tensor) -> Tensor:
        x = self.blocks(self.stem(images).relu())
        return self.head(self.drop(x.mean((2, 3))))


def _conv(in_channels: int, channels: int, size: int, stride: int) -> nn.Sequential:
    """A convolution and the batch norm that follows it."""
    return nn.Sequential(
        nn.Conv2d(in_channels, channels, size, stride, padding=size // 2, bias=False),
        nn.BatchNorm2d(channels),
    )
