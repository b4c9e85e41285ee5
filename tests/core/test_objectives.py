"""Objectives as Pyro sees them: the value of Pyro's own, plain SVI, KL weights, training to known answers."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, RenyiELBO, Trace_ELBO
from pyro.optim import Adam
from torch import nn

from pyro_vsm.errors import UserError
from pyro_vsm.fewshot import split_episode
from pyro_vsm.model import VSMProgram
from pyro_vsm.objectives import OBJECTIVES, EpisodeELBO, ImportanceWeightedELBO, build_objective
from pyro_vsm.posteriors import AmortisedPosteriorZ, ConjugatePosteriorZ, MomentMatchedPosteriorM
from pyro_vsm.priors import EmpiricalBayesPriorZ, StandardNormalPriorM

from . import quadrature
from .small import memory, randomise, recall, task, to, vsm
from .test_exactness import Case

POSTERIORS_M = ["mixture", "moment_matched", "relaxed"]


def value_and_gradient(objective, program, given, seed=3):
    torch.manual_seed(seed)
    program.zero_grad()
    loss = objective.differentiable_loss(program.model, program.guide, given)
    loss.backward()
    grads = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in program.parameters()]
    return loss.detach(), torch.cat([g.flatten() for g in grads])


def trained(**options):
    """A randomised VSM whose memory holds the six classes, in double precision."""
    model = randomise(vsm(4, **options), 0.3)
    model.memory.store(model.memory.consolidate(torch.randn(1, 6, 3, 4), torch.arange(6).unsqueeze(0)))
    return model.double()


# --- Pyro's own objectives, for the same random numbers -------------------------------------------------------


@pytest.mark.parametrize("posterior_m", POSTERIORS_M)
@pytest.mark.parametrize("particles", [1, 4])
def test_elbo_has_the_value_of_trace_elbo(posterior_m, particles):
    """And its gradient, but for the addresses' score, where the baseline changes the estimate and not its mean."""
    model = trained(posterior_m=posterior_m, beta_z=0.3)
    model.program.beta_z = 0.3
    given = model.task(torch.randn(2, 3, 2, 4).double(), torch.randn(2, 4, 4).double(), torch.zeros(2, 4).long())
    pyros = Trace_ELBO(num_particles=particles, max_plate_nesting=2, vectorize_particles=True)
    loss, gradient = value_and_gradient(EpisodeELBO(particles), model.program, given)
    addressing, model.memory.key.weight.grad = model.memory.key.weight.grad, None
    given = model.task(given.support, given.query, given.labels)
    expected, expected_gradient = value_and_gradient(pyros, model.program, given)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradient, expected_gradient)
    same = torch.allclose(addressing, model.memory.key.weight.grad)
    assert same == (particles == 1 or posterior_m != "mixture")


def test_importance_weighted_has_the_value_of_renyi_elbo():
    """At alpha = 0 and for one task: Pyro's takes the bound of the whole batch, ours of every task."""
    model = trained(objective="importance_weighted")
    given = model.task(torch.randn(1, 3, 2, 4).double(), torch.randn(1, 4, 4).double(), torch.zeros(1, 4).long())
    torch.manual_seed(3)
    loss = ImportanceWeightedELBO(5).loss(model.model, model.guide, given)
    torch.manual_seed(3)
    renyi = RenyiELBO(alpha=0, num_particles=5, max_plate_nesting=2, vectorize_particles=True)
    assert loss == pytest.approx(renyi.loss(model.model, model.guide, given))


def test_importance_weighted_bound_is_taken_task_by_task():
    case, objective = Case(ways=1), ImportanceWeightedELBO(3)
    torch.manual_seed(0)
    trace = {}
    original = objective._differentiable_loss_particle
    objective._differentiable_loss_particle = lambda m, g: trace.update(m=m, g=g) or original(m, g)
    loss = objective.loss(case.program.model, case.program.guide, case.task(7))
    log_w = sum(s["log_prob"].sum(-1) for s in trace["m"].nodes.values() if s["type"] == "sample")
    log_w = log_w - sum(s["log_prob"].sum(-1) for s in trace["g"].nodes.values() if s["type"] == "sample")
    assert log_w.shape == (3, 7)
    assert loss == pytest.approx(-float(log_w.exp().mean(0).log().sum()))


@pytest.mark.parametrize("posterior_m", POSTERIORS_M)
def test_one_particle_of_each_objective_is_the_same(posterior_m):
    model = trained(posterior_m=posterior_m)
    given = to(task(4, 5), torch.float64)
    elbo, elbo_gradient = value_and_gradient(EpisodeELBO(1), model.program, given)
    bound, gradient = value_and_gradient(ImportanceWeightedELBO(1), model.program, given)
    torch.testing.assert_close(elbo, bound)
    if posterior_m != "mixture":  # there the signals differ: per class against per task
        torch.testing.assert_close(elbo_gradient, gradient)


