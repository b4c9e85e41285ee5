"""Posteriors (guides) of m, ``q(m | M, S)``, and of the prototype z, ``q(z | m, S)``: one class an equation.

Shapes as in :mod:`pyro_vsm.priors`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import pyro.distributions as dist
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from pyro_vsm.conjugate import conjugate_gain, conjugate_posterior
from pyro_vsm.distributions import (
    GaussianMixture,
    LowRankGaussian,
    RelaxedGaussianMixture,
    gaussian_parts,
)
from pyro_vsm.errors import UserError
from pyro_vsm.networks import Residual, ResidualGaussian
from pyro_vsm.noise import Noise
from pyro_vsm.precision import full_precision
from pyro_vsm.priors import EntryComponents
from pyro_vsm.registry import Registry
from pyro_vsm.remembered import Remembered, lasting
from pyro_vsm.task import Task


class PosteriorM(nn.Module, ABC):
    """Interface of ``q(m | M, S)``. Args: ``dim``, the feature dimension D."""

    def __init__(self, dim: int):
        super().__init__()
        self.dim = dim

    @abstractmethod
    def forward(self, task: Task) -> TorchDistribution:
        """``q(m_n | M, S_n)``: batch ``[T, N]``, event ``[D]``."""


class PosteriorZ(nn.Module, ABC):
    """Interface of ``q(z | m, S)``. Args: ``dim``, the feature dimension D.

    Attributes:
        uses_prior: whether :meth:`forward` looks at ``prior``; where not, it gets None and none is computed.
        random: whether z differs from sample to sample at the same m; where not, one of each m is enough.
    """

    uses_prior = True
    random = True

    def __init__(self, dim: int):
        super().__init__()
        self.dim = dim

    @abstractmethod
    def forward(self, m: Tensor, task: Task, prior: Any) -> TorchDistribution:
        """``q(z_n | m_n, S_n)``: batch ``[..., T, N]``, event ``[D]``, for ``m [..., T, N, D]``.

        ``prior`` is ``p(z|m)`` at the same m, a distribution, for posteriors in closed form.
        """


POSTERIORS_M: Registry[PosteriorM] = Registry("posterior_m", PosteriorM)
POSTERIORS_Z: Registry[PosteriorZ] = Registry("posterior_z", PosteriorZ)


# --- q(m | M, S) ----------------------------------------------------------------------------------------------


@POSTERIORS_M.register("mixture")
class MixturePosteriorM(PosteriorM):
    """``q(m|M,S) = sum_a gamma_a N(mu_m(M_a), sigma_m(M_a)^2)``: exact density, unbiased gradient.

    The gradient of the weights gamma uses the score function with a leave-one-out baseline over particles, so
    train with two particles or more. Networks mu_m and sigma_m are the guide's own.
    """

    def __init__(self, dim: int, *, hidden: int = 256):
        super().__init__(dim)
        self.components = EntryComponents(dim, hidden)

    def forward(self, task: Task) -> TorchDistribution:
        """See the interface."""
        return GaussianMixture(task.recall.log_address, *self.components(task))


@POSTERIORS_M.register("moment_matched")
class MomentMatchedPosteriorM(MixturePosteriorM):
    """One diagonal Gaussian with the mean and the variance of the mixture: another family, reparametrised."""

    def forward(self, task: Task) -> TorchDistribution:
        """See the interface."""
        q = GaussianMixture(task.recall.log_address, *self.components(task))
        return dist.Normal(q.mean, q.variance.clamp_min(1e-8).sqrt()).to_event(1)


@POSTERIORS_M.register("relaxed")
class RelaxedPosteriorM(MixturePosteriorM):
    """The mixture with a Concrete address: low variance, biased (see the class of the distribution).

    Args:
        dim: feature dimension D.
        temperature: of the Concrete distribution, > 0.
    """

    def __init__(self, dim: int, *, hidden: int = 256, temperature: float = 0.5):
        super().__init__(dim, hidden=hidden)
        if not temperature > 0:
            raise UserError(f"posterior_m: temperature={temperature} must be positive")
        self.temperature = temperature

    def forward(self, task: Task) -> TorchDistribution:
        """See the interface."""
        loc, scale = self.components(task)
        return RelaxedGaussianMixture(task.recall.log_address, loc, scale, self.temperature)


# --- q(z | m, S) ----------------------------------------------------------------------------------------------


@POSTERIORS_Z.register("amortised")
class AmortisedPosteriorZ(PosteriorZ):
    """``q(z|m,S) = N(s + f(s,m), sigma(s,m)^2)``, f zero at the start: begins at the deterministic prototype.

    Args:
        dim: feature dimension D.
        hidden: width of the networks f and sigma.
        log_sigma: log sigma at the start.
    """

    uses_prior = False

    def __init__(self, dim: int, *, hidden: int = 512, log_sigma: float = -2.0):
        super().__init__(dim)
        self.net = ResidualGaussian(dim, 2, hidden=hidden, log_sigma=log_sigma)

    def gaussian(self, s: Tensor, m: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and sigma for prototypes ``s`` and ``m``, ``[..., D]``, broadcast."""
        return self.net(s, s, m)

    def forward(self, m: Tensor, task: Task, prior: Any) -> TorchDistribution:
        """See the interface."""
        return dist.Normal(*self.gaussian(task.prototype, m)).to_event(1)


