"""Backbones h(x): images ``[B, channels, H, W]`` to features ``[B, D]``."""

from pyro_vsm.backbones.base import BACKBONES, Backbone
from pyro_vsm.backbones.conv4 import Conv4
from pyro_vsm.backbones.resnet12 import HalfResNet12, ResNet12
from pyro_vsm.backbones.wrn import WideResNet

__all__ = ["BACKBONES", "Backbone", "Conv4", "HalfResNet12", "ResNet12", "WideResNet"]
