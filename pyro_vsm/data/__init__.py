"""Data sets, episodes and augmentation; this layer knows no model."""

# each source puts itself into SOURCES
from pyro_vsm.data import (  # noqa: F401
    cifar_fs,
    colour_glyphs,
    cub,
    folder,
    glyphs,
    mini_imagenet,
    omniglot,
    tiered_imagenet,
)
from pyro_vsm.data.images import ClassImages, Identity, Splits
from pyro_vsm.data.sources import SOURCES, DataConfig, load

__all__ = ["SOURCES", "ClassImages", "DataConfig", "Identity", "Splits", "load"]
