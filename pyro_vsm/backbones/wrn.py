"""Wide residual networks (Zagoruyko, Komodakis 2016); WRN-28-10 is the widest extractor of the literature."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F

from pyro_vsm.backbones.base import BACKBONES, Backbone
from pyro_vsm.errors import UserError


class WideBlock(nn.Module):
    """Pre-activation block: twice batch normalisation, ReLU, 3x3 convolution; dropout between them."""

    def __init__(self, inputs: int, outputs: int, stride: int, drop: float):
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm2d(inputs), nn.BatchNorm2d(outputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.drop = nn.Dropout(drop)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if inputs != outputs else None

    def forward(self, x: Tensor) -> Tensor:
        """``[B, outputs, H / stride, W / stride]``."""
        active = F.relu(self.norm1(x))
        skip = x if self.shortcut is None else self.shortcut(active)
        return skip + self.conv2(self.drop(F.relu(self.norm2(self.conv1(active)))))


@BACKBONES.register("wrn")
class WideResNet(Backbone):
    """WRN-depth-width: three groups of blocks of 16, 32 and 64 times ``width`` channels, global average pooling.

    Args:
        channels: of the images.
        image_size: at least 16 pixels.
        depth: 6 n + 4 layers, n blocks a group.
        width: multiplier of the channels.
        drop: dropout inside the blocks.
        stride: of the first convolution; 2 suits images of 84 pixels, 1 those of 32.

    Raises:
        UserError: a depth that is not 6 n + 4, or images too small.
    """

    def __init__(
        self, channels: int, image_size: int, *, depth: int = 28, width: int = 10, drop: float = 0.0, stride: int = 1
    ):
        super().__init__(channels, image_size)
        blocks, rest = divmod(depth - 4, 6)
        if rest or blocks < 1 or width < 1 or stride < 1 or image_size < 16:
            raise UserError(
                f"wrn: depth={depth}, width={width}, stride={stride}, images of {image_size} pixels; give a depth of "
                "6 n + 4, width and stride from 1 on and at least 16 pixels"
            )
        sizes = [16, 16 * width, 32 * width, 64 * width]
        layers: list[nn.Module] = [nn.Conv2d(channels, 16, 3, stride, 1, bias=False)]
        for group, (a, b) in enumerate(pairwise(sizes)):
            layers += [WideBlock(a if i == 0 else b, b, 2 if i == 0 and group else 1, drop) for i in range(blocks)]
        self.layers = nn.Sequential(*layers, nn.BatchNorm2d(sizes[-1]), nn.ReLU(inplace=True))
        self.dim, self.any_size = sizes[-1], True
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """See the interface."""
        return self.layers(images).mean((2, 3))
