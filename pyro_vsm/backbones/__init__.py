"""Backbones h(x): images ``[B, channels, H, W]`` to features ``[B, D]``."""

from pyro_vsm.backbones.base import BACKBONES, Backbone
from pyro_vsm.backbones.conv4 import Conv4

__all__ = ["BACKBONES", "Backbone", "Conv4"]
