"""Likelihoods: the contract, and each formula written out."""

import pyro.distributions as dist
import pytest
import torch

from pyro_vsm.likelihood import LIKELIHOODS, CosineLikelihood, EuclideanLikelihood, GaussianLikelihood

from .contract import LikelihoodContract, name_of, uncovered
from .small import randomise, task

SPECS = ["euclidean", "cosine", "gaussian", "generative"]


def test_every_registered_likelihood_is_covered():
    assert not uncovered(LIKELIHOODS, SPECS)


@pytest.mark.parametrize("spec", SPECS, ids=name_of)
class TestLikelihood(LikelihoodContract):
    pass


@pytest.mark.parametrize("spec", ["gaussian", "generative"])
class TestLikelihoodWithWithinCovariance(LikelihoodContract):
    with_it = {"within_rank": 2}  # noqa: RUF012
    of_memory = {"within_rank": 2}  # noqa: RUF012


def softmax_of(logits):
    return logits.log_softmax(-1)


def test_euclidean():
    part, given, z = randomise(EuclideanLikelihood(5)), task(5, 3), torch.randn(4, 2, 3, 5)
    distance = (given.query.unsqueeze(-2) - z.unsqueeze(-3)).square().mean(-1)
    torch.testing.assert_close(softmax_of(part(z, given)), softmax_of(-part.tau() * distance))


def test_cosine():
    part, given, z = randomise(CosineLikelihood(5)), task(5, 3), torch.randn(4, 2, 3, 5)
    cosine = torch.cosine_similarity(given.query.unsqueeze(-2), z.unsqueeze(-3), dim=-1)
    torch.testing.assert_close(part(z, given), part.tau() * cosine)


@pytest.mark.parametrize("entries", [0, 3])
def test_gaussian(entries):
    """Proportional to the log density under the shrunk within-class variance, scaled to mean precision one."""
    part, given, z = randomise(GaussianLikelihood(5)), task(5, entries), torch.randn(4, 2, 3, 5)
    w = given.recall.variances[:entries].mean(0) if entries else torch.ones(5)
    s = part.noise.shrink()
    w = (w + s * w.mean()) / (1 + s) + 1e-6
    w = w * (1 / w).mean()
    density = dist.Normal(z.unsqueeze(-3), w.sqrt()).to_event(1).log_prob(given.query.unsqueeze(-2))
    torch.testing.assert_close(
        softmax_of(part(z, given)), softmax_of(2 * part.tau() * density / 5), atol=1e-5, rtol=1e-4
    )
