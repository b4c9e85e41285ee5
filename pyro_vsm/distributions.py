"""The two densities that Pyro lacks: a mixture with an unbiased gradient, and a low-rank Gaussian that never
synchronises with the host. Both have one event dimension, the feature dimension D.
"""

from __future__ import annotations

import math

import torch
from pyro.distributions import TorchDistribution
from pyro.distributions.score_parts import ScoreParts
from torch import Size, Tensor
from torch.distributions import constraints
from torch.nn import functional as F

from pyro_vsm.errors import UserError
from pyro_vsm.precision import full_precision

LOG_2PI = math.log(2 * math.pi)


class GaussianMixture(TorchDistribution):
    r"""Mixture of diagonal Gaussians, ``sum_a w_a N(mu_a, sigma_a^2)``, with an exact density.

    A sample takes an address ``a ~ w`` and then ``mu_a + sigma_a * eps``. Its gradient is unbiased: the
    components are reparametrised (pathwise gradient), the weights use the score function of the *marginal*
    density, ``grad_w log q(m)``, which is the score of the address averaged over the addresses that could
    have produced m (Rao-Blackwell). ``Trace_ELBO`` and ``RenyiELBO`` of Pyro ask a distribution for such a
    split through ``score_parts``; :class:`pyro_vsm.objectives.EpisodeELBO` adds the leave-one-out baseline.
    ``TraceMeanField_ELBO`` and ``TraceGraph_ELBO`` do not ask, so their gradient of the weights is wrong.

    Args:
        logits: ``batch + [C]``, unnormalised log weights; ``-inf`` leaves a component out.
        loc: ``[C, D]`` shared by the batch (one matrix product a density), or ``batch + [C, D]``.
        scale: positive, shape of ``loc``.
    """

    arg_constraints = {"logits": constraints.independent(constraints.real, 1)}  # noqa: RUF012
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, logits: Tensor, loc: Tensor, scale: Tensor, validate_args: bool | None = False):
        self.logits = F.log_softmax(logits, -1)
        self.loc, self.scale = loc, scale
        self.shared = loc.dim() == 2
        batch = logits.shape[:-1] if self.shared else torch.broadcast_shapes(logits.shape[:-1], loc.shape[:-2])
        self.logits = self.logits.expand(*batch, logits.shape[-1])
        super().__init__(Size(batch), loc.shape[-1:], validate_args=validate_args)

    def expand(self, batch_shape, _instance=None) -> GaussianMixture:
        """Same density over a larger batch."""
        batch_shape = Size(batch_shape)
        if batch_shape == self.batch_shape:
            return self
        return type(self)(self.logits.expand(*batch_shape, -1), self.loc, self.scale, **self._options())

    def _options(self) -> dict:
        return {}

    def _average(self, w: Tensor, table: Tensor) -> Tensor:
        """``sum_a w_a table_a``, ``batch + [D]``, for a table of the shape of ``loc``."""
        with full_precision(w):
            return w @ table if self.shared else (w.unsqueeze(-1) * table).sum(-2)

    @property
    def mean(self) -> Tensor:
        """``batch + [D]``."""
        return self._average(self.logits.exp(), self.loc)

    @property
    def variance(self) -> Tensor:
        """``batch + [D]``: the mean of the variances plus the variance of the means."""
        mean_square = self._average(self.logits.exp(), self.scale.square() + self.loc.square())
        return (mean_square - self.mean.square()).clamp_min(0.0)

    def address(self, sample_shape=()) -> Tensor:
        """Sampled component indices, ``sample_shape + batch`` (Gumbel-max: no host synchronisation)."""
        logits = self.logits.expand(*sample_shape, *self.logits.shape)
        return (logits.detach() + _gumbel(logits)).argmax(-1)

    def _pick(self, table: Tensor, address: Tensor) -> Tensor:
        if self.shared:
            return table[address]
        table = table.expand(*address.shape, *table.shape[-2:])
        index = address[..., None, None].expand(*address.shape, 1, table.shape[-1])
        return table.gather(-2, index).squeeze(-2)

    def rsample(self, sample_shape=()) -> Tensor:
        """``sample_shape + batch + [D]``; differentiable in ``loc`` and ``scale`` only (see class)."""
        return self.at(self.address(Size(sample_shape)))

    def at(self, address: Tensor, noise: Tensor | None = None) -> Tensor:
        """``[*address.shape, D]``, sampled from the components with these indices ``sample_shape + batch``.

        ``noise`` are standard normal numbers of that shape, where they are drawn already.
        """
        loc = self._pick(self.loc, address)
        return loc + self._pick(self.scale, address) * (torch.randn_like(loc) if noise is None else noise)

    def component_log_prob(self, value: Tensor) -> Tensor:
        """``log N(value; mu_a, sigma_a^2)`` for every component, ``value.shape[:-1] + [C]``."""
        precision = self.scale.square().reciprocal()
        constant = -self.scale.log().sum(-1) - 0.5 * value.shape[-1] * LOG_2PI
        if self.shared:
            # |v - mu|^2 expanded, one matrix product; narrow components far apart would leave float32 no digit
            v, mu, p = value.double(), self.loc.double(), precision.double()
            with full_precision(v):
                cross = torch.cat([v.square(), v], -1) @ torch.cat([p, -2 * p * mu], -1).T
            square = (cross + (p * mu.square()).sum(-1)).to(value.dtype)
        else:
            square = ((value.unsqueeze(-2) - self.loc).square() * precision).sum(-1)
        return constant - 0.5 * square

    def log_prob(self, value: Tensor) -> Tensor:
        """``batch``: the exact mixture density at ``value`` (``batch + [D]``)."""
        return torch.logsumexp(self.logits + self.component_log_prob(value), -1)

    def score_parts(self, x: Tensor, *args, **kwargs) -> ScoreParts:
        """Pathwise in the components, score function in the weights (Pyro's hook for partial reparametrisation)."""
        components = self.component_log_prob(x)
        log_prob = torch.logsumexp(self.logits + components, -1)
        score = torch.logsumexp(self.logits + components.detach(), -1)
        return ScoreParts(log_prob, score, log_prob)


