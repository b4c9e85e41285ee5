"""The likelihood ``p(y | x, z)``: which prototype does a query belong to."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn
from torch.nn import functional as F

from pyro_vsm.distributions import capacitance, gaussian_parts, mahalanobis_map
from pyro_vsm.networks import Positive
from pyro_vsm.noise import Noise
from pyro_vsm.precision import full_precision
from pyro_vsm.registry import Registry
from pyro_vsm.remembered import Remembered, lasting
from pyro_vsm.task import Task


class Likelihood(nn.Module, ABC):
    """Interface of ``p(y | x, z) = softmax_n(logits)``. Args: ``dim``, the feature dimension D."""

    def __init__(self, dim: int):
        super().__init__()
        self.dim = dim

    @abstractmethod
    def forward(self, z: Tensor, task: Task) -> Tensor:
        """Logits ``[..., T, Q, N]`` of the task's queries for prototypes ``z [..., T, N, D]``."""

    @property
    def closed(self) -> bool:
        """Whether z can be integrated out: a subclass says how, in :meth:`marginal`."""
        return type(self).marginal is not Likelihood.marginal

    def marginal(self, q: TorchDistribution, task: Task) -> Tensor | None:
        """Logits ``[..., T, Q, N]`` with z integrated out under q, where the model has them in closed form.

        None, as here, where it has not: probabilities are then averaged over samples of z.
        """
        return None


LIKELIHOODS: Registry[Likelihood] = Registry("likelihood", Likelihood)


def products(query: Tensor, z: Tensor) -> Tensor:
    """``<h_q, z_n>``, ``[..., T, Q, N]``: one matrix product a task; ``@`` repeats the queries for each sample."""
    outputs = z.numel() // z.shape[-1] * query.shape[-2]
    if z.is_cuda and outputs < 2**18 and z.shape[-1] % 64 == 0:
        # a few long sums would leave most of the device idle: each is taken in eight parts
        query, z = (t.unflatten(-1, (8, -1)) for t in (query, z))
        return torch.einsum("...qpd,...npd->...pqn", query, z).sum(-3)
    return torch.einsum("...nd,...qd->...qn", z, query)


def squared_length(z: Tensor) -> Tensor:
    """``|z|^2`` over the last dimension."""
    if z.is_cuda or torch.is_grad_enabled():
        return z.square().sum(-1)
    return torch.linalg.vector_norm(z, dim=-1).square()  # on a CPU without a tensor of squares


def half_distance(query: Tensor, z: Tensor) -> Tensor:
    """``-|h - z|^2 + |h|^2``, ``[..., T, Q, N]``: ``|h|^2`` is that of every class and cancels in the softmax."""
    with full_precision(z):
        return 2 * products(query, z) - squared_length(z).unsqueeze(-2)


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
            return self.tau() * products(F.normalize(task.query, dim=-1), F.normalize(z, dim=-1))


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

    def __init__(self, dim: int, *, tau: float = 5.0):
        super().__init__(dim, tau=tau)
        self._precision = Remembered(precision)

    def marginal(self, q: TorchDistribution, task: Task) -> Tensor:
        """See the interface; exact for a Gaussian q.

        Raises:
            UserError: q is not Gaussian.
        """
        loc, factor, diag = gaussian_parts(q)
        noise, noise_factor = self.noise(task)
        if lasting([diag, noise], [factor, noise_factor]):
            whole = self._precision(diag, factor, noise, noise_factor)
            with full_precision(loc):
                return self.tau() * linear_scores(task.query, loc, loc @ whole) / whole.trace()
        with full_precision(loc):
            # of W + V_n, [..., T, N, ...] or [..., T, 1, ...]; einsum does not copy what is shared by the batch
            w, sign, c, log_det = inverse(noise + diag, joined(factor, noise_factor))
            white, query = torch.einsum("...rd,...d->...r", c, loc), task.query
            weighted = w * loc + sign * torch.einsum("...rd,...r->...d", c, white)  # (W + V_n)^-1 mean_n
            logits = linear_scores(query, loc, weighted)
            if log_det.shape[-1] > 1:  # otherwise the terms left out are the same for every class
                own = torch.einsum("...qd,...nrd->...qnr", query, c).square().sum(-1)
                own = query.square() @ w.mT + sign * own
                logits = logits - own - log_det.unsqueeze(-2)
            scale = (w.sum(-1) + sign * c.square().sum((-2, -1))).mean(-1)[..., None, None]
        return self.tau() * logits / scale


def linear_scores(query: Tensor, loc: Tensor, weighted: Tensor) -> Tensor:
    """``-(h - mean_n)^T P (h - mean_n) + h^T P h``, ``[..., T, Q, N]``, with ``P mean_n`` in ``weighted``."""
    return 2 * products(query, weighted) - (loc * weighted).sum(-1).unsqueeze(-2)


def precision(diag: Tensor, factor: Tensor, noise: Tensor, noise_factor: Tensor | None) -> Tensor:
    """``(W + V)^-1``, ``[D, D]``, for covariances that are the same for all classes, tasks and samples."""
    with full_precision(diag):
        w, sign, c, _ = inverse(diag + noise, joined(factor, noise_factor))
        whole = torch.diag_embed(w) + sign * c.mT @ c
    return whole.view(whole.shape[-2:])


def joined(factor: Tensor, other: Tensor | None) -> Tensor:
    """Both factors side by side, ``[..., D, R + r]``."""
    if other is None:
        return factor
    batch = torch.broadcast_shapes(factor.shape[:-2], other.shape[:-2])
    return torch.cat([f.expand(*batch, *f.shape[-2:]) for f in (factor, other)], -1)


def inverse(diag: Tensor, factor: Tensor) -> tuple[Tensor, int, Tensor, Tensor]:
    """``(diag(d) + F F^T)^-1 = diag(w) + sign C^T C``: w ``[..., D]``, sign, C ``[..., R, D]``, log determinant.

    By Woodbury's identity (w = 1/d, sign = -1, no D x D matrix), or, where F has as many columns as rows, by the
    Cholesky factor of the whole matrix (w = 0, sign = 1).

    Args:
        diag: ``[..., D]``, positive.
        factor: ``[..., D, R]``.
    """
    batch = torch.broadcast_shapes(diag.shape[:-1], factor.shape[:-2])
    diag, factor = diag.expand(*batch, -1), factor.expand(*batch, *factor.shape[-2:])
    dim, rank = factor.shape[-2:]
    if rank < dim:
        tril, scaled = capacitance(factor, diag)
        w, sign, right, log_det = diag.reciprocal(), -1, scaled.mT, diag.log().sum(-1)
    else:
        tril, _ = torch.linalg.cholesky_ex(torch.diag_embed(diag) + factor @ factor.mT)
        eye = torch.eye(dim, device=diag.device, dtype=diag.dtype)
        w, sign, right, log_det = torch.zeros_like(diag), 1, eye.expand_as(tril), torch.zeros_like(diag[..., 0])
    c = torch.linalg.solve_triangular(tril, right, upper=False)
    return w, sign, c, log_det + 2 * tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
