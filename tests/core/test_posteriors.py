"""Posteriors of m and of z: the contract for every variant, and each equation against its plain form."""

import math

import pyro.distributions as dist
import pytest
import torch
from scipy import stats

from pyro_vsm.distributions import LowRankGaussian
from pyro_vsm.errors import UserError
from pyro_vsm.networks import ResidualGaussian
from pyro_vsm.posteriors import (
    POSTERIORS_M,
    POSTERIORS_Z,
    AmortisedPosteriorZ,
    ConjugatePosteriorZ,
    DeterministicPosteriorZ,
    MixturePosteriorM,
    MomentMatchedPosteriorM,
    RelaxedPosteriorM,
    gaussian_parts,
)
from pyro_vsm.priors import EmpiricalBayesPriorZ, MemoryPriorZ, VampPriorZ

from . import statistics
from .contract import PosteriorMContract, PosteriorZContract, name_of, uncovered
from .small import narrow, randomise, task, to

M_SPECS = ["mixture", "moment_matched", "relaxed"]
Z_SPECS = [
    "amortised",
    "conjugate",
    {"class_path": "conjugate", "init_args": {"residual": False}},
    "deterministic",
]


def test_every_registered_posterior_is_covered():
    assert not uncovered(POSTERIORS_M, M_SPECS)
    assert not uncovered(POSTERIORS_Z, Z_SPECS)


@pytest.mark.parametrize("spec", M_SPECS, ids=name_of)
class TestPosteriorM(PosteriorMContract):
    def follows(self, spec):
        return spec != "relaxed"  # its samples are relaxed, its density is the mixture's: test_relaxed below


@pytest.mark.parametrize("spec", Z_SPECS, ids=name_of)
class TestPosteriorZ(PosteriorZContract):
    pass


class UnderEmpiricalBayes(PosteriorZContract):
    """With a prior that is not diagonal."""

    with_it = {"prior_z": "empirical_bayes"}  # noqa: RUF012

    def build(self, spec, dim):
        part = POSTERIORS_Z.build(narrow("posterior_z", spec), dim)
        part.prior = EmpiricalBayesPriorZ(dim)
        return randomise(part)


@pytest.mark.parametrize("spec", Z_SPECS, ids=name_of)
class TestPosteriorZUnderEmpiricalBayes(UnderEmpiricalBayes):
    pass


@pytest.mark.parametrize("spec", [s for s in Z_SPECS if name_of(s) == "conjugate"], ids=name_of)
class TestPosteriorZWithWithinCovariance(UnderEmpiricalBayes):
    """And with noise that is not diagonal either."""

    with_it = {"prior_z": "empirical_bayes", "within_rank": 2}  # noqa: RUF012
    of_memory = {"within_rank": 2}  # noqa: RUF012


def test_mixture_has_the_addressing_weights():
    given = task(2, 3)
    law = MixturePosteriorM(2)(given)
    torch.testing.assert_close(law.logits, given.recall.log_address)
    torch.testing.assert_close(law.loc[:3], given.recall.entries[:3])  # mu_m(M_a) starts at M_a


def test_moment_matched_has_the_moments_of_the_mixture():
    given = task(2, 3)
    mixture = MixturePosteriorM(2)
    one = MomentMatchedPosteriorM(2)
    one.load_state_dict(randomise(mixture).state_dict())
    torch.testing.assert_close(one(given).mean, mixture(given).mean)
    torch.testing.assert_close(one(given).variance, mixture(given).variance)


@pytest.mark.parametrize(("temperature", "follows"), [(0.01, True), (0.5, False)])
def test_relaxed_samples_follow_the_mixture_only_at_low_temperature(temperature, follows):
    """The documented bias of ``relaxed``: between the entries it draws what the mixture never draws."""
    given = to(task(1, 3, tasks=1, ways=1), torch.float64)
    given.recall.values[:3] = torch.tensor([[-3.0], [0.0], [3.0]])
    given.recall.log_address[..., :3] = -math.log(3)
    q = RelaxedPosteriorM(1, temperature=temperature).double()(given)
    exact = MixturePosteriorM(1).double()
    draws = q.rsample((4000,)).detach().flatten()
    weights, sigma = q.logits.exp()[0, 0], q.scale[:, 0]
    cdf = (weights * dist.Normal(q.loc[:, 0], sigma).cdf(draws.unsqueeze(-1))).sum(-1).detach()
    p = stats.kstest(cdf.numpy(), "uniform").pvalue
    assert (p > statistics.ALPHA) == follows
    # the density is the mixture's, whatever the temperature
    exact.load_state_dict(RelaxedPosteriorM(1).state_dict())
    value = torch.randn(1, 1, 1).double()
    torch.testing.assert_close(q.log_prob(value), exact(given).log_prob(value))


