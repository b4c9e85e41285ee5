"""Exact values of the objectives on small tasks, by enumerating addresses and quadrature.

Everything is differentiable: the gradient of the quadrature is the exact gradient (to the quadrature's error). It
uses the densities of the parts, and none of the code under test in :mod:`pyro_vsm.objectives` and
:mod:`pyro_vsm.model`.
"""

from __future__ import annotations

import itertools
import math

import torch
from pyro.distributions import Delta, TorchDistribution
from torch import Tensor

from pyro_vsm.distributions import GaussianMixture, LowRankGaussian
from pyro_vsm.model import VSMProgram
from pyro_vsm.task import Task


def trapezoid(order: int, dim: int) -> tuple[Tensor, Tensor]:
    """Points ``[G, dim]`` and weights ``[G]`` for the expectation under ``N(0, 1)``, ``G = order ** dim``.

    Equally spaced in +-6.5: for smooth functions the error falls exponentially with the order, and unlike
    Gauss-Hermite's it does so where a mixture's log density bends within one standard deviation.
    """
    x = torch.linspace(-6.5, 6.5, order, dtype=torch.float64)
    w = (-0.5 * x.square()).softmax(0)
    points = torch.cartesian_prod(*[x] * dim).reshape(-1, dim)
    weights = torch.cartesian_prod(*[w] * dim).reshape(-1, dim).prod(-1)
    return points, weights


def nodes(law: TorchDistribution, order: int) -> tuple[Tensor, Tensor]:
    """Points ``[G, batch, D]`` and weights ``[G, batch]`` whose sum of f is the expectation of f."""
    dim, base = law.event_shape[0], getattr(law, "base_dist", law)
    if isinstance(base, Delta):
        return law.rsample().unsqueeze(0), torch.ones(1, *law.batch_shape, dtype=torch.float64)
    eps, weight = trapezoid(order, dim)
    eps = eps.reshape(-1, *[1] * len(law.batch_shape), dim)
    weight = weight.reshape(-1, *[1] * len(law.batch_shape))
    if isinstance(law, GaussianMixture):
        address = law.logits.exp().movedim(-1, 0)  # [C, batch]
        parts = []
        for a in range(address.shape[0]):
            if not address[a].any():
                continue  # left out
            loc, scale = law.loc[..., a, :], law.scale[..., a, :]
            parts.append(((loc + scale * eps).expand(-1, *law.batch_shape, dim), weight * address[a]))
        return torch.cat([p for p, _ in parts]), torch.cat([w for _, w in parts])
    if isinstance(law, LowRankGaussian):
        root = torch.linalg.cholesky(law.covariance_matrix)
        points = law.loc + torch.einsum("...ij,...j->...i", root, eps)
    else:
        points = base.loc + base.scale * eps
    return points, weight.expand(-1, *law.batch_shape)


Orders = tuple[int, int]
"""Points along each axis of m and of z."""


def class_nodes(program: VSMProgram, task: Task, order: Orders) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The guide of one class: z ``[J, T, N, D]``, weights, ``log q - log p`` of m and of z, ``[J, T, N]``."""
    if program.memory_use.latent:
        q_m, p_m = program.posterior_m(task), program.prior_m(task)
        m, w_m = nodes(q_m, order[0])
        ratio_m = q_m.log_prob(m) - p_m.log_prob(m)
    else:
        m = program.memory_use(task).unsqueeze(0)
        w_m, ratio_m = torch.ones(m.shape[:-1], dtype=m.dtype), torch.zeros(m.shape[:-1], dtype=m.dtype)
    p_z = program.prior_z(m, task)
    q_z = program.posterior_z(m, task, p_z)
    z, w_z = nodes(q_z.expand(m.shape[:-1]), order[1])  # [H, G, T, N, D]
    ratio_z = q_z.log_prob(z) - p_z.log_prob(z)
    shape = ratio_z.shape
    flat = [t.expand(shape).flatten(0, 1) for t in (w_z * w_m, ratio_m, ratio_z)]
    return z.flatten(0, 1), *flat


def weights(program: VSMProgram, task: Task, order: Orders, beta_z: float = 1.0, beta_m: float = 1.0):
    """Log importance weights and probabilities of all joint nodes of the classes, ``[J ** N, T]`` each."""
    z, w, ratio_m, ratio_z = class_nodes(program, task, order)
    J, T, N = w.shape
    index = torch.tensor(list(itertools.product(range(J), repeat=N))).T if N > 1 else torch.arange(J).unsqueeze(0)
    joint = torch.stack([z[index[n], :, n] for n in range(N)], -2)  # [K, T, N, D]
    log_p = program.likelihood(joint, task).log_softmax(-1)
    log_p = log_p.gather(-1, task.labels.expand(len(joint), T, -1).unsqueeze(-1)).sum((-1, -2))
    ratio = beta_m * ratio_m + beta_z * ratio_z
    log_w = log_p - torch.stack([ratio[index[n], :, n] for n in range(N)]).sum(0)
    probability = torch.stack([w[index[n], :, n] for n in range(N)]).prod(0)
    return log_w, probability


def elbo(program: VSMProgram, task: Task, order: Orders, beta_z: float = 1.0, beta_m: float = 1.0) -> Tensor:
    """``E_q[log w]``, summed over tasks."""
    log_w, probability = weights(program, task, order, beta_z, beta_m)
    return (probability * log_w).sum()


def importance_weighted(program: VSMProgram, task: Task, order: Orders, particles: int) -> Tensor:
    """``E_q[log 1/P sum_p w_p]`` over all P-tuples of nodes, summed over tasks."""
    log_w, probability = weights(program, task, order)
    bound, joint = log_w, probability
    for _ in range(particles - 1):
        bound = torch.logaddexp(bound.unsqueeze(1), log_w).flatten(0, 1)
        joint = (joint.unsqueeze(1) * probability).flatten(0, 1)
    return (joint * (bound - math.log(particles))).sum()


def evidence(program: VSMProgram, task: Task, order: Orders) -> Tensor:
    """``log p(y|x)``, summed over tasks: the model integrated over its own prior."""
    m, w_m = nodes(program.prior_m(task), order[0])
    z, w_z = nodes(program.prior_z(m, task).expand(m.shape[:-1]), order[1])
    w, z = (w_z * w_m).flatten(0, 1), z.flatten(0, 1)
    J, T, N = w.shape
    index = torch.tensor(list(itertools.product(range(J), repeat=N))).T if N > 1 else torch.arange(J).unsqueeze(0)
    joint = torch.stack([z[index[n], :, n] for n in range(N)], -2)
    log_p = program.likelihood(joint, task).log_softmax(-1)
    log_p = log_p.gather(-1, task.labels.expand(len(joint), T, -1).unsqueeze(-1)).sum((-1, -2))
    return (torch.stack([w[index[n], :, n] for n in range(N)]).prod(0) * log_p.exp()).sum(0).log().sum()