# --- plain SVI ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OBJECTIVES)
def test_svi_gives_the_loss_of_the_training_step(name):
    """``pyro.infer.SVI`` with ``svi_programs`` and the model's own step: same loss, same gradient, same memory."""
    features, classes = torch.randn(2, 3, 4, 4).double(), torch.tensor([[0, 1, 7], [2, 3, 0]])
    options = {"objective": name, "particles": 3, "beta_z": 1.0, "beta_m": 1.0, "warmup": 0.0}
    model, other = trained(**options), trained(**options)
    other.load_state_dict(model.state_dict())
    torch.manual_seed(3)
    loss, _ = model.loss(features, 2, classes, torch.tensor(1.0))
    loss.backward()
    queries = split_episode(features, 2)[2].numel()

    torch.manual_seed(3)
    grads = {}
    for key, p in other.named_parameters():  # SVI zeroes the gradients after its step
        p.register_hook(lambda g, key=key: grads.update({key: grads.get(key, 0) + g / queries}))
    svi = SVI(*other.svi_programs(), Adam({"lr": 0.0}), loss=build_objective(name, 3))
    assert svi.step(features, 2, classes) == pytest.approx(float(loss.detach()) * queries)
    for (key, a), b in zip(model.named_parameters(), other.parameters()):
        if a.grad is not None:
            torch.testing.assert_close(a.grad, grads[key])
        assert pyro.get_param_store()[f"vsm$$${key}"] is b
    model.after_step()
    other.after_step()
    for name_, buffer in model.memory.named_buffers():
        assert torch.equal(buffer, other.memory.get_buffer(name_)), name_


def test_svi_with_pyros_trace_elbo_trains():
    features, classes = torch.randn(2, 3, 4, 4).double(), torch.tensor([[0, 1, 5], [2, 3, 0]])
    model = trained(particles=3)
    torch.manual_seed(3)
    expected = float(model.loss(features, 2, classes, torch.tensor(1.0))[0].detach())
    torch.manual_seed(3)
    pyros = Trace_ELBO(num_particles=3, max_plate_nesting=2, vectorize_particles=True)
    svi = SVI(*model.svi_programs(), Adam({"lr": 0.01}), loss=pyros)
    losses = [svi.step(features, 2, classes) for _ in range(30)]
    assert losses[0] == pytest.approx(expected * 12)
    assert sum(losses[-5:]) < sum(losses[:5])


# --- KL weights -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("posterior_m", POSTERIORS_M)
def test_kl_weights_scale_the_latent_terms_and_nothing_else(posterior_m):
    """For fixed random numbers, loss and gradient are ``-likelihood + beta_z KL_z + beta_m KL_m``, 0 included."""
    model = trained(posterior_m=posterior_m)
    program, objective, given = model.program, EpisodeELBO(3), to(task(4, 5), torch.float64)

    def at(beta_z, beta_m):
        program.beta_z, program.beta_m = beta_z, beta_m
        return value_and_gradient(objective, program, given)

    base, z, m = at(0.0, 0.0), at(1.0, 0.0), at(0.0, 1.0)
    for beta_z, beta_m in [(1.0, 1.0), (0.3, 0.7), (2.5, 0.0), (0.0, 0.01)]:
        tensors = tuple(torch.tensor(b, dtype=torch.float64) if b else b for b in (beta_z, beta_m))
        for weights in [(beta_z, beta_m), tensors]:
            for got, b, bz, bm in zip(at(*weights), base, z, m):
                torch.testing.assert_close(got, b + beta_z * (bz - b) + beta_m * (bm - b), atol=1e-8, rtol=1e-6)


def test_kl_weights_in_the_importance_weighted_bound():
    """``log w`` is likelihood minus the weighted log ratios."""
    model, objective, given = trained(), ImportanceWeightedELBO(3), to(task(4, 5), torch.float64)
    program, seen = model.program, {}
    original = objective._differentiable_loss_particle
    objective._differentiable_loss_particle = lambda m, g: seen.update(m=m, g=g) or original(m, g)
    for beta_z, beta_m in [(0.3, 0.7), (0.0, 0.5), (0.0, 0.0), (1.0, 0.0)]:
        program.beta_z, program.beta_m = beta_z, beta_m
        loss, gradient = value_and_gradient(objective, program, given)
        p, q = seen["m"].nodes, seen["g"].nodes
        ratio = {s: (q[s]["unscaled_log_prob"] - p[s]["unscaled_log_prob"]).sum(-1) for s in "mz"}
        log_w = p["y"]["unscaled_log_prob"].sum(-1) - beta_z * ratio["z"] - beta_m * ratio["m"]
        torch.testing.assert_close(loss, -log_w.exp().mean(0).log().sum())
        assert torch.isfinite(gradient).all()