class RelaxedGaussianMixture(GaussianMixture):
    """The mixture with a Concrete address: low variance, biased, because a relaxed sample lies between components.

    Source: Maddison, Mnih, Teh 2017 (Concrete distribution). The density is the exact mixture's.

    Args:
        temperature: of the Concrete distribution, > 0; towards 0 the samples become exact and the gradient noisy.
    """

    def __init__(self, logits, loc, scale, temperature: float = 0.5, validate_args: bool | None = False):
        super().__init__(logits, loc, scale, validate_args=validate_args)
        self.temperature = temperature

    def _options(self) -> dict:
        return {"temperature": self.temperature}

    def rsample(self, sample_shape=()) -> Tensor:
        """``sample_shape + batch + [D]``, differentiable in everything."""
        logits = self.logits.expand(*sample_shape, *self.logits.shape)
        w = ((logits + _gumbel(logits)) / self.temperature).softmax(-1)
        loc = self._average(w, self.loc)
        return loc + self._average(w, self.scale) * torch.randn_like(loc)

    def score_parts(self, x: Tensor, *args, **kwargs) -> ScoreParts:
        """Everything is reparametrised."""
        log_prob = self.log_prob(x)
        return ScoreParts(log_prob, torch.zeros_like(log_prob), log_prob)


def _gumbel(like: Tensor) -> Tensor:
    # the floor keeps -inf + inf = NaN out
    return -torch.empty(like.shape, device=like.device, dtype=like.dtype).exponential_().clamp_min(1e-30).log()


