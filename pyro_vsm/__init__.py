"""Variational Semantic Memory for few-shot image classification, in Pyro.

>>> import pyro_vsm
>>> vsm = pyro_vsm.load("runs/glyphs-5way-1shot")
>>> belief = vsm.infer(support, query)  # uint8 images [N, K, C, H, W] and [Q, C, H, W]
>>> belief.probabilities, belief.z, belief.m, belief.addressing, belief.mutual_information
"""

import os
from typing import TYPE_CHECKING, Any

# Threads that spin while they wait make small networks several times slower on a CPU that is shared with other
# programs (measured: 0.74 s against 0.20 s a step); OpenMP reads this once, when torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from pyro_vsm.baselines import PrototypicalNetwork
from pyro_vsm.config import Config
from pyro_vsm.encoder import Encoder
from pyro_vsm.errors import UserError
from pyro_vsm.fewshot import FewShotModel
from pyro_vsm.jobs import train
from pyro_vsm.loading import load, load_pretrained
from pyro_vsm.memory import SemanticMemory
from pyro_vsm.memory_updates import MemoryUpdate
from pyro_vsm.memory_uses import MemoryUse
from pyro_vsm.posteriors import PosteriorM, PosteriorZ
from pyro_vsm.priors import PriorM, PriorZ
from pyro_vsm.task import Task
from pyro_vsm.vsm import VSM, Inference

if TYPE_CHECKING:
    from pyro_vsm.estimator import FewShotClassifier

__all__ = [
    "VSM",
    "Config",
    "Encoder",
    "FewShotClassifier",
    "FewShotModel",
    "Inference",
    "MemoryUpdate",
    "MemoryUse",
    "PosteriorM",
    "PosteriorZ",
    "PriorM",
    "PriorZ",
    "PrototypicalNetwork",
    "SemanticMemory",
    "Task",
    "UserError",
    "load",
    "load_pretrained",
    "train",
]


def __getattr__(name: str) -> Any:
    """The estimator is imported when it is first asked for, as scikit-learn is optional, and so are the plots."""
    if name == "plots":
        import importlib

        return importlib.import_module("pyro_vsm.plots")
    if name == "FewShotClassifier":
        from pyro_vsm.estimator import FewShotClassifier

        return FewShotClassifier
    raise AttributeError(f"module 'pyro_vsm' has no attribute {name!r}")