@pytest.mark.parametrize(("beta_z", "beta_m"), [(0.0, 1.0), (1.0, 0.0), (0.0, 0.0)])
def test_a_masked_term_gives_its_prior_no_gradient(beta_z, beta_m):
    model = trained()
    model.program.beta_z, model.program.beta_m = beta_z, beta_m
    value_and_gradient(EpisodeELBO(2), model.program, to(task(4, 5), torch.float64))
    for prior, beta in ((model.program.prior_z, beta_z), (model.program.prior_m, beta_m)):
        assert any(p.grad is not None and p.grad.any() for p in prior.parameters()) == (beta > 0)
    # the likelihood still trains the guide, the addresses among it
    assert all(p.grad.any() for p in model.program.posterior_z.parameters())


def test_the_training_step_warms_the_weights_up():
    model = trained(beta_z=0.4, beta_m=0.2, warmup=0.5)
    features, classes = torch.randn(2, 3, 4, 4).double(), torch.tensor([[0, 1, 5], [2, 3, 0]])
    for progress, share in [(0.0, 1e-6), (0.25, 0.5), (0.5, 1.0), (1.0, 1.0)]:
        model.loss(features, 2, classes, torch.tensor(progress))
        assert float(model.program.beta_z) == pytest.approx(0.4 * share)
        assert float(model.program.beta_m) == pytest.approx(0.2 * share)


# --- what is logged -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OBJECTIVES)
def test_terms_are_the_unweighted_parts(name):
    model, given = trained(), to(task(4, 5, tasks=3), torch.float64)
    objective = build_objective(name, 4)
    model.program.beta_z, model.program.beta_m = 0.1, 0.0
    value_and_gradient(objective, model.program, given)
    terms = dict(objective.terms)
    assert set(terms) == {"log_likelihood", "kl_m", "kl_z", "elbo"}
    assert not any(t.requires_grad for t in terms.values())
    queries, ways = 4, 3
    torch.testing.assert_close(
        terms["elbo"], queries * terms["log_likelihood"] - ways * (terms["kl_m"] + terms["kl_z"])
    )
    model.program.beta_z, model.program.beta_m = 1.0, 1.0
    loss, _ = value_and_gradient(EpisodeELBO(4), model.program, given)
    torch.testing.assert_close(terms["elbo"], -loss / 3)


def test_loss_is_a_number_without_graph():
    case = Case()
    loss = EpisodeELBO(2).loss(case.program.model, case.program.guide, case.task())
    assert isinstance(loss, float)
    torch.manual_seed(1)
    expected = EpisodeELBO(2).differentiable_loss(case.program.model, case.program.guide, case.task())
    torch.manual_seed(1)
    assert EpisodeELBO(2).loss(case.program.model, case.program.guide, case.task()) == pytest.approx(
        float(expected.detach())
    )


def test_the_loss_of_a_training_step_is_per_query():
    model = trained(particles=2)
    features, classes = torch.randn(2, 3, 4, 4).double(), torch.tensor([[0, 1, 5], [2, 3, 0]])
    loss, terms = model.loss(features, 1, classes, torch.tensor(1.0))
    torch.testing.assert_close(loss.detach(), -terms["elbo"] * 2 / (2 * 9))
    assert torch.equal(terms["loss"], loss.detach())


def test_bad_objectives():
    with pytest.raises(UserError, match="at least 1"):
        EpisodeELBO(0)
    with pytest.raises(UserError, match="choose from elbo"):
        build_objective("elb", 3)


# --- training to a known answer -------------------------------------------------------------------------------


class Regression(VSMProgram):
    """The factors of the program around a likelihood that makes everything Gaussian: ``h_k ~ N(z, W)``."""

    noise = 0.4

    def model(self, task):
        tasks, classes, _ = self._plates(task)
        with tasks, classes:
            m = pyro.sample("m", self.prior_m(task))
            z = pyro.sample("z", self.prior_z(m, task))
            law = dist.Normal(z.unsqueeze(-2), self.noise**0.5).expand(z.shape[:-1] + task.support.shape[-2:])
            pyro.sample("h", law.to_event(2), obs=task.support)


class KnownNoise(ConjugatePosteriorZ):
    """The conjugate posterior with the true noise."""

    def within(self, task):
        return torch.full((1, 1, self.dim), Regression.noise, dtype=task.support.dtype), None