@POSTERIORS_Z.register("deterministic")
class DeterministicPosteriorZ(PosteriorZ):
    """``z = s + f(s,m)``, a point mass: the objective is a penalised likelihood (MAP), the "KL" ``-log p(z|m)``."""

    uses_prior, random = False, False

    def __init__(self, dim: int, *, hidden: int = 512):
        super().__init__(dim)
        self.net = Residual(dim, 2, hidden=hidden)

    def forward(self, m: Tensor, task: Task, prior: Any) -> TorchDistribution:
        """See the interface."""
        s = task.prototype
        return dist.Delta(self.net(s, s, m), event_dim=1)


@POSTERIORS_Z.register("conjugate")
class ConjugatePosteriorZ(PosteriorZ):
    """Closed form under a Gaussian prior: ``q(z|m,S) = N(V (W^-1 sum_k h_k + B^-1 mu), V)``, plus a learned residual.

    The support features are taken as ``h_k | z ~ N(z, W)``; W is the memory's pooled within-class covariance, scaled
    and shrunk by learned factors (:class:`~pyro_vsm.noise.Noise`): its diagonal, or with ``within_rank`` above 0 its
    leading eigenvectors, too. The residual ``f(s, m)`` on the mean starts at zero.

    Args:
        dim: feature dimension D.
        residual: whether to learn f; without it the posterior is exact.
        noise: factor on W at the start.
        hidden: width of f.
    """

    def __init__(self, dim: int, *, residual: bool = True, noise: float = 1.0, hidden: int = 512):
        super().__init__(dim)
        self.noise = Noise(noise)
        self.net = Residual(dim, 2, hidden=hidden) if residual else None
        self._gain = Remembered(conjugate_gain)

    def within(self, task: Task) -> tuple[Tensor, Tensor | None]:
        """W as diagonal ``[T, 1, D]`` and factor ``[T, 1, D, r]`` or None."""
        return self.noise(task)

    def forward(self, m: Tensor, task: Task, prior: Any) -> TorchDistribution:
        """See the interface.

        Raises:
            UserError: the prior of z is not Gaussian.
        """
        loc, factor, diag = gaussian_parts(prior)
        s = task.prototype
        noise, noise_factor = self.within(task)
        if task.counts is None and lasting([diag, noise], [factor, noise_factor]):
            gain, low, rest = self._gain(factor, diag, noise, task.shots, noise_factor)
            with full_precision(loc):
                q = LowRankGaussian(((s - loc) @ gain.mT).add_(loc), low, rest)
        else:
            q = conjugate_posterior(loc, factor, diag, s, noise, task.shots, noise_factor)
        if self.net is None:
            return q
        return LowRankGaussian(self.net(q.loc, s, m), q.factor, q.diag)
