"""Training with z integrated out (``integrate_z``): the objective and its gradient against exact values."""

import pytest
import torch
from torch.distributions import kl_divergence
from torch.nn import functional as F

from pyro_vsm.errors import UserError
from pyro_vsm.fewshot import split_episode

from .small import randomise, vsm

CLOSED = {
    "prior_z": "empirical_bayes",
    "posterior_z": {"class_path": "conjugate", "init_args": {"residual": False}},
    "likelihood": "generative",
    "within_rank": 4,
    "integrate_z": True,
}
T, N, R, SHOT, D = 2, 3, 5, 2, 8


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    """Features ``[T, N, R, D]`` with class structure, and class ids."""
    centres = torch.randn(T, N, 1, D)
    return centres + 0.5 * torch.randn(T, N, R, D), torch.arange(T * N).view(T, N)


def filled(**options):
    model = randomise(vsm(D, **{**CLOSED, "capacity": 12, **options}), 0.3)
    labels = torch.arange(12).repeat_interleave(6)
    model.start(torch.randn(12, D).repeat_interleave(6, 0) + 0.5 * torch.randn(72, D), labels)
    return model


@pytest.mark.parametrize("use", ["off", "rote"])
def test_without_a_latent_m_it_is_the_log_probability_of_prediction(use):
    """No site is left to sample: value and gradient are exact, and those of what `predict` answers."""
    model = filled(memory_use=use)
    features, classes = batch()
    features.requires_grad_()
    parameters = [p for p in model.program.parameters() if p.requires_grad]
    loss, terms = model.loss(features, SHOT, classes, torch.tensor(1.0))
    found = torch.autograd.grad(loss, [features, *parameters], allow_unused=True)
    support, query, labels = split_episode(features, SHOT)
    task = model.task(support, query, None, classes, model.memory.consolidate(features, classes))
    logits = model.program.marginal(task)
    exact = F.cross_entropy(logits.flatten(0, 1), labels.flatten())
    wanted = torch.autograd.grad(exact, [features, *parameters], allow_unused=True)
    torch.testing.assert_close(loss, exact)
    assert "kl_z" not in terms
    for a, b in zip(found, wanted):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)
    assert sum(g is not None and bool(g.abs().sum() > 0) for g in found) >= 4


def test_with_a_latent_m_it_is_the_expected_log_probability_minus_the_divergence():
    """``E_q(m)[log p(y|x,m,S)] - beta_m KL(q(m) || p(m))``, the divergence of two Gaussians in closed form."""
    P, beta = 4000, 0.3
    model = filled(posterior_m="moment_matched", prior_m="standard_normal", particles=P, beta_m=beta)
    features, classes = batch()
    with torch.no_grad():
        loss, terms = model.loss(features, SHOT, classes, torch.tensor(1.0))
        support, query, labels = split_episode(features, SHOT)
        task = model.task(support, query, None, classes, model.pending)
        q, p = model.program.posterior_m(task), model.program.prior_m(task)
        divergence = kl_divergence(q.base_dist, p.base_dist).sum()
        with torch.random.fork_rng():
            m = q.sample((P,))
        z = model.program.posterior_z(m, task, model.program.prior_z(m, task))
        log_p = model.program.likelihood.marginal(z, task).log_softmax(-1)  # [P, T, Q, N]
        each = log_p.gather(-1, labels.expand(P, *labels.shape).unsqueeze(-1)).sum((1, 2, 3))
    exact = -(each.mean() - beta * divergence) / labels.numel()
    error = (2 * each.var() / P + (beta * 0.05 * divergence) ** 2).sqrt() / labels.numel()
    assert abs(loss - exact) < 4 * error
    torch.testing.assert_close(terms["kl_m"], divergence / (T * N), rtol=0.05, atol=0.05)


def test_a_likelihood_without_a_closed_form_is_refused():
    with pytest.raises(UserError, match="set likelihood to generative"):
        vsm(D, integrate_z=True)


def test_training_lowers_it():
    model = filled(memory_use="rote", memory_update="none")  # nothing is sampled and no entry moves
    features, classes = batch()
    optimizer = torch.optim.Adam(model.program.parameters(), 0.02)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss, _ = model.loss(features, SHOT, classes + 100, torch.tensor(1.0))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
