"""Layers whose form depends on the device: the same numbers by fewer passes over the memory where that is faster."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_FUSED = {"pool": True, "pixels": True}


@contextmanager
def torch_layers() -> Iterator[None]:
    """Networks that are compiled inside use PyTorch's own operators, for comparison."""
    before = dict(_FUSED)
    _FUSED.update(dict.fromkeys(_FUSED, False))
    try:
        yield
    finally:
        _FUSED.update(before)


def _fuses(kind: str, x: Tensor) -> bool:
    """Whether a layer takes the form for compiled networks on CUDA."""
    return x.is_cuda and torch.compiler.is_compiling() and _FUSED[kind]


class MaxPool(nn.MaxPool2d):
    """2x2 max pooling without overlap; in a compiled network on CUDA as a maximum over pairs of rows and columns.

    There normalisation, activation and pooling become one pass over the largest maps, and their gradients another;
    torch's own operator of pooling is a barrier between them. Of equal maxima each gets an equal share of the
    gradient, where torch's operator gives all of it to the first.
    """

    def __init__(self) -> None:
        super().__init__(2)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, H // 2, W // 2]``."""
        return pair_max(x) if _fuses("pool", x) else super().forward(x)


class PixelConv(nn.Conv2d):
    """Convolution of images without bias, stride 1 and same size; in a compiled network on CUDA as a matrix product.

    cuDNN has no kernel for three channels that comes near the memory's speed.
    """

    def __init__(self, channels: int, outputs: int, size: int):
        super().__init__(channels, outputs, size, padding=size // 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, outputs, H, W]``."""
        return pixel_product(x, self.weight) if _fuses("pixels", x) else super().forward(x)


def pair_max(x: Tensor) -> Tensor:
    """2x2 max pooling of ``[B, C, H, W]``; an odd last row or column is left out, as by ``max_pool2d``."""
    height, width = x.shape[2] // 2, x.shape[3] // 2
    x = x[:, :, : 2 * height, : 2 * width]
    return x.unflatten(3, (width, 2)).unflatten(2, (height, 2)).amax((3, 5))


def pixel_product(x: Tensor, weight: Tensor) -> Tensor:
    """``conv2d(x, weight, padding=k // 2)`` for ``[B, C, H, W]`` and ``[O, C, k, k]``, k odd, in channels-last order.

    The k^2 shifted images stand side by side, ``[B H W, k^2 C]``, filled up to a multiple of 32 columns.
    """
    (batch, channels, height, width), (outputs, _, size, _) = x.shape, weight.shape
    half, columns = size // 2, channels * size**2
    wide = F.pad(x.permute(0, 2, 3, 1), [0, 0, half, half, half, half])
    shifts = [wide[:, i : i + height, j : j + width] for i in range(size) for j in range(size)]
    fill = -columns % 32
    pixels = F.pad(torch.cat(shifts, -1), [0, fill]).view(-1, columns + fill)
    kernel = F.pad(weight.permute(2, 3, 1, 0).reshape(columns, outputs), [0, 0, 0, fill])
    return (pixels @ kernel).view(batch, height, width, outputs).permute(0, 3, 1, 2)
