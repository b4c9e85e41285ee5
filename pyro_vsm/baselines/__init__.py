"""The systems that Variational Semantic Memory is compared with (RFS is in :mod:`pyro_vsm.baselines.rfs`)."""

from pyro_vsm.baselines.gaussian_process import GaussianProcess
from pyro_vsm.baselines.maml import MAML
from pyro_vsm.baselines.prototypical import PrototypicalNetwork
from pyro_vsm.baselines.versa import Versa

__all__ = ["MAML", "GaussianProcess", "PrototypicalNetwork", "Versa"]
