"""Priors of m and of z: the contract for every variant, and each equation against its plain form."""

import pyro.distributions as dist
import pytest
import torch

from pyro_vsm.distributions import GaussianMixture, LowRankGaussian
from pyro_vsm.errors import UserError
from pyro_vsm.posteriors import AmortisedPosteriorZ, ConjugatePosteriorZ
from pyro_vsm.priors import PRIORS_M, PRIORS_Z, ConditionalPriorZ, EmpiricalBayesPriorZ, MixturePriorM, VampPriorZ

from .contract import PriorMContract, PriorZContract, name_of, uncovered
from .small import memory, randomise, recall, task

M_SPECS = [
    "mixture",
    {"class_path": "mixture", "init_args": {"weights": "usage"}},
    "support",
    "standard_normal",
]
Z_SPECS = [
    "memory",
    "empirical_bayes",
    "conditional",
    "standard_normal",
    {"class_path": "vamp", "init_args": {"pseudo_inputs": 3}},
]


def test_every_registered_prior_is_covered():
    assert not uncovered(PRIORS_M, M_SPECS)
    assert not uncovered(PRIORS_Z, Z_SPECS)


@pytest.mark.parametrize("spec", M_SPECS, ids=name_of)
class TestPriorM(PriorMContract):
    pass


@pytest.mark.parametrize("spec", Z_SPECS, ids=name_of)
class TestPriorZ(PriorZContract):
    pass


def test_mixture_weights():
    """Uniform over the entries that a task may recall; by usage, proportional to the images behind them."""
    m = memory(2, 3)
    m.counts[:3] = torch.tensor([1.0, 2.0, 5.0])
    support = torch.randn(2, 1, 1, 2)
    with torch.no_grad():
        given = recall(m, support, torch.randn(2, 1, 2))
        leaves_out = m(support.mean(2), torch.tensor([[0], [2]]))
    uniform = MixturePriorM(2)(given)
    torch.testing.assert_close(uniform.logits.exp()[0, 0], torch.tensor([1 / 3] * 3 + [0.0] * 4))
    object.__setattr__(given, "recall", leaves_out)
    usage = MixturePriorM(2, weights="usage")(given).logits.exp()
    torch.testing.assert_close(usage[0, 0], torch.tensor([0, 2 / 7, 5 / 7, 0, 0, 0, 0]))
    torch.testing.assert_close(usage[1, 0], torch.tensor([1 / 3, 2 / 3, 0, 0, 0, 0, 0]))


def test_mixture_of_an_empty_memory_is_standard_normal():
    given, value = task(2, 0), torch.randn(2, 3, 2)
    law = randomise(MixturePriorM(2))(given)
    torch.testing.assert_close(law.log_prob(value), dist.Normal(0, 1).log_prob(value).sum(-1))


def test_empirical_bayes_has_the_moments_of_the_allowed_entries():
    """``N(mu_0 + rho (m - mu_0), a B + b)``, mean and covariance taken by torch over the entries that are left."""
    store = memory(3, 5)
    support, own = torch.randn(1, 2, 1, 3), torch.tensor([[1, 4]])
    given = recall(store, support, torch.randn(1, 2, 3))
    object.__setattr__(given, "recall", store(support.mean(2), own))
    prior = randomise(EmpiricalBayesPriorZ(3))
    m = torch.randn(4, 1, 2, 3)
    law = prior(m, given)
    left = store.entries[[0, 2, 3]]
    mu_0, B = left.mean(0), left.T.cov(correction=0)
    a, b, rho = prior.scale(), prior.floor(), prior.pull.sigmoid()
    torch.testing.assert_close(law.mean, mu_0 + rho * (m - mu_0))
    torch.testing.assert_close(law.covariance_matrix[0, 0], a * B + b * torch.eye(3))


def test_empirical_bayes_of_an_empty_memory():
    prior, m = randomise(EmpiricalBayesPriorZ(3)), torch.randn(2, 3, 3)
    law = prior(m, task(3, 0))
    torch.testing.assert_close(law.mean, prior.pull.sigmoid() * m)
    torch.testing.assert_close(law.variance, (1 + prior.floor()).expand(2, 3, 3))


def test_conditional_is_the_normalised_geometric_mean_over_the_queries():
    """The paper's ``mean_i KL(q || p(z|x_i,m))`` differs from the KL to the prior by a number without q in it."""
    prior, given, m = randomise(ConditionalPriorZ(2)), task(2, 3, tasks=1), torch.randn(1, 3, 2)
    law = prior(m, given)
    per_query = dist.Normal(*prior.net(m.unsqueeze(-2), given.query.unsqueeze(1), m.unsqueeze(-2))).to_event(1)
    z = torch.randn(50, 1, 3, 2)
    constant = law.log_prob(z) - per_query.log_prob(z.unsqueeze(-2)).mean(-1)
    assert (constant > 0).all()  # Hölder: a geometric mean of densities has mass below one
    torch.testing.assert_close(constant, constant[:1].expand(50, -1, -1), atol=1e-4, rtol=1e-4)


def test_vamp_is_the_posterior_averaged_over_pseudo_inputs():
    posterior = randomise(AmortisedPosteriorZ(2))
    prior = VampPriorZ(2, pseudo_inputs=3)
    prior.bind(posterior)
    given, m, z = task(2, 3), torch.randn(2, 3, 2), torch.randn(2, 3, 2)
    each = [dist.Normal(*posterior.gaussian(u.expand_as(m), m)).to_event(1).log_prob(z).exp() for u in prior.pseudo]
    torch.testing.assert_close(prior(m, given).log_prob(z).exp(), torch.stack(each).mean(0))
    assert list(prior.state_dict()) == ["pseudo"]  # the posterior belongs to the model
    with pytest.raises(UserError, match="amortised"):
        prior.bind(ConjugatePosteriorZ(2))


def test_types():
    given = task(2, 3)
    assert isinstance(MixturePriorM(2)(given), GaussianMixture)
    assert isinstance(EmpiricalBayesPriorZ(2)(torch.zeros(2, 3, 2), given), LowRankGaussian)


@pytest.mark.parametrize(
    ("registry", "name", "options"),
    [
        (PRIORS_M, "mixture", {"weights": "often"}),
        (PRIORS_Z, "vamp", {"pseudo_inputs": 0}),
        (PRIORS_Z, "empirical_bayes", {"floor": 0.0}),
        (PRIORS_Z, "empirical_bayes", {"pull": 1.0}),
    ],
)
def test_bad_options(registry, name, options):
    with pytest.raises(UserError, match="give"):
        registry.build({"class_path": name, "init_args": options}, 4)