class LowRankGaussian(TorchDistribution):
    """``N(loc, diag(d) + F F^T)`` by Woodbury's identity: exact, O(D R^2) for R columns.

    As ``torch.distributions.LowRankMultivariateNormal``, but the factor may be shared by the batch and the
    Cholesky factor is taken without the check that makes the host wait for the device.

    Args:
        loc: ``batch + [D]``.
        factor: ``[..., D, R]``, broadcastable to the batch; columns of zeros are allowed.
        diag: positive, ``[..., D]``, broadcastable to the batch.
    """

    arg_constraints = {"loc": constraints.real_vector}  # noqa: RUF012
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, loc: Tensor, factor: Tensor, diag: Tensor, validate_args: bool | None = False):
        batch = torch.broadcast_shapes(loc.shape[:-1], factor.shape[:-2], diag.shape[:-1])
        self.loc = loc.expand(*batch, loc.shape[-1])
        self.factor, self.diag = factor, diag
        super().__init__(Size(batch), loc.shape[-1:], validate_args=validate_args)

    def expand(self, batch_shape, _instance=None) -> LowRankGaussian:
        """Same density over a larger batch."""
        batch_shape = Size(batch_shape)
        if batch_shape == self.batch_shape:
            return self
        return type(self)(self.loc.expand(*batch_shape, -1), self.factor, self.diag)

    @property
    def mean(self) -> Tensor:
        """``batch + [D]``."""
        return self.loc

    @property
    def variance(self) -> Tensor:
        """``batch + [D]``: the diagonal of the covariance."""
        return (self.diag + self.factor.square().sum(-1)).expand(self.loc.shape)

    @property
    def covariance_matrix(self) -> Tensor:
        """``[..., D, D]``, for small D."""
        return torch.diag_embed(self.diag) + self.factor @ self.factor.mT

    def rsample(self, sample_shape=()) -> Tensor:
        """``sample_shape + batch + [D]``."""
        shape = Size(sample_shape) + self.loc.shape
        low = torch.randn(*shape[:-1], self.factor.shape[-1], device=self.loc.device, dtype=self.loc.dtype)
        full = torch.randn(shape, device=self.loc.device, dtype=self.loc.dtype)
        return self.loc + times(self.factor, low) + self.diag.sqrt() * full

    def log_prob(self, value: Tensor) -> Tensor:
        """``batch``: the exact density at ``value`` (``batch + [D]``)."""
        tril, scaled = capacitance(self.factor, self.diag)
        gap = value - self.loc
        white = times(torch.linalg.solve_triangular(tril, scaled.mT, upper=False), gap)
        square = (gap.square() / self.diag).sum(-1) - white.square().sum(-1)
        log_det = self.diag.log().sum(-1) + 2 * tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return -0.5 * (square + log_det + value.shape[-1] * LOG_2PI)


def times(matrix: Tensor, vector: Tensor) -> Tensor:
    """``matrix @ vector``, ``[..., A, B]`` and ``[..., B]``; a matrix shared by the batch is not copied for it."""
    with full_precision(vector):
        return torch.einsum("...ab,...b->...a", matrix, vector)


def capacitance(factor: Tensor, diag: Tensor) -> tuple[Tensor, Tensor]:
    """Cholesky factor of ``I + F^T D^-1 F`` (``[..., R, R]``) and ``D^-1 F`` (``[..., D, R]``)."""
    scaled = factor / diag.unsqueeze(-1)
    eye = torch.eye(factor.shape[-1], device=factor.device, dtype=factor.dtype)
    with full_precision(factor):
        tril, _ = torch.linalg.cholesky_ex(eye + factor.mT @ scaled)
    return tril, scaled


def mahalanobis_map(diag: Tensor, factor: Tensor) -> Tensor:
    """C ``[..., R, D]`` with ``x^T (diag(d) + F F^T)^-1 x = |x / sqrt(d)|^2 - |C x|^2`` (Woodbury's identity)."""
    tril, scaled = capacitance(factor, diag)
    return torch.linalg.solve_triangular(tril, scaled.mT, upper=False)


def gaussian_parts(p: TorchDistribution) -> tuple[Tensor, Tensor, Tensor]:
    """Mean ``[..., D]``, factor ``[..., D, R]`` and diagonal ``[..., D]`` of a Gaussian.

    Raises:
        UserError: p is neither a diagonal nor a low-rank Gaussian.
    """
    if isinstance(p, LowRankGaussian):
        return p.loc, p.factor, p.diag
    base = getattr(p, "base_dist", None)
    if isinstance(base, torch.distributions.Normal):
        return base.loc, base.loc.new_zeros(p.event_shape[0], 1), base.scale.square()
    raise UserError(
        f"a closed form (posterior_z conjugate, likelihood generative) needs a Gaussian p(z|m) and q(z|m,S), not "
        f"{type(p).__name__}; choose prior_z memory, empirical_bayes, conditional or standard_normal, and "
        "posterior_z conjugate or amortised"
    )
