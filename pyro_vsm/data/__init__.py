"""Data sets, episodes and augmentation; this layer knows no model."""

from pyro_vsm.data import glyphs as _glyphs  # noqa: F401  registers itself
from pyro_vsm.data.images import ClassImages, Identity, Splits
from pyro_vsm.data.sources import SOURCES, DataConfig, load

__all__ = ["SOURCES", "ClassImages", "DataConfig", "Identity", "Splits", "load"]
