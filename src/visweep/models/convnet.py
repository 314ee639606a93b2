"""A residual ConvNet after He et al. 2016, for K replicas at once.

Images travel as (B, K·C, H, W), so that a grouped convolution serves all replicas.

    K  replicas    B  images    C  channels
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from visweep.config import ConvBlock, ConvNetConfig
from visweep.draws import Draws
from visweep.models.layers import BatchNorm2d, Conv2d, Dropout, Linear


class BasicBlock(nn.Module):
    """Two 3×3 convolutions beside a shortcut; `ConvNetConfig.block` gives the equations.

    Where the shape changes, the shortcut is a strided 1×1 convolution with a batch norm.
    """

    def __init__(
        self, block: ConvBlock, replicas: int, in_channels: int, channels: int, stride: int
    ) -> None:
        super().__init__()
        self.block = block
        self.conv1 = Conv2d(replicas, in_channels, channels, size=3, stride=stride)
        self.norm1 = BatchNorm2d(replicas, channels)
        self.conv2 = Conv2d(replicas, channels, channels, size=3)
        # In `late_relu` the order is conv, norm, conv, ReLU: nothing normalises the second one.
        self.norm2 = None if block == "late_relu" else BatchNorm2d(replicas, channels)
        self.shortcut = (
            None
            if stride == 1 and in_channels == channels
            else nn.Sequential(
                Conv2d(replicas, in_channels, channels, size=1, stride=stride),
                BatchNorm2d(replicas, channels),
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.shortcut is None else self.shortcut(x)
        y = self.norm1(self.conv1(x))
        if self.norm2 is None:
            return shortcut + F.relu(self.conv2(y))
        y = self.norm2(self.conv2(F.relu(y)))
        if self.block == "preadd_relu":
            return shortcut + F.relu(y)
        return F.relu(shortcut + y)


class ConvNet(nn.Module):
    """A 3×3 stem, residual stages, global average pooling and a linear head.

    `forward` takes normalised images (K, B, C, H, W) and returns logits (K, B, num_classes).
    While training, dropout needs the step's `draws`.

    Args:
        configs: one per replica; equal but for what `ConvNetConfig.bucket` leaves out.
    """

    def __init__(self, configs: Sequence[ConvNetConfig]) -> None:
        super().__init__()
        config, replicas = configs[0], len(configs)
        self.replicas = replicas
        self.stem = Conv2d(replicas, config.in_chans, config.widths[0], size=3)
        self.stem_norm = BatchNorm2d(replicas, config.widths[0])
        blocks: list[nn.Module] = []
        channels = config.widths[0]
        for stage, (width, depth) in enumerate(zip(config.widths, config.depths, strict=True)):
            for index in range(depth):
                stride = 2 if stage > 0 and index == 0 else 1
                blocks.append(BasicBlock(config.block, replicas, channels, width, stride))
                channels = width
        self.blocks = nn.ModuleList(blocks)
        self.drop = Dropout([c.drop for c in configs], "drop")
        self.head = Linear(replicas, channels, config.num_classes)

    def forward(self, images: Tensor, draws: Draws | None = None) -> Tensor:
        x = images.transpose(0, 1).flatten(1, 2)
        x = F.relu(self.stem_norm(self.stem(x)))
        for block in self.blocks:
            x = block(x)
        # Not `len`, which is a plain number: an exported graph takes batches of any size.
        x = x.mean(dim=(2, 3)).view(x.shape[0], self.replicas, -1).transpose(0, 1)
        logits: Tensor = self.head(self.drop(x, draws))
        return logits
