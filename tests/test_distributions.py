"""Densities against torch.distributions, samples against densities, the mixture's gradient against the exact one."""

import pytest
import torch
from torch import distributions as td

from pyro_vsm.conjugate import conjugate_posterior
from pyro_vsm.distributions import (
    GaussianMixture,
    LowRankGaussian,
    RelaxedGaussianMixture,
)

DOUBLE = {"dtype": torch.float64}


def mixture(shared: bool, cls=GaussianMixture):
    logits = torch.randn(2, 3, 4, **DOUBLE)
    shape = (4, 5) if shared else (2, 3, 4, 5)
    return cls(logits, torch.randn(shape, **DOUBLE), torch.rand(shape, **DOUBLE) + 0.3)


@pytest.mark.parametrize("shared", [True, False])
def test_mixture_density_is_torchs(shared):
    q = mixture(shared)
    loc, scale = (t.expand(2, 3, 4, 5) for t in (q.loc, q.scale))
    reference = td.MixtureSameFamily(td.Categorical(logits=q.logits), td.Independent(td.Normal(loc, scale), 1))
    value = torch.randn(7, 2, 3, 5, **DOUBLE)
    torch.testing.assert_close(q.log_prob(value), reference.log_prob(value))
    torch.testing.assert_close(q.mean, reference.mean)
    torch.testing.assert_close(q.variance, reference.variance)


def test_mixture_density_of_narrow_components_far_apart():
    # expanded squares in float32 would be wrong by thousands of nats here, and the KL between two of them negative
    torch.manual_seed(0)
    loc, scale = 100 * torch.randn(6, 32), torch.logspace(-2.5, 0.5, 32).expand(6, 32).clone()
    logits, address = torch.randn(4, 6), torch.tensor([0, 2, 5, 1])
    value = (loc[address] + scale[address] * torch.randn(4, 32)).requires_grad_()
    exact = GaussianMixture(
        *(t.double() for t in (logits, loc.unsqueeze(0).expand(4, -1, -1), scale.expand(4, 6, 32)))
    )
    wanted = exact.log_prob(value.double())
    (gradient,) = torch.autograd.grad(wanted.sum(), value)
    found = GaussianMixture(logits, loc, scale).log_prob(value)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(torch.autograd.grad(found.sum(), value)[0], gradient, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("shared", [True, False])
def test_mixture_samples_have_its_moments(shared):
    q = mixture(shared)
    draws = q.rsample((20000,))
    error = q.variance.sqrt() / 20000**0.5
    assert ((draws.mean(0) - q.mean).abs() < 5.5 * error).all()


def test_left_out_components_are_never_drawn_and_finite_in_float32():
    logits = torch.tensor([[0.0, float("-inf"), 1.0]])
    q = GaussianMixture(logits, torch.randn(3, 1600) * 3, torch.full((3, 1600), 0.1))
    assert (q.address((2000,)) != 1).all()
    assert torch.isfinite(q.log_prob(q.rsample((10,)))).all()


def test_mixture_density_keeps_its_digits_in_float32():
    loc, scale = torch.randn(64, 1600), torch.full((64, 1600), 0.1)
    q = GaussianMixture(torch.zeros(64), loc, scale)
    p = GaussianMixture(torch.zeros(64, **DOUBLE), loc.double(), scale.double())
    value = q.rsample((50,))
    assert (q.log_prob(value) - p.log_prob(value.double())).abs().max() < 2e-3  # of log densities around 1400


@pytest.mark.parametrize("expanded", [(6, 2, 3), (2, 3)])
def test_expand(expanded):
    q = mixture(True, RelaxedGaussianMixture).expand(expanded)
    assert q.batch_shape == expanded
    assert q.rsample().shape == (*expanded, 5)
    assert q.temperature == 0.5


def low_rank(batch=(2, 3), dim=6, rank=2):
    return LowRankGaussian(
        torch.randn(*batch, dim, **DOUBLE), torch.randn(dim, rank, **DOUBLE), torch.rand(dim, **DOUBLE) + 0.2
    )


def test_low_rank_density_is_torchs():
    p = low_rank()
    reference = td.MultivariateNormal(p.loc, p.covariance_matrix)
    value = torch.randn(7, 2, 3, 6, **DOUBLE)
    torch.testing.assert_close(p.log_prob(value), reference.log_prob(value))
    torch.testing.assert_close(p.variance, reference.variance)
    assert p.expand((7, 2, 3)).rsample().shape == (7, 2, 3, 6)


def test_low_rank_samples_have_its_covariance():
    p = low_rank(batch=())
    draws = p.rsample((40000,))
    # an entry of a sample covariance has standard error sqrt((s_ii s_jj + s_ij^2) / n)
    cov = p.covariance_matrix
    error = ((cov.diagonal()[:, None] * cov.diagonal() + cov.square()) / 40000).sqrt()
    assert ((draws.T.cov() - cov).abs() < 5 * error).all()


@pytest.mark.parametrize("shots", [1, 5])
def test_conjugate_posterior_is_bayes_rule(shots):
    prior = low_rank(batch=())
    noise = torch.rand(6, **DOUBLE) + 0.1
    h = torch.randn(shots, 6, **DOUBLE)
    q = conjugate_posterior(prior.loc, prior.factor, prior.diag, h.mean(0), noise, shots)
    b_inv = torch.linalg.inv(prior.covariance_matrix)
    v = torch.linalg.inv(b_inv + shots * torch.diag(1 / noise))
    torch.testing.assert_close(q.covariance_matrix, v)
    torch.testing.assert_close(q.loc, v @ (h.sum(0) / noise + b_inv @ prior.loc))
    # log p(z) + log p(S|z) - log q(z|S) is the evidence, whatever z
    z = torch.randn(4, 6, **DOUBLE)
    joint = prior.log_prob(z) + td.Normal(z[:, None], noise.sqrt()).log_prob(h).sum((-1, -2))
    evidence = joint - q.log_prob(z)
    torch.testing.assert_close(evidence, evidence[:1].expand(4))


def test_conjugate_posterior_at_1600_dimensions_in_float32():
    entries = torch.randn(64, 1600)
    factor = ((entries - entries.mean(0)) / 8).T
    args = (
        entries.mean(0),
        factor,
        torch.full((1600,), 1e-2),
        torch.randn(5, 1600),
        torch.full((1600,), 0.5),
    )
    q = conjugate_posterior(*args, 1)
    p = conjugate_posterior(*(a.double() for a in args), 1)
    torch.testing.assert_close(q.loc.double(), p.loc, atol=2e-3, rtol=1e-3)
    value = q.rsample()
    torch.testing.assert_close(q.log_prob(value).double(), p.log_prob(value.double()), atol=0.05, rtol=1e-4)
