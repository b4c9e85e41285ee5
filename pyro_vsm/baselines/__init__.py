"""The systems that Variational Semantic Memory is compared with."""

from pyro_vsm.baselines.prototypical import PrototypicalNetwork

__all__ = ["PrototypicalNetwork"]