def test_amortised_starts_at_the_prototype():
    given, m = task(2, 3), torch.randn(2, 3, 2)
    law = AmortisedPosteriorZ(2, log_sigma=-1.5)(m, given, None)
    torch.testing.assert_close(law.mean, given.support.mean(2))
    torch.testing.assert_close(law.stddev, torch.full((2, 3, 2), -1.5).exp())


def test_deterministic_starts_at_the_prototype():
    given = task(2, 3)
    z = DeterministicPosteriorZ(2)(torch.randn(2, 3, 2), given, None).sample()
    torch.testing.assert_close(z, given.support.mean(2))


@pytest.mark.parametrize("shots", [1, 5])
@pytest.mark.parametrize("prior", [MemoryPriorZ, EmpiricalBayesPriorZ])
def test_conjugate_is_bayes_rule(prior, shots):
    """``log p(z|m) + sum_k log N(h_k; z, W) - log q(z|m,S)`` does not depend on z: it is the evidence."""
    given = to(task(3, 4, shots=shots), torch.float64)
    p, q = randomise(prior(3)).double(), randomise(ConjugatePosteriorZ(3, residual=False)).double()
    m = torch.randn(2, 3, 3, dtype=torch.float64)
    noise, _ = q.within(given)
    z = 2 * torch.randn(20, 2, 3, 3, dtype=torch.float64)
    support = dist.Normal(z.unsqueeze(-2), noise.unsqueeze(-2).sqrt()).log_prob(given.support).sum((-1, -2))
    evidence = p(m, given).log_prob(z) + support - q(m, given, p(m, given)).log_prob(z)
    torch.testing.assert_close(evidence, evidence[:1].expand(20, -1, -1))


def test_conjugate_noise_is_the_shrunk_within_class_variance():
    q, given = ConjugatePosteriorZ(3, noise=0.5), task(3, 4)
    within = given.recall.variances[:4].mean(0)
    torch.testing.assert_close(
        q.within(given)[0][0, 0], 0.25 * within + 0.25 * within.mean() + 1e-6, atol=1e-5, rtol=1e-4
    )
    torch.testing.assert_close(q.within(task(3, 0))[0][0, 0], torch.full((3,), 0.5), atol=1e-5, rtol=1e-5)


def test_conjugate_needs_a_gaussian_prior():
    posterior = AmortisedPosteriorZ(2)
    prior = VampPriorZ(2)
    prior.bind(posterior)
    given, m = task(2, 3), torch.zeros(2, 3, 2)
    with pytest.raises(UserError, match="needs a Gaussian p"):
        ConjugatePosteriorZ(2)(m, given, prior(m, given))


def test_gaussian_parts_of_a_diagonal_gaussian():
    loc, scale = torch.randn(4), torch.rand(4) + 0.1
    law = LowRankGaussian(*gaussian_parts(dist.Normal(loc, scale).to_event(1)))
    value = torch.randn(5, 4)
    torch.testing.assert_close(law.log_prob(value), dist.Normal(loc, scale).to_event(1).log_prob(value))


def test_bad_options():
    with pytest.raises(UserError, match="positive"):
        RelaxedPosteriorM(2, temperature=0.0)
    with pytest.raises(UserError, match="above 0"):
        ConjugatePosteriorZ(2, noise=-1.0)


def test_networks_give_the_same_with_and_without_a_gradient():
    """Without one sigma is computed in place; its bounds hold all the same."""
    torch.manual_seed(0)
    net = ResidualGaussian(4, hidden=8)
    for layer in (net.mean, net.log_sigma):
        torch.nn.init.normal_(layer.weight, 0, 20.0)
    start = torch.randn(50, 4)
    mean, sigma = (value.detach() for value in net(start, start))
    with torch.no_grad():
        other_mean, other_sigma = net(start, start)
    torch.testing.assert_close(other_mean, mean)
    torch.testing.assert_close(other_sigma, sigma)
    assert sigma.min() == pytest.approx(math.exp(-6), rel=1e-5)
    assert sigma.max() == pytest.approx(math.exp(2), rel=1e-5)