@pytest.mark.parametrize(("name", "exact_z"), [("elbo", True), ("importance_weighted", True), ("elbo", False)])
def test_training_recovers_the_posterior_of_a_linear_gaussian_model(name, exact_z):
    """``m ~ N(0,1), z|m ~ N(mu_0 + rho (m - mu_0), v), h_k|z ~ N(z, W)``: posteriors of m and of z|m, evidence.

    With the exact q(z|m,S) the bound at the optimum is the evidence for every single sample; with a network of its
    own, z has to be learned too.
    """
    D, copies = 2, 128  # of one task, for less noise
    support = torch.randn(1, 1, 3, D).expand(copies, -1, -1, -1)
    given = to(recall(memory(D, 1), support, torch.randn(copies, 1, D)), torch.float64)
    prior_z = EmpiricalBayesPriorZ(D, pull=0.7, floor=0.5).double().requires_grad_(False)
    posterior_z = KnownNoise(D, residual=False) if exact_z else AmortisedPosteriorZ(D, hidden=16, log_sigma=-1.0)
    program = Regression(
        StandardNormalPriorM(D), prior_z, MomentMatchedPosteriorM(D, hidden=4), posterior_z, nn.Identity(), _Latent()
    ).double()

    # the answer, by Gaussian algebra for each dimension: mean_k h_k | m ~ N(mu_0 + rho (m - mu_0), v + W/K)
    mu_0, rho, v = given.recall.entries[0], prior_z.pull.sigmoid(), prior_z.floor()
    mean, s = given.support[0, 0].mean(0), v + Regression.noise / 3
    precision = 1 + rho**2 / s
    m_mean, m_sd = rho * (mean - (1 - rho) * mu_0) / s / precision, precision**-0.5
    evidence = dist.MultivariateNormal(
        ((1 - rho) * mu_0).unsqueeze(-1).expand(D, 3),
        (rho**2 + v) * torch.ones(3, 3, dtype=torch.float64) + Regression.noise * torch.eye(3, dtype=torch.float64),
    )
    evidence = evidence.log_prob(given.support[0, 0].T).sum()

    objective, optimiser = build_objective(name, 4), torch.optim.Adam(program.parameters(), 0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 200)
    for _ in range(200):
        optimiser.zero_grad()
        objective.differentiable_loss(program.model, program.guide, given).backward()
        optimiser.step()
        schedule.step()

    q_m = program.posterior_m(given)
    tolerance = 0.03 if exact_z else 0.06
    torch.testing.assert_close(q_m.mean[0, 0], m_mean, atol=tolerance, rtol=0)
    torch.testing.assert_close(q_m.stddev[0, 0], m_sd.expand(D), atol=tolerance, rtol=0)
    bounds = torch.tensor([-objective.loss(program.model, program.guide, given) / copies for _ in range(20)])
    assert (bounds - evidence).abs().max() < (0.01 if exact_z else 0.05)
    # z given m: precision-weighted, for m over its posterior
    m = m_mean + m_sd * torch.linspace(-1.5, 1.5, 7, dtype=torch.float64).reshape(7, 1, 1, 1)
    m = m.expand(7, copies, 1, D)
    q_z = program.posterior_z(m, given, prior_z(m, given))
    z_precision = 1 / v + 3 / Regression.noise
    z_mean = ((mu_0 + rho * (m - mu_0)) / v + 3 * mean / Regression.noise) / z_precision
    torch.testing.assert_close(q_z.mean, z_mean, atol=1e-9 if exact_z else 0.06, rtol=0)
    torch.testing.assert_close(
        q_z.variance.sqrt(), (z_precision**-0.5).expand(q_z.mean.shape), atol=1e-9 if exact_z else 0.05, rtol=0
    )


class _Latent(nn.Module):
    latent, closed, shuffled = True, False, False


def test_training_tightens_the_bound_of_a_real_task():
    """Any guide's bound stays below the exact evidence, and training the guide raises it (quadrature says both)."""
    case = Case(ways=1)
    case.program.prior_m.requires_grad_(False)
    case.program.prior_z.requires_grad_(False)
    case.program.likelihood.requires_grad_(False)
    with torch.no_grad():
        evidence = quadrature.evidence(case.program, case.task(), (60, 60))
        before = quadrature.elbo(case.program, case.task(), (22, 12))
    guide = [p for p in case.parameters() if p.requires_grad and p is not case.entries]
    optimiser = torch.optim.Adam(guide, 0.03)
    for _ in range(150):
        optimiser.zero_grad()
        EpisodeELBO(8).differentiable_loss(case.program.model, case.program.guide, case.task(4)).backward()
        optimiser.step()
    with torch.no_grad():
        after = quadrature.elbo(case.program, case.task(), (26, 16))
    assert before < after < evidence
    assert evidence - after < 0.2 * (evidence - before)
