"""Samples for averages: each by its own distribution, together with less noise than independent ones."""

import os
import signal

import pyro.distributions as dist
import pytest
import torch

from pyro_vsm.distributions import GaussianMixture, LowRankGaussian, RelaxedGaussianMixture
from pyro_vsm.normals import CHUNK, normals
from pyro_vsm.sampling import pair, spread, strata

DOUBLE = {"dtype": torch.float64}

SYMMETRIC = {
    "normal": lambda: dist.Normal(torch.randn(2, 3, 5, **DOUBLE), torch.rand(2, 3, 5, **DOUBLE) + 0.3).to_event(1),
    "low rank": lambda: LowRankGaussian(
        torch.randn(2, 3, 5, **DOUBLE), torch.randn(3, 5, 2, **DOUBLE), torch.rand(5, **DOUBLE) + 0.3
    ),
    "delta": lambda: dist.Delta(torch.randn(2, 3, 5, **DOUBLE), event_dim=1),
}


@pytest.mark.parametrize("kind", SYMMETRIC)
def test_of_a_pair_both_are_as_likely_and_their_middle_is_the_mean(kind):
    q = SYMMETRIC[kind]().expand((7, 2, 3))
    z, other = pair(q)
    torch.testing.assert_close((z + other) / 2, q.mean.expand(7, 2, 3, 5))
    torch.testing.assert_close(q.log_prob(other), q.log_prob(z))


def test_a_pair_of_a_skewed_distribution_is_independent():
    q = dist.Gamma(torch.full((2000, 3), 0.5), torch.ones(2000, 3)).to_event(1)
    z, other = pair(q)
    assert (other > 0).all()
    assert abs(torch.corrcoef(torch.stack([z.flatten(), other.flatten()]))[0, 1]) < 0.1


@pytest.mark.parametrize("number", [1, 7, 50])
def test_strata_draw_each_component_as_often_as_its_weight_says(number):
    logits = torch.randn(4, 3, 10)
    logits[..., 2] = -torch.inf
    logits[..., 9] = -torch.inf
    times = torch.nn.functional.one_hot(strata(logits, number), 10).sum(0)
    assert times.shape == (4, 3, 10)
    expected = number * logits.softmax(-1)
    # of the components up to each, one more or less where a part of the cumulative distribution lies across
    assert ((times.cumsum(-1) - expected.cumsum(-1)).abs() < 1 + 1e-4).all()
    assert (times[..., [2, 9]] == 0).all()


def test_weights_that_are_nan_give_indices_that_are_there():
    """The average then is NaN, which evaluation reports; an index that is not there would end in a traceback."""
    assert (strata(torch.full((2, 5), torch.nan), 3) < 5).all()


def test_indices_of_strata_have_the_right_weights_one_by_one_and_do_not_depend_on_each_other():
    w = torch.tensor([0.1, 0.2, 0.3, 0.4], **DOUBLE)
    index = torch.stack([strata(w.log().expand(2, 4), 3) for _ in range(20000)])  # [repetitions, 3, 2]
    for i in range(3):
        share = torch.bincount(index[:, i, 0], minlength=4) / 20000
        assert ((share - w).abs() < 5 * (w * (1 - w) / 20000).sqrt()).all()
        both = torch.bincount(4 * index[:, i, 0] + index[:, i, 1], minlength=16).view(4, 4) / 20000
        joint = w[:, None] * w
        assert ((both - joint).abs() < 5 * (joint * (1 - joint) / 20000).sqrt()).all()


def test_an_average_over_strata_has_the_expectation_and_less_noise():
    logits = torch.randn(8, **DOUBLE)
    q = GaussianMixture(logits, 3 * torch.randn(8, 2, **DOUBLE), torch.full((8, 2), 0.1, **DOUBLE))
    averages = torch.stack([torch.cat(list(spread(q, 25, 10))).mean(0) for _ in range(2000)])
    independent = q.expand((2000, 25))().mean(1)
    error = averages.std(0) / 2000**0.5
    assert ((averages.mean(0) - q.mean).abs() < 5 * error).all()
    assert (averages.var(0) < 0.2 * independent.var(0)).all()


def test_what_is_no_plain_mixture_is_spread_as_it_draws_itself():
    loc, scale = torch.randn(4, 5, **DOUBLE), torch.rand(4, 5, **DOUBLE)
    for q in (
        RelaxedGaussianMixture(torch.randn(2, 3, 4, **DOUBLE), loc, scale),
        dist.Normal(torch.randn(2, 3, 5, **DOUBLE), 1.0).to_event(1),
    ):
        torch.manual_seed(0)
        parts = list(spread(q, 7, 4))
        torch.manual_seed(0)
        assert [len(p) for p in parts] == [4, 3]
        torch.testing.assert_close(torch.cat(parts), torch.cat([q.expand((n, 2, 3))() for n in (4, 3)]))


# --- many normal numbers on a CPU -----------------------------------------------------------------------------------


def drawn(shape, threads=None):
    torch.manual_seed(3)
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        return normals(shape, torch.empty(0))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("shape", [(3, 5), (5, CHUNK // 2 + 7)])
def test_normals_are_standard_normal_and_independent_chunk_by_chunk(shape):
    z = drawn(shape)
    assert z.shape == shape
    if z.numel() > CHUNK:
        parts = z.flatten().split(CHUNK)
        assert [len(p) for p in parts] == [CHUNK, CHUNK, CHUNK // 2 + 35]
        for part in parts:  # five standard errors
            assert abs(part.mean()) < 5 / len(part) ** 0.5
            assert abs(part.var() - 1) < 5 * (2 / len(part)) ** 0.5
            assert abs((part.abs() < 1).float().mean() - 0.6827) < 5 * (0.217 / len(part)) ** 0.5
        assert abs((parts[0] * parts[1]).mean()) < 5 / CHUNK**0.5


def test_normals_follow_the_seed_and_not_the_threads():
    shape = (3, CHUNK)
    assert torch.equal(drawn(shape, 1), drawn(shape, 2))
    first = drawn(shape)
    assert not torch.equal(first, normals(shape, torch.empty(0)))  # the generator has moved on


def test_normals_have_the_type_asked_for():
    assert normals((3 * CHUNK,), torch.empty(0, dtype=torch.float64)).dtype == torch.float64


def test_pairs_without_a_gradient_are_those_with_one():
    loc, scale = torch.randn(4, 3), torch.rand(3, requires_grad=True)
    pairs = []
    for grad in (True, False):
        torch.manual_seed(0)
        with torch.set_grad_enabled(grad):
            pairs.append(pair(dist.Normal(loc, scale).to_event(1).expand((2, 4))))
    for a, b in zip(*pairs):
        torch.testing.assert_close(a, b)
    assert torch.autograd.grad(pairs[0][0].sum(), scale)[0].shape == (3,)


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_normals_in_every_mode(mode):
    with mode():
        assert torch.isfinite(normals((3 * CHUNK,), torch.empty(0)).mul_(2)).all()


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_normals_after_a_fork():
    normals((3 * CHUNK,), torch.empty(0))
    child = os.fork()
    if child == 0:  # without the threads of its parent
        signal.alarm(20)
        torch.set_num_threads(1)
        normals((3 * CHUNK,), torch.empty(0))
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
