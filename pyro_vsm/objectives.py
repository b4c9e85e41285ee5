"""Objectives: Pyro ELBOs without host synchronisation, with a leave-one-out baseline, one value a batch of tasks."""

from __future__ import annotations

import math
from typing import Any

import torch
from pyro.distributions.util import is_identically_zero
from pyro.infer import Trace_ELBO
from pyro.infer.trace_elbo import _compute_log_r
from torch import Tensor

from pyro_vsm.errors import UserError

# dimensions of the plates, from the right: classes or queries, tasks, particles
PARTICLES = -3


class EpisodeELBO(Trace_ELBO):
    r"""``E_q[log p(y|x,z)] - beta_z KL(q(z) || p(z)) - beta_m KL(q(m) || p(m))``, summed over tasks.

    As :class:`pyro.infer.Trace_ELBO` with ``vectorize_particles=True``, with three differences: nothing makes the
    host wait for the device; score-function terms (the addresses of q(m|M,S)) get the leave-one-out mean over
    the other particles as a baseline, which is unbiased and cuts the variance; and the unweighted terms are kept in
    :attr:`terms` for the log.

    Args:
        particles: samples of (m, z) a step, >= 1.

    Raises:
        UserError: particles < 1.
    """

    def __init__(self, particles: int = 1):
        if particles < 1:
            raise UserError(f"objective: particles={particles}; give at least 1")
        super().__init__(num_particles=particles, max_plate_nesting=2, vectorize_particles=True)
        self.terms: dict[str, Tensor] = {}

    def differentiable_loss(self, model, guide, *args, **kwargs) -> Tensor:
        """Minus the objective, a scalar whose gradient is the estimator's."""
        (traces,) = self._get_traces(model, guide, args, kwargs)
        self.terms = unweighted_terms(*traces)
        loss, surrogate = self._differentiable_loss_particle(*traces)
        return (loss + (surrogate - surrogate.detach())) / self.num_particles

    @torch.no_grad()
    def loss(self, model, guide, *args, **kwargs) -> float:
        """Minus the objective, as a number (this waits for the device)."""
        return self.differentiable_loss(model, guide, *args, **kwargs).item()

    def _differentiable_loss_particle(self, model_trace, guide_trace) -> tuple[Tensor, Tensor]:
        """Minus the objective and the surrogate with its gradient, summed over the particles (Pyro's hook)."""
        log_p = _total(model_trace)
        surrogate = log_p
        log_r = _compute_log_r(model_trace, guide_trace)
        for site in _latents(guide_trace):
            _, score, entropy = site["score_parts"]
            if not is_identically_zero(entropy):
                surrogate = surrogate - entropy.sum()
            if not is_identically_zero(score):
                signal = log_r.sum_to(site["cond_indep_stack"])
                surrogate = surrogate + (_centred(signal, self.num_particles) * score).sum()
        return (_total(guide_trace) - log_p).detach(), -surrogate


class ImportanceWeightedELBO(EpisodeELBO):
    r"""``sum_t log 1/P sum_p w_tp`` with ``w = p(y,z,m) / q(z,m)`` of task t (Burda, Grosse, Salakhutdinov 2016).

    A tighter bound of log p(y|x) a task, rising with the number of particles P. Score-function terms use the
    leave-one-out signal of VIMCO (Mnih, Rezende 2016).
    """

    def _differentiable_loss_particle(self, model_trace, guide_trace) -> tuple[Tensor, Tensor]:
        P = self.num_particles
        log_w = _by_task(model_trace, P) - _by_task(guide_trace, P)  # [P, T]
        bound = log_w.logsumexp(0) - math.log(P)  # [T]
        surrogate = bound.sum()
        for site in _latents(guide_trace):
            score = site["score_parts"].score_function
            if not is_identically_zero(score):
                signal = (bound - _bound_of_others(log_w)).detach() if P > 1 else bound.detach()
                surrogate = surrogate + (signal * _sum_to_task(score, P)).sum()
        return -bound.detach().sum() * P, -surrogate * P  # Pyro divides by P


OBJECTIVES = {"elbo": EpisodeELBO, "importance_weighted": ImportanceWeightedELBO}


def build_objective(name: str, particles: int) -> EpisodeELBO:
    """The objective called ``name``.

    Raises:
        UserError: unknown name.
    """
    if name not in OBJECTIVES:
        raise UserError(f"objective: there is none called {name!r}; choose from {', '.join(OBJECTIVES)}")
    return OBJECTIVES[name](particles)


def unweighted_terms(model_trace, guide_trace) -> dict[str, Tensor]:
    """What the objective is made of, without KL weights: detached scalars.

    ``log_likelihood``: nats a query. ``kl_<site>``: nats a class, estimated by ``log q - log p``. ``elbo``: nats a
    task, the evidence lower bound whatever the objective.
    """
    terms: dict[str, Tensor] = {}
    elbo: Any = 0.0  # no tensor of the CPU, which a captured step could not read
    for name, site in model_trace.nodes.items():
        if site["type"] != "sample":
            continue
        log_p = site["unscaled_log_prob"].detach()  # [particles, tasks, classes or queries]
        if site["is_observed"]:
            terms["log_likelihood"] = log_p.mean()
            elbo = elbo + log_p.sum(-1).mean()
        else:
            kl = guide_trace.nodes[name]["unscaled_log_prob"].detach() - log_p
            terms[f"kl_{name}"] = kl.mean()
            elbo = elbo - kl.sum(-1).mean()
    return {**terms, "elbo": elbo}


def _latents(trace):
    return [s for s in trace.nodes.values() if s["type"] == "sample" and not s["is_observed"]]


def _total(trace) -> Tensor:
    return sum(s["log_prob_sum"] for s in trace.nodes.values() if s["type"] == "sample")


def _centred(signal: Tensor, particles: int) -> Tensor:
    """Signal minus its mean over the other particles; unchanged for one particle."""
    if particles == 1 or signal.dim() < -PARTICLES:
        return signal
    return (signal - signal.mean(PARTICLES, keepdim=True)) * (particles / (particles - 1))


def _sum_to_task(log_prob: Tensor, particles: int) -> Tensor:
    """``[P, T]`` from a site's log density ``[P, T, classes or queries]`` (P missing where it has none)."""
    log_prob = log_prob.sum(-1)
    return log_prob.expand(particles, log_prob.shape[-1])


def _by_task(trace, particles: int) -> Tensor:
    sites = [s for s in trace.nodes.values() if s["type"] == "sample"]
    return torch.stack([_sum_to_task(s["log_prob"], particles) for s in sites]).sum(0)


def _bound_of_others(log_w: Tensor) -> Tensor:
    """VIMCO's baseline ``[P, T]``: the bound with log w_p replaced by the mean of the others."""
    P = len(log_w)
    others = (log_w.sum(0) - log_w) / (P - 1)
    own = torch.eye(P, dtype=torch.bool, device=log_w.device).unsqueeze(-1)
    replaced = torch.where(own, others.unsqueeze(1), log_w.unsqueeze(0))  # [P, P, T]
    return replaced.logsumexp(1) - math.log(P)
