"""Conv-4, the shallow extractor of the few-shot literature (Vinyals et al. 2016, Snell et al. 2017)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pyro_vsm.backbones.base import BACKBONES, Backbone
from pyro_vsm.backbones.pooling import DistanceCovariance
from pyro_vsm.errors import UserError


class Block(nn.Sequential):
    """Convolution, batch normalisation and what follows; in evaluation the first two are one convolution."""

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, H, W]``."""
        conv, norm, *rest = self
        # other norms (of several processes, by the moments of a task) do what they do
        if norm.training or type(norm) is not nn.BatchNorm2d or norm.running_mean is None or norm.running_var is None:
            return super().forward(x)
        assert isinstance(conv, nn.Conv2d)
        scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
        x = F.conv2d(
            x, conv.weight * scale.view(-1, 1, 1, 1), norm.bias - norm.running_mean * scale, padding=conv.padding
        )
        if isinstance(rest[-1], nn.MaxPool2d):
            rest.reverse()  # the largest of what is cut at zero is the largest, cut at zero: a quarter of the cuts
        for layer in rest:
            x = layer(x)
        return x


@BACKBONES.register("conv4")
class Conv4(Backbone):
    """Four blocks of 3x3 convolution, batch normalisation, ReLU and 2x2 max pooling.

    84x84 images give ``width * 25`` features, 28x28 images ``width``; with ``average``, always ``width * grid^2``,
    with ``distance_covariance`` ``width (width + 1) / 2``.

    Args:
        channels: of the images.
        image_size: at least 16 pixels.
        width: channels of each block.
        pool: ``flatten`` the last block's map; or ``average`` it over the positions, without max pooling in the last
            block (Tian et al. 2020: such features of a classifier carry over to new classes much better); or take the
            ``distance_covariance`` of its channels, likewise (Xie et al. 2022).
        grid: with ``average``, the map is averaged over ``grid x grid`` parts. It has no weights: a backbone that was
            trained with one grid can be used with another.

    Raises:
        UserError: images too small for four poolings, no channels, an unknown ``pool``, or a grid finer than the map.
    """

    def __init__(self, channels: int, image_size: int, *, width: int = 64, pool: str = "flatten", grid: int = 1):
        super().__init__(channels, image_size)
        if pool not in ("flatten", "average", "distance_covariance"):
            raise UserError(f"conv4: pool is {pool!r}; give flatten, average or distance_covariance")
        average = pool == "average"
        if not 1 <= grid <= (image_size // 8 if average else 1):
            raise UserError(
                f"conv4: grid is {grid}; with pool average give 1 to {image_size // 8} for images of {image_size} "
                "pixels, with any other leave it at 1"
            )
        if image_size < 16:
            raise UserError(f"conv4: images of {image_size} pixels are too small; give at least 16")
        if not isinstance(width, int) or width < 1:
            raise UserError(f"conv4: width is {width!r}; give a whole number of channels from 1 on")
        blocks = [self._block(channels if i == 0 else width, width) for i in range(4)]
        end: nn.Module = nn.Flatten()
        self.dim = width * (image_size // 16) ** 2
        if average:
            blocks[-1][-1] = nn.AdaptiveAvgPool2d(grid)
            self.dim = width * grid**2
        elif pool == "distance_covariance":
            blocks[-1][-1] = nn.Identity()
            end = DistanceCovariance(width)
            self.dim = end.dim
        self.any_size = pool != "flatten"
        self.blocks = nn.Sequential(*blocks, end)

    @staticmethod
    def _block(inputs: int, outputs: int) -> Block:
        return Block(
            nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
        )

    def forward(self, images: Tensor) -> Tensor:
        """See the interface."""
        return self.blocks(images)
