"""ResNet-12, the deep extractor of the few-shot literature (widths of Lee et al. 2019, used by Tian et al. 2020)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pyro_vsm.backbones.base import BACKBONES, Backbone
from pyro_vsm.backbones.pooling import DistanceCovariance
from pyro_vsm.errors import UserError


class DropBlock(nn.Module):
    """Zeroes square patches of all channels' maps while training (Ghiasi, Lin, Le 2018), each channel its own.

    Args:
        rate: fraction of the activations to drop, in [0, 1).
        size: side of a patch.
    """

    def __init__(self, rate: float, size: int = 5):
        super().__init__()
        if not 0 <= rate < 1 or size < 1:
            raise UserError(f"drop block: rate={rate}, size={size}; give a rate in [0, 1) and a size from 1 on")
        self.rate, self.size = rate, size

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, H, W]``; the kept activations are scaled up so that their mean stays."""
        if not self.training or self.rate == 0:
            return x
        height, width = x.shape[2:]
        size = min(self.size, height, width)
        # rate of patch centres that drops `rate` of the activations, centres lying where a whole patch fits
        gamma = self.rate / size**2 * height * width / ((height - size + 1) * (width - size + 1))
        seeds = torch.rand(*x.shape[:2], height - size + 1, width - size + 1, device=x.device) < gamma
        dropped = F.max_pool2d(F.pad(seeds.to(x.dtype), [size - 1] * 4), size, stride=1)
        keep = 1 - dropped
        return x * keep * (keep.numel() / keep.sum().clamp_min(1))


class ResidualBlock(nn.Module):
    """Three 3x3 convolutions with a projected shortcut, LeakyReLU(0.1), 2x2 max pooling, optional DropBlock.

    Args:
        inputs, outputs: channels.
        drop: its rate.
        size: side of its patches; 1 is ordinary dropout.
        pooled: whether there is max pooling; without it the map keeps its size.
    """

    def __init__(self, inputs: int, outputs: int, drop: float = 0.0, size: int = 5, pooled: bool = True):
        super().__init__()
        self.main = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.LeakyReLU(0.1, inplace=True),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.LeakyReLU(0.1, inplace=True),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs))
        pool = nn.MaxPool2d(2) if pooled else nn.Identity()
        self.tail = nn.Sequential(nn.LeakyReLU(0.1, inplace=True), pool, DropBlock(drop, size))

    def forward(self, x: Tensor) -> Tensor:
        """``[B, outputs, H // 2, W // 2]`` of ``[B, inputs, H, W]``."""
        return self.tail(self.main(x) + self.shortcut(x))


@BACKBONES.register("resnet12")
class ResNet12(Backbone):
    """Four residual blocks and global average pooling.

    Args:
        channels: of the images.
        image_size: at least 16 pixels.
        widths: channels of the four blocks; the last is the feature dimension.
        drop: DropBlock rate of the last two blocks.
        dropout: rate of dropout after the first two.
        pool: ``average``; or ``distance_covariance`` of the channels of the last map, which then is not pooled before
            (Xie et al. 2022), with ``reduced (reduced + 1) / 2`` features.
        reduced: channels that the last map is reduced to for that.

    Raises:
        UserError: images too small for four poolings, widths that are not four positive numbers, or an unknown pool.
    """

    def __init__(
        self,
        channels: int,
        image_size: int,
        *,
        widths: Sequence[int] = (64, 160, 320, 640),
        drop: float = 0.0,
        dropout: float = 0.0,
        pool: str = "average",
        reduced: int = 128,
    ):
        super().__init__(channels, image_size)
        if pool not in ("average", "distance_covariance"):
            raise UserError(f"resnet12: pool is {pool!r}; give average or distance_covariance")
        if image_size < 16:
            raise UserError(f"resnet12: images of {image_size} pixels are too small; give at least 16")
        if len(widths) != 4 or not all(isinstance(w, int) and w >= 1 for w in widths):
            raise UserError(f"resnet12: widths are {list(widths)}; give four whole numbers from 1 on")
        second_order = pool == "distance_covariance"
        sizes = [channels, *widths]
        drops = [(dropout, 1)] * 2 + [(drop, 5)] * 2
        self.blocks = nn.Sequential(
            *(
                ResidualBlock(a, b, rate, size, pooled=i < 3 or not second_order)
                for i, ((a, b), (rate, size)) in enumerate(zip(pairwise(sizes), drops, strict=True))
            )
        )
        self.pool = DistanceCovariance(widths[-1], reduced) if second_order else None
        self.dim = widths[-1] if self.pool is None else self.pool.dim
        self.any_size = True
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="leaky_relu")

    def forward(self, images: Tensor) -> Tensor:
        """See the interface."""
        maps = self.blocks(images)
        return maps.mean((2, 3)) if self.pool is None else self.pool(maps)


@BACKBONES.register("resnet12_half")
class HalfResNet12(ResNet12):
    """ResNet-12 of half the widths: 320 features, a quarter of the work."""

    def __init__(
        self,
        channels: int,
        image_size: int,
        *,
        drop: float = 0.0,
        dropout: float = 0.0,
        pool: str = "average",
        reduced: int = 128,
    ):
        widths = (32, 80, 160, 320)
        super().__init__(channels, image_size, widths=widths, drop=drop, dropout=dropout, pool=pool, reduced=reduced)
