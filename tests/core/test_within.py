"""The within-class covariance with its off-diagonal: kept by the memory, exact in posterior and likelihood."""

import pytest
import torch
from torch.nn import functional as F

from pyro_vsm.conjugate import conjugate_posterior
from pyro_vsm.distributions import mahalanobis_map
from pyro_vsm.likelihood import GaussianLikelihood
from pyro_vsm.memory import SemanticMemory
from pyro_vsm.posteriors import ConjugatePosteriorZ
from pyro_vsm.priors import EmpiricalBayesPriorZ
from pyro_vsm.task import Task
from pyro_vsm.within_covariance import WithinCovariance

DOUBLE = {"dtype": torch.float64}


@pytest.mark.parametrize("shots", [1, 4])
def test_conjugate_posterior_with_correlated_noise_is_bayes_rule(shots):
    D = 6
    mu, f, d = torch.randn(D, **DOUBLE), torch.randn(D, 2, **DOUBLE), torch.rand(D, **DOUBLE) + 0.1
    g, w = torch.randn(D, 3, **DOUBLE), torch.rand(D, **DOUBLE) + 0.1
    h = torch.randn(5, shots, D, **DOUBLE)
    q = conjugate_posterior(mu, f, d, h.mean(1), w, shots, g)
    b_inv = torch.linalg.inv(torch.diag(d) + f @ f.T)
    w_inv = torch.linalg.inv(torch.diag(w) + g @ g.T)
    v = torch.linalg.inv(b_inv + shots * w_inv)
    torch.testing.assert_close(q.covariance_matrix, v)
    torch.testing.assert_close(q.loc, (h.sum(1) @ w_inv + b_inv @ mu) @ v)


def test_mahalanobis_map():
    d, f, x = torch.rand(6, **DOUBLE) + 0.1, torch.randn(6, 2, **DOUBLE), torch.randn(9, 6, **DOUBLE)
    c = mahalanobis_map(d, f)
    found = (x.square() / d).sum(-1) - (x @ c.mT).square().sum(-1)
    exact = torch.einsum("ia,ab,ib->i", x, torch.linalg.inv(torch.diag(d) + f @ f.T), x)
    torch.testing.assert_close(found, exact)


def test_covariance_is_learned_and_its_factor_exact_at_full_rank():
    root = torch.randn(4, 4)
    within = WithinCovariance(4, 4, keep=0.5)
    memory = SemanticMemory(4, capacity=8, within_rank=4)
    memory.within.keep = 0.999
    for _ in range(200):
        classes = torch.stack([torch.randperm(8)[:3] for _ in range(2)])
        features = 10 * classes[..., None, None] + torch.randn(2, 3, 20, 4) @ root.T
        memory.store(memory.consolidate(features, classes))
    memory.refresh()
    exact = root @ root.T
    # about 22 000 degrees of freedom: the relative error of an entry is about 1 %
    assert (memory.within.covariance - exact).abs().max() < 0.05 * exact.diagonal().max()
    factor = memory.within.factor
    torch.testing.assert_close(factor @ factor.T, memory.within.covariance, atol=1e-4, rtol=1e-4)
    within.observe(exact)
    torch.testing.assert_close(within.covariance, exact)  # the first batch replaces the zeros


def filled(rank: int, dim: int = 5) -> tuple[SemanticMemory, Task]:
    memory = SemanticMemory(dim, capacity=8, within_rank=rank).double()
    root = torch.randn(dim, dim, **DOUBLE)
    classes = torch.arange(8).view(2, 4)
    for _ in range(3):
        centre = torch.randn(8, dim, **DOUBLE)[classes].unsqueeze(2)
        memory.store(memory.consolidate(centre + torch.randn(2, 4, 20, dim, **DOUBLE) @ root.T, classes))
    memory.refresh()
    support, query = torch.randn(2, 3, 1, dim, **DOUBLE), torch.randn(2, 7, dim, **DOUBLE)
    return memory, Task(support, query, memory(support.mean(2)))


@pytest.mark.parametrize("rank", [2, 5])
def test_gaussian_likelihood_is_the_density_under_w(rank):
    _, task = filled(rank)
    likelihood = GaussianLikelihood(5).double()
    z = torch.randn(2, 3, 5, **DOUBLE)
    diag, factor = likelihood.noise(task)
    w = torch.diag_embed(diag.squeeze(1)) + (factor @ factor.mT).squeeze(1)  # [T, D, D]
    inverse = torch.linalg.inv(w)
    gap = task.query.unsqueeze(2) - z.unsqueeze(1)
    distance = torch.einsum("tqnd,tde,tqne->tqn", gap, inverse, gap)
    exact = -likelihood.tau() * distance / inverse.diagonal(dim1=-2, dim2=-1).sum(-1)[:, None, None]
    torch.testing.assert_close(likelihood(z, task).log_softmax(-1), exact.log_softmax(-1))


def test_noise_keeps_the_memorys_diagonal():
    memory, task = filled(2)
    posterior = ConjugatePosteriorZ(5, residual=False).double()
    diag, factor = posterior.noise(task)
    whole = (diag + factor.square().sum(-1)).squeeze(1)
    w = memory.variances[:8].mean(0)
    share = 1 / (1 + posterior.noise.shrink())
    assert (whole >= share * (w + w.mean()) - 1e-4).all()  # equal but where the factor alone exceeds it


def test_an_empty_memory_means_unit_noise():
    memory = SemanticMemory(5, capacity=4, within_rank=3)
    support = torch.randn(2, 3, 1, 5)
    task = Task(support, torch.randn(2, 7, 5), memory(support.mean(2)))
    diag, factor = ConjugatePosteriorZ(5).noise(task)
    assert (factor == 0).all()
    torch.testing.assert_close(diag, torch.ones_like(diag), atol=1e-4, rtol=0)
    prior = EmpiricalBayesPriorZ(5)(torch.zeros(2, 3, 5), task)
    q = ConjugatePosteriorZ(5)(torch.zeros(2, 3, 5), task, prior)
    assert torch.isfinite(q.log_prob(q.rsample((4,)))).all()


def test_off_diagonal_noise_decides_where_the_diagonal_cannot():
    """Two prototypes equally far in each dimension; only the correlation of the noise tells which is likelier."""
    memory = SemanticMemory(2, capacity=4, within_rank=2)
    line = torch.randn(400, 1) * torch.ones(1, 2) + 0.1 * torch.randn(400, 2)
    memory.store(memory.consolidate(line.view(1, 4, 100, 2), torch.arange(4).view(1, 4)))
    memory.refresh()
    support = torch.zeros(1, 2, 1, 2)
    task = Task(support, torch.tensor([[[1.0, 1.0]]]), memory(support.mean(2)))
    z = torch.tensor([[[0.0, 0.0], [2.0, 0.0]]])  # along the line, and across it, at the same distance
    logits = GaussianLikelihood(2)(z, task)[0, 0]
    assert F.softmax(logits, -1)[0] > 0.9
