"""The likelihood ``p(y | x, z)``: which prototype does a query belong to."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn
from torch.nn import functional as F

from pyro_vsm.distributions import gaussian_parts, mahalanobis_map
from pyro_vsm.networks import Positive
from pyro_vsm.noise import Noise
from pyro_vsm.precision import full_precision
from pyro_vsm.registry import Registry
from pyro_vsm.task import Task


class Likelihood(nn.Module, ABC):
    """Interface of ``p(y | x, z) = softmax_n(logits)``. Args: ``dim``, the feature dimension D."""

    def __init__(self, dim: int):
        super().__init__()
        self.dim = dim

    @abstractmethod
    def forward(self, z: Tensor, task: Task) -> Tensor:
        """Logits ``[..., T, Q, N]`` of the task's queries for prototypes ``z [..., T, N, D]``."""

    def marginal(self, q: TorchDistribution, task: Task) -> Tensor | None:
        """Logits ``[..., T, Q, N]`` with z integrated out under q, where the model has them in closed form.

        None, as here, where it has not: probabilities are then averaged over samples of z.
        """
        return None


LIKELIHOODS: Registry[Likelihood] = Registry("likelihood", Likelihood)


def half_distance(query: Tensor, z: Tensor) -> Tensor:
    """``-|h - z|^2 + |h|^2``, ``[..., T, Q, N]``: ``|h|^2`` is that of every class and cancels in the softmax."""
    with full_precision(z):
        return 2 * query @ z.mT - z.square().sum(-1).unsqueeze(-2)


@LIKELIHOODS.register("euclidean")
class EuclideanLikelihood(Likelihood):
    """``logits = -tau * mean_d (h(x) - z_n)^2``, tau learned (prototypical network, Snell et al. 2017).

    Args:
        dim: feature dimension D.
        tau: inverse temperature at the start.
    """

    def __init__(self, dim: int, *, tau: float = 5.0):
        super().__init__(dim)
        self.tau = Positive(tau)

    def forward(self, z: Tensor, task: Task) -> Tensor:
        """See the interface."""
        return self.tau() * half_distance(task.query, z) / self.dim


@LIKELIHOODS.register("cosine")
class CosineLikelihood(Likelihood):
    """``logits = tau * cos(h(x), z_n)``, tau learned."""

    def __init__(self, dim: int, *, tau: float = 10.0):
        super().__init__(dim)
        self.tau = Positive(tau)

    def forward(self, z: Tensor, task: Task) -> Tensor:
        """See the interface."""
        with full_precision(z):
            return self.tau() * (F.normalize(task.query, dim=-1) @ F.normalize(z, dim=-1).mT)


@LIKELIHOODS.register("gaussian")
class GaussianLikelihood(Likelihood):
    """``logits = tau * log N(h(x); z_n, W) / D`` up to a constant, W the memory's pooled within-class covariance.

    W is shrunk by a learned factor (:class:`~pyro_vsm.noise.Noise`) and scaled to a mean diagonal of its inverse of 1
    (tau alone sets the scale), and 1 with an empty memory; tau is learned.
    """

    def __init__(self, dim: int, *, tau: float = 5.0):
        super().__init__(dim)
        self.tau, self.noise = Positive(tau), Noise(None)

    def forward(self, z: Tensor, task: Task) -> Tensor:
        """See the interface."""
        diag, factor = self.noise(task)  # [T, 1, D], [T, 1, D, r]
        inverse = diag.reciprocal()  # the diagonal of W^-1
        root, query = inverse.sqrt(), task.query
        logits = half_distance(query * root, z * root)
        if factor is not None:
            c = mahalanobis_map(diag.squeeze(1), factor.squeeze(1))  # [T, r, D]
            inverse = inverse - c.square().sum(-2, keepdim=True)
            with full_precision(z):
                logits = logits - half_distance(query @ c.mT, z @ c.mT)
        return self.tau() * logits / inverse.sum(-1, keepdim=True)


@LIKELIHOODS.register("generative")
class GenerativeLikelihood(GaussianLikelihood):
    """``p(h(x) | y=n, z) = N(h(x); z_n, W)`` with equal class probabilities: a model of the queries' features, too.

    Given z, y has the same logits as under ``gaussian``. The prediction differs: here the query's features are data,
    so z_n is integrated out of the density, ``p(y=n | x, S) ~ int N(h; z_n, W) q(z_n) dz_n = N(h; mean_n, W + V_n)``
    (docs/mathematics.md), tempered by tau as above. Sampling z in hundreds of dimensions adds noise that this has
    not.
    """

    def marginal(self, q: TorchDistribution, task: Task) -> Tensor:
        """See the interface; exact for a Gaussian q.

        Raises:
            UserError: q is not Gaussian.
        """
        loc, factor, diag = gaussian_parts(q)
        noise, noise_factor = self.noise(task)
        with full_precision(loc):
            covariance = torch.diag_embed(noise + diag) + factor @ factor.mT  # [..., T|1, N|1, D, D]
            if noise_factor is not None:
                covariance = covariance + noise_factor @ noise_factor.mT
            tril, _ = torch.linalg.cholesky_ex(covariance)
            precision = torch.cholesky_inverse(tril)
            query, weighted = task.query, (precision @ loc.unsqueeze(-1)).squeeze(-1)
            logits = 2 * query @ weighted.mT - (loc * weighted).sum(-1).unsqueeze(-2)
            if precision.shape[-3] > 1:  # otherwise the terms left out are the same for every class
                own = ((query.unsqueeze(-3) @ precision) * query.unsqueeze(-3)).sum(-1).mT
                logits = logits - own - 2 * tril.diagonal(dim1=-2, dim2=-1).log().sum(-1).unsqueeze(-2)
            scale = precision.diagonal(dim1=-2, dim2=-1).sum(-1).mean(-1)[..., None, None]
        return self.tau() * logits / scale
