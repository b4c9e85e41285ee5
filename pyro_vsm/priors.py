"""Priors of m, ``p(m | M)``, and of the prototype z, ``p(z | m)``: one class an equation.

Every prior is a module with one method that returns a Pyro distribution of batch shape ``[..., T, N]`` (T tasks,
N ways, leading particle dimensions where its condition has them) and event shape ``[D]``. To swap one, name it in a
configuration (``model.prior_z: vamp``), or derive from :class:`PriorM` or :class:`PriorZ` and give its dotted path.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from pyro_vsm.distributions import GaussianMixture, LowRankGaussian
from pyro_vsm.errors import UserError
from pyro_vsm.networks import Positive, ResidualGaussian
from pyro_vsm.registry import Registry
from pyro_vsm.task import Task

if TYPE_CHECKING:
    from pyro_vsm.posteriors import PosteriorZ


class PriorM(nn.Module, ABC):
    """Interface of ``p(m | M)``. Args: ``dim``, the feature dimension D."""

    def __init__(self, dim: int):
        super().__init__()
        self.dim = dim

    @abstractmethod
    def forward(self, task: Task) -> TorchDistribution:
        """``p(m_n | M)`` for every class of every task: batch ``[T, N]``, event ``[D]``."""


class PriorZ(nn.Module, ABC):
    """Interface of ``p(z | m)``. Args: ``dim``, the feature dimension D."""

    def __init__(self, dim: int):
        super().__init__()
        self.dim = dim

    def bind(self, posterior: PosteriorZ) -> None:
        """Called once with the model's posterior of z, for priors that are made of it; does nothing here."""

    @abstractmethod
    def forward(self, m: Tensor, task: Task) -> TorchDistribution:
        """``p(z_n | m_n)``: batch ``[..., T, N]``, event ``[D]``, for ``m [..., T, N, D]``."""


PRIORS_M: Registry[PriorM] = Registry("prior_m", PriorM)
PRIORS_Z: Registry[PriorZ] = Registry("prior_z", PriorZ)


def standard_normal(like: Tensor) -> TorchDistribution:
    """``N(0, 1)`` with the shape, device and precision of ``like [..., D]``."""
    return dist.Normal(torch.zeros_like(like), torch.ones_like(like)).to_event(1)


# --- p(m | M) -------------------------------------------------------------------------------------------------


class EntryComponents(nn.Module):
    """One Gaussian an entry: ``mu_m(M_a) = M_a + f(M_a)``, ``sigma_m(M_a)``; f zero at the start."""

    def __init__(self, dim: int, hidden: int = 256, log_sigma: float = -1.0):
        super().__init__()
        self.net = ResidualGaussian(dim, 1, hidden=hidden, log_sigma=log_sigma)

    def forward(self, task: Task) -> tuple[Tensor, Tensor]:
        """Means and sigmas ``[C+1, D]``; the default row is ``N(0, 1)``, the prior of an empty memory."""
        values = task.recall.values
        loc, scale = self.net(values, values)
        default = torch.arange(len(values), device=values.device).unsqueeze(-1) == len(values) - 1
        return loc.masked_fill(default, 0.0), scale.masked_fill(default, 1.0)


@PRIORS_M.register("mixture")
class MixturePriorM(PriorM):
    """``p(m|M) = sum_a pi_a N(mu_m(M_a), sigma_m(M_a)^2)`` over the entries that the task may recall.

    Args:
        dim: feature dimension D.
        weights: ``uniform``, or ``usage``: pi_a proportional to the images behind entry a.
        hidden: width of the networks mu_m and sigma_m.
    """

    def __init__(self, dim: int, *, weights: str = "uniform", hidden: int = 256):
        super().__init__(dim)
        if weights not in ("uniform", "usage"):
            raise UserError(f"prior_m: weights={weights!r}; give uniform or usage")
        self.weights = weights
        self.components = EntryComponents(dim, hidden)

    def forward(self, task: Task) -> TorchDistribution:
        """See the interface."""
        recall = task.recall
        log_pi = torch.zeros_like(recall.counts)
        if self.weights == "usage":
            log_pi = recall.counts.clamp_min(1.0).log()
        logits = log_pi.expand(recall.allowed.shape).masked_fill(~recall.allowed, float("-inf"))
        logits = logits.unsqueeze(1).expand(-1, task.support.shape[1], -1)
        return GaussianMixture(logits, *self.components(task))


@PRIORS_M.register("support")
class SupportPriorM(PriorM):
    """``p(m|S) = N(mu(s), sigma(s)^2)``, the paper's prior, from the support features alone."""

    def __init__(self, dim: int, *, hidden: int = 256):
        super().__init__(dim)
        self.net = ResidualGaussian(dim, 1, hidden=hidden, log_sigma=-1.0)

    def forward(self, task: Task) -> TorchDistribution:
        """See the interface."""
        s = task.prototype
        return dist.Normal(*self.net(s, s)).to_event(1)


@PRIORS_M.register("standard_normal")
class StandardNormalPriorM(PriorM):
    """``p(m) = N(0, 1)``."""

    def forward(self, task: Task) -> TorchDistribution:
        """See the interface."""
        return standard_normal(task.prototype)


# --- p(z | m) -------------------------------------------------------------------------------------------------


