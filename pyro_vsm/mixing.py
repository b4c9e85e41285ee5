"""Mixtures of training images with their labels: mixup and CutMix, each image with a share and a place of its own.

Everything happens on the device and has fixed shapes, so that a step with it can be captured in a CUDA graph;
torchvision's transforms draw one share a batch, on the host.
"""

from __future__ import annotations

import torch
from torch import Tensor


def mixed(images: Tensor, kind: str, alpha: float, share: float) -> tuple[Tensor, Tensor, Tensor]:
    """Mix each image with the next one of the batch.

    ``mixup``: ``lam x_i + (1 - lam) x_j``, ``lam ~ Beta(alpha, alpha)`` (Zhang et al. 2018). ``cutmix``: a rectangle
    of area ``1 - lam``, of the image's proportions and centred anywhere, is cut out of x_j into x_i; lam is then what
    is left of x_i (Yun et al. 2019).

    Args:
        images: ``[B, C, H, W]``, in random order.
        kind: mixup or cutmix.
        alpha: of the Beta distribution, above 0; 1 makes every share equally likely.
        share: fraction of the images that are mixed, in [0, 1].

    Returns:
        Images ``[B, C, H, W]``, indices ``[B]`` of the images that were mixed in, and lam ``[B]`` in [0, 1].
    """
    size, (height, width), device = len(images), images.shape[2:], images.device
    other = torch.arange(size, device=device).roll(-1)
    gammas = torch._standard_gamma(torch.full((2, size), alpha, device=device)).clamp_min(1e-30)
    lam = torch.where(torch.rand(size, device=device) < share, gammas[0] / gammas.sum(0), 1.0)
    if kind == "mixup":
        weight = lam.to(images.dtype)[:, None, None, None]
        return other_and(images, other, weight), other, lam
    side = (1 - lam).sqrt()
    kept = ~(_span(side, height)[:, :, None] & _span(side, width)[:, None, :])
    lam = kept.to(lam.dtype).mean((1, 2))
    return other_and(images, other, kept.unsqueeze(1).to(images.dtype)), other, lam


def other_and(images: Tensor, other: Tensor, weight: Tensor) -> Tensor:
    """``weight x_i + (1 - weight) x_j``."""
    return torch.lerp(images[other], images, weight)


def _span(side: Tensor, length: int) -> Tensor:
    """Bool ``[B, length]``: which pixels a piece of ``side`` times the length covers, cut at the border."""
    half = 0.5 * side * length
    centre = torch.rand(len(side), device=side.device) * length
    pixel = torch.arange(length, device=side.device) + 0.5
    return (pixel - centre[:, None]).abs() < half[:, None]


def soft_targets(labels: Tensor, other: Tensor, lam: Tensor, classes: int) -> Tensor:
    """``lam`` of the own class and the rest of the one mixed in, ``[B, classes]`` (float32)."""
    target = torch.zeros(len(labels), classes, device=labels.device)
    rows = torch.stack([labels, labels[other]], 1)
    return target.scatter_add_(1, rows, torch.stack([lam, 1 - lam], 1).to(target.dtype))
