"""Random distortions of training images, on the device that holds them.

Every image gets parameters of its own from one call of the generator. All operations have fixed shapes and
none waits for the device, so a call can be captured in a CUDA graph.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from pyro_vsm.errors import UserError


@dataclass
class AugmentConfig:
    """Which distortions, and how strong; by default none.

    Attributes:
        crop_scale: smallest and largest area, as a fraction of the image, of a random crop that is scaled
            to the full size; (1, 1) is off.
        crop_ratio: smallest and largest ratio of such a crop's width to its height.
        pad: a border of so many black pixels is added, and a piece of the first size cut out at random.
        flip: mirror every second image, left to right.
        brightness: pixels are multiplied by a factor from [1 - brightness, 1 + brightness].
        contrast: likewise, the distances of pixels from the image's mean grey value.
        saturation: likewise, the distances of colours from their own grey value.
        rotate: by an angle from [-rotate, rotate] degrees; corners from outside the image are black.
    """

    crop_scale: tuple[float, float] = (1.0, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    pad: int = 0
    flip: bool = False
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    rotate: float = 0.0

    def __post_init__(self) -> None:
        low, high = self.crop_scale
        if not 0 < low <= high <= 1:
            raise UserError(f"crop_scale is {self.crop_scale}: give two fractions of the area, 0 < low <= high <= 1")
        low, high = self.crop_ratio
        if not 0 < low <= high < math.inf:
            raise UserError(f"crop_ratio is {self.crop_ratio}: give two ratios, 0 < low <= high")
        if self.pad < 0:
            raise UserError(f"pad is {self.pad}: give a number of pixels from 0 on")
        if not 0 <= self.rotate <= 180:
            raise UserError(f"rotate is {self.rotate}: give degrees from 0 to 180")
        for name in ("brightness", "contrast", "saturation"):
            strength = getattr(self, name)
            if not 0 <= strength <= 1:
                raise UserError(f"{name} is {strength}: give a strength from 0 to 1")

    @property
    def resamples(self) -> bool:
        """Whether pixels are interpolated."""
        return tuple(self.crop_scale) != (1.0, 1.0) or self.rotate > 0


def augment(images: Tensor, config: AugmentConfig, generator: torch.Generator | None = None) -> Tensor:
    """Distorts each image at random.

    Args:
        images: uint8 `[B, C, H, W]`.
        config: what to do; if nothing is on, pixels are only converted.
        generator: source of randomness on the device of the images; None takes the device's default.

    Returns:
        float32 `[B, C, H, W]` in [0, 1].

    Raises:
        UserError: if the images are not uint8 `[B, C, H, W]` or smaller than the padding.
    """
    if images.dtype != torch.uint8 or images.dim() != 4:
        raise UserError(
            "augmentation takes uint8 images [B, C, H, W], but got "
            f"{images.dtype} of shape {list(images.shape)}: convert them first"
        )
    if config.pad >= min(images.shape[2:]):
        raise UserError(f"pad is {config.pad}, but the images are {list(images.shape[2:])}: give a smaller pad")
    u = draws(len(images), images.device, generator)
    return distort(images, torch.arange(len(images), device=images.device), config, u)


def draws(number: int, device: torch.device, generator: torch.Generator | None = None) -> Tensor:
    """The randomness of so many images, `[11, number]` in [0, 1)."""
    return torch.rand(11, number, device=device, generator=generator)


def distort(images: Tensor, positions: Tensor, config: AugmentConfig, u: Tensor) -> Tensor:
    """Fetches images and distorts each by its own numbers; a pure function, so that it can be compiled whole.

    Args:
        images: uint8 `[I, C, H, W]`.
        positions: int64 `[B]`, which of them.
        config: what to do.
        u: `[11, B]` of :func:`draws`.

    Returns:
        float32 `[B, C, H, W]` in [0, 1].
    """
    if config.resamples:
        result = _resampled(images[positions].float().div_(255), config, u)
    elif config.pad or config.flip:
        result = _shifted(images, positions, config, u)
    else:
        result = images[positions].float().div_(255)
    if config.brightness or config.contrast or config.saturation:
        result = _recoloured(result, config, u)
    return result


def _shifted(images: Tensor, positions: Tensor, config: AugmentConfig, u: Tensor) -> Tensor:
    """Fetched, padded, cut out and mirrored by one indexing: no pixel changes its value."""
    batch, (channels, height, width) = len(positions), images.shape[1:]
    device, pad = images.device, config.pad
    columns = torch.arange(width, device=device).expand(batch, width)
    if config.flip:
        columns = torch.where(u[0, :, None] < 0.5, columns.flip(1), columns)
    rows = torch.arange(height, device=device) + _steps(u[1], pad)[:, None]
    columns = columns + _steps(u[2], pad)[:, None]
    inside = ((rows >= 0) & (rows < height))[:, None, :, None] & ((columns >= 0) & (columns < width))[:, None, None]
    taken = images[
        positions[:, None, None, None],
        torch.arange(channels, device=device)[:, None, None],
        rows.clamp(0, height - 1)[:, None, :, None],
        columns.clamp(0, width - 1)[:, None, None, :],
    ]
    return taken.float().div_(255).mul_(inside)


def _steps(u: Tensor, pad: int) -> Tensor:
    """Whole numbers from -pad to pad from numbers in [0, 1)."""
    return (u * (2 * pad + 1)).long().clamp_(max=2 * pad) - pad


def _resampled(images: Tensor, config: AugmentConfig, u: Tensor) -> Tensor:
    """All geometric distortions as one affine map from result to source, sampled once."""
    height, width = images.shape[2:]
    area = config.crop_scale[0] + (config.crop_scale[1] - config.crop_scale[0]) * u[3]
    low, high = (math.log(ratio) for ratio in config.crop_ratio)
    cropping = tuple(config.crop_scale) != (1.0, 1.0)
    ratio = (low + (high - low) * u[4]).exp() * (height / width) if cropping else torch.ones_like(area)
    # a crop longer than the image is cut to it
    across, down = (area * ratio).sqrt().clamp(max=1), (area / ratio).sqrt().clamp(max=1)
    angle = (2 * u[5] - 1) * math.radians(config.rotate)
    cos, sin = angle.cos(), angle.sin()
    mirror = torch.where(u[0] < 0.5, -1.0, 1.0) if config.flip else torch.ones_like(area)
    # coordinates run from -1 to 1 over the image; a crop's centre stays where the crop fits
    x = (1 - across) * (2 * u[6] - 1) + _steps(u[2], config.pad) * (2 / width)
    y = (1 - down) * (2 * u[7] - 1) + _steps(u[1], config.pad) * (2 / height)
    rows = (
        torch.stack([across * cos * mirror, -across * sin * (height / width), x], 1),
        torch.stack([down * sin * mirror * (width / height), down * cos, y], 1),
    )
    grid = F.affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False).clamp_(0, 1)


def _recoloured(images: Tensor, config: AugmentConfig, u: Tensor) -> Tensor:
    """Brightness, contrast and saturation, in this order."""

    def factor(k: int, strength: float) -> Tensor:
        return (1 + strength * (2 * u[k] - 1))[:, None, None, None]

    if config.brightness:
        images = images * factor(8, config.brightness)
    if config.contrast:
        images = _grey(images).mean((2, 3), keepdim=True).lerp(images, factor(9, config.contrast))
    if config.saturation and images.shape[1] == 3:
        images = _grey(images).lerp(images, factor(10, config.saturation))
    return images.clamp(0, 1)


def _grey(images: Tensor) -> Tensor:
    """Luma of colour images (ITU-R BT.601), `[B, 1, H, W]`; grey images as they are."""
    if images.shape[1] != 3:
        return images.mean(1, keepdim=True)
    return 0.299 * images[:, :1] + 0.587 * images[:, 1:2] + 0.114 * images[:, 2:]