@PRIORS_Z.register("memory")
class MemoryPriorZ(PriorZ):
    """``p(z|m) = N(mu_p(m), sigma_p(m)^2)``, ``mu_p(m) = m + f(m)`` with f zero at the start."""

    def __init__(self, dim: int, *, hidden: int = 512):
        super().__init__(dim)
        self.net = ResidualGaussian(dim, 1, hidden=hidden, log_sigma=-0.5)

    def forward(self, m: Tensor, task: Task) -> TorchDistribution:
        """See the interface."""
        return dist.Normal(*self.net(m, m)).to_event(1)


@PRIORS_Z.register("empirical_bayes")
class EmpiricalBayesPriorZ(PriorZ):
    """``p(z|m,M) = N(mu_0 + rho (m - mu_0), a B + b)``: the Gaussian of the class means in the memory.

    ``mu_0`` and ``B`` are mean and covariance of the allowed entries (docs/mathematics.md). B has rank below C, so
    the density is exact in low-rank form. ``a``, the floor ``b`` of the variances and the pull ``rho`` towards
    the recalled m are learned. With an empty memory: ``N(rho m, 1 + b)``.

    Args:
        dim: feature dimension D.
        floor: b at the start.
        pull: rho at the start; it stays in (0, 1).
    """

    def __init__(self, dim: int, *, floor: float = 0.05, pull: float = 0.05):
        super().__init__(dim)
        if not 0 < pull < 1:
            raise UserError(f"prior_z: pull={pull}; give a number between 0 and 1")
        self.floor = Positive(floor)
        self.scale = Positive(1.0)
        self.pull = nn.Parameter(torch.tensor(pull).logit())

    def forward(self, m: Tensor, task: Task) -> TorchDistribution:
        """See the interface."""
        recall = task.recall
        weight, mu_0, _ = recall.mean_variance()  # [T, C+1], [T, D]
        gap = recall.entries - mu_0.unsqueeze(1)  # [T, C+1, D]
        root = (weight.sqrt() * self.scale().sqrt()).unsqueeze(-1)  # the root of a product has no gradient at 0
        factor = (root * gap).mT.unsqueeze(1)  # [T, 1, D, C+1], the same for every class: F F^T = a B
        diag = self.floor() + recall.empty.to(m.dtype)[:, None, None]
        mu_0 = mu_0.unsqueeze(1)
        return LowRankGaussian(mu_0 + self.pull.sigmoid() * (m - mu_0), factor, diag.expand(-1, 1, self.dim))


@PRIORS_Z.register("conditional")
class ConditionalPriorZ(PriorZ):
    """The paper's ``p(z|x,m)``: query-conditioned, so z is no class prototype in the strict sense.

    One ``p(z|x_i,m) = N(mu(x_i,m), sigma(x_i,m)^2)`` a query. The paper averages KL(q(z|m,S) || p(z|x_i,m)) over
    the queries; that is the KL to the normalised geometric mean of the p(z|x_i,m), which is this Gaussian, up to
    its normaliser: precision = mean of precisions, mean weighted by precision.
    """

    def __init__(self, dim: int, *, hidden: int = 256):
        super().__init__(dim)
        self.net = ResidualGaussian(dim, 2, hidden=hidden, log_sigma=-0.5)

    def forward(self, m: Tensor, task: Task) -> TorchDistribution:
        """See the interface."""
        x, m = task.query.unsqueeze(1), m.unsqueeze(-2)  # [T, 1, Q, D], [..., T, N, 1, D]
        loc, scale = self.net(m, x, m)  # [..., T, N, Q, D]
        precision = scale.square().reciprocal()
        pooled = precision.mean(-2)
        return dist.Normal((precision * loc).mean(-2) / pooled, pooled.rsqrt()).to_event(1)


@PRIORS_Z.register("standard_normal")
class StandardNormalPriorZ(PriorZ):
    """``p(z) = N(0, 1)``; features have unit RMS a dimension, so this is their scale."""

    def forward(self, m: Tensor, task: Task) -> TorchDistribution:
        """See the interface."""
        return standard_normal(m)


@PRIORS_Z.register("vamp")
class VampPriorZ(PriorZ):
    """``p(z|m) = 1/J sum_j q(z|m,u_j)``: the posterior at J learned pseudo-inputs (Tomczak, Welling 2018).

    Args:
        dim: feature dimension D.
        pseudo_inputs: J; each is the feature of a one-shot support set.
    """

    def __init__(self, dim: int, *, pseudo_inputs: int = 32):
        super().__init__(dim)
        if pseudo_inputs < 1:
            raise UserError(f"prior_z: pseudo_inputs={pseudo_inputs}; give at least 1")
        self.pseudo = nn.Parameter(torch.randn(pseudo_inputs, dim))
        self._posterior: list[Any] = []  # in a list: it belongs to the model, not to this prior

    def bind(self, posterior: PosteriorZ) -> None:
        """Keep the posterior that the mixture is made of.

        Raises:
            UserError: the posterior is no Gaussian network (``amortised``).
        """
        if not hasattr(posterior, "gaussian"):
            raise UserError("prior_z: vamp is made of the posterior's Gaussians; set posterior_z to amortised")
        self._posterior = [posterior]

    def forward(self, m: Tensor, task: Task) -> TorchDistribution:
        """See the interface."""
        u, m = self.pseudo, m.unsqueeze(-2)  # [J, D], [..., T, N, 1, D]
        loc, scale = self._posterior[0].gaussian(u.expand(*m.shape[:-2], *u.shape), m)
        return GaussianMixture(loc.new_zeros(loc.shape[:-1]), loc, scale)
