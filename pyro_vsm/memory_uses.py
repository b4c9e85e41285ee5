"""How the model uses the memory: as a latent variable m, or read out directly, or not at all."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from pyro_vsm.registry import Registry
from pyro_vsm.task import Task


class MemoryUse(nn.Module, ABC):
    """Interface of a memory use. Args: ``dim``, the feature dimension D.

    Attributes:
        latent: m is sampled from p(m|M) and q(m|M,S); :meth:`forward` is not called.
        closed: the memory is recalled as if it were empty.
        shuffled: what is read out belongs to another entry than the one addressed (a control).
        addressed: which entries resemble the support features matters.
    """

    addressed = True
    latent = False
    closed = False
    shuffled = False

    def __init__(self, dim: int):
        super().__init__()
        self.dim = dim

    @abstractmethod
    def forward(self, task: Task) -> Tensor:
        """M ``[T, N, D]``, a deterministic reading."""


MEMORY_USES: Registry[MemoryUse] = Registry("memory_use", MemoryUse)


@MEMORY_USES.register("rote")
class Rote(MemoryUse):
    """``m = sum_a gamma_a M_a``: the raw entries by address."""

    def forward(self, task: Task) -> Tensor:
        """See the interface."""
        return (task.recall.log_address.exp() @ task.recall.values).to(task.support.dtype)


@MEMORY_USES.register("transformed")
class Transformed(Rote):
    """``m = t(sum_a gamma_a M_a)``: the entry passed through a learned network."""

    def __init__(self, dim: int, *, hidden: int = 512):
        super().__init__(dim)
        self.net = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))

    def forward(self, task: Task) -> Tensor:
        """See the interface."""
        return self.net(super().forward(task)).to(task.support.dtype)


@MEMORY_USES.register("moments")
class Moments(Rote):
    """``m`` is the mean of all entries: no single one is read, and the memory acts by its moments alone.

    With the prior ``empirical_bayes``, ``p(z|M) = N(mu_0, a B + b)``; with ``conjugate`` and ``generative``, too,
    everything is exact and nothing sampled.
    """

    addressed = False

    def forward(self, task: Task) -> Tensor:
        """See the interface."""
        return task.recall.mean_variance()[1].unsqueeze(1).expand_as(task.prototype).to(task.support.dtype)


@MEMORY_USES.register("latent")
class Latent(Rote):
    """``m ~ p(m|M)`` and ``m ~ q(m|M,S)``: the variational semantic memory."""

    latent = True


@MEMORY_USES.register("shuffled")
class Shuffled(Latent):
    """The control: as ``latent``, but each address reads another entry. What still helps is not semantics.

    Moments over all entries (``empirical_bayes``, ``gaussian``) do not depend on the order and stay what they are.
    """

    shuffled = True


@MEMORY_USES.register("off")
class Off(MemoryUse):
    """The control: the same networks fed an empty memory and ``m = 0``. With a fixed prior of z this is VPN."""

    closed = True

    def forward(self, task: Task) -> Tensor:
        """See the interface."""
        return torch.zeros_like(task.prototype)
