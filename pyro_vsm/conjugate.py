"""The exact posterior of a prototype under a Gaussian prior, in low rank."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_vsm.distributions import LowRankGaussian, capacitance, times
from pyro_vsm.precision import full_precision


def conjugate_posterior(
    prior_loc: Tensor,
    factor: Tensor,
    diag: Tensor,
    mean: Tensor,
    noise: Tensor,
    shots: int | Tensor,
    noise_factor: Tensor | None = None,
) -> LowRankGaussian:
    r"""Exact posterior of z under ``z ~ N(mu_0, B)``, ``B = D + F F^T``, and K observations ``h_k | z ~ N(z, W)``.

    ``q(z|S) = N(V (W^-1 sum_k h_k + B^-1 mu_0), V)``, ``V = (B^-1 + K W^-1)^-1`` (docs/mathematics.md), with
    ``W = W_0 + G G^T``, W_0 diagonal. To stay low-rank and free of cancellation, read the prior as
    ``z = mu_0 + F u + sqrt(D) e`` and the observations' mean as ``z + G v / sqrt(K) + sqrt(W_0/K) n`` with u, v, e, n
    standard normal. With ``y = (u, v)``, ``H = (F, G/sqrt(K))`` and ``S = D + W_0/K``, the variance of the
    observations' mean around ``mu_0 + H y``:

    - ``y | S ~ N(A^-1 H^T S^-1 gap, A^-1)``, ``A = 1 + H^T S^-1 H``, ``gap = mean_k h_k - mu_0``,
    - ``z | y, S ~ N(mu_0 + F u + D S^-1 (gap - H y), D - D S^-1 D)``,

    and y integrated out gives a factor ``L = ((F, 0) - D S^-1 H) chol(A)^-T`` again.

    Args:
        prior_loc: mu_0, ``[..., D]``.
        factor: F, ``[..., D, R]``.
        diag: D, ``[..., D]``, positive.
        mean: mean of the K observations, ``batch + [D]``.
        noise: W_0, ``[..., D]``, positive.
        shots: K >= 1, or ``batch + [1]`` where classes differ in it.
        noise_factor: G, ``[..., D, r]``; None for a diagonal W.
    """
    total, rest, low, half = _parts(factor, diag, noise, shots, noise_factor)
    gap = mean - prior_loc
    loc = prior_loc + diag / total * gap + times(low, times(half, gap / total))
    return LowRankGaussian(loc, low, diag * rest)


def conjugate_gain(
    factor: Tensor, diag: Tensor, noise: Tensor, shots: int, noise_factor: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """What :func:`conjugate_posterior` computes without the observations, for covariances shared by the batch.

    Returns:
        The gain B (B + W/K)^-1 ``[D, D]``, with ``q(z|S) = N(mu_0 + gain (mean_k h_k - mu_0), V)``, and factor
        ``[..., D, R]`` and diagonal ``[..., D]`` of V.
    """
    total, rest, low, half = _parts(factor, diag, noise, shots, noise_factor)
    with full_precision(low):
        gain = torch.diag_embed(diag / total) + low @ (half / total.unsqueeze(-2))
    return gain.view(gain.shape[-2:]), low, diag * rest


def _parts(
    factor: Tensor, diag: Tensor, noise: Tensor, shots: int | Tensor, noise_factor: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``S``, ``1 - D S^-1``, L and ``chol(A)^-1 H^T`` of :func:`conjugate_posterior`."""
    total = diag + noise / shots  # S
    rest = noise / shots / total  # 1 - D S^-1, kept apart from D S^-1 so that nothing cancels
    shrunk = rest.unsqueeze(-1) * factor
    if noise_factor is not None:
        root = shots.sqrt().unsqueeze(-1) if isinstance(shots, Tensor) else shots**0.5
        g = noise_factor / root
        batch = torch.broadcast_shapes(factor.shape[:-2], g.shape[:-2])
        g = g.expand(*batch, *g.shape[-2:])
        pull = -(diag / total).unsqueeze(-1) * g
        wide = torch.broadcast_shapes(shrunk.shape[:-2], pull.shape[:-2])
        shrunk = torch.cat([shrunk.expand(*wide, *shrunk.shape[-2:]), pull.expand(*wide, *pull.shape[-2:])], -1)
        factor = torch.cat([factor.expand(*batch, *factor.shape[-2:]), g], -1)
    tril, _ = capacitance(factor, total)
    half = torch.linalg.solve_triangular(tril, factor.mT, upper=False)  # chol(A)^-1 H^T
    return total, rest, torch.linalg.solve_triangular(tril, shrunk.mT, upper=False).mT, half
