"""The interface of a backbone."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from pyro_vsm.registry import Registry


class Backbone(nn.Module, ABC):
    """Interface of a backbone.

    Args:
        channels: of the images, 1 or 3.
        image_size: height = width in pixels.

    Attributes:
        dim: feature dimension D.
        any_size: whether larger images give as many features, for ``features.enlarge``.
    """

    dim: int
    any_size: bool = False

    def __init__(self, channels: int, image_size: int):
        super().__init__()
        self.channels, self.image_size = channels, image_size

    @abstractmethod
    def forward(self, images: Tensor) -> Tensor:
        """Features ``[B, D]`` of normalised images ``[B, channels, image_size, image_size]``."""


BACKBONES: Registry[Backbone] = Registry("backbone", Backbone)
