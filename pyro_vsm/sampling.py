"""Samples for averages: each distributed as it should be, and placed so that their average has less noise."""

from __future__ import annotations

from collections.abc import Iterator

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

from pyro_vsm.distributions import GaussianMixture, LowRankGaussian
from pyro_vsm.normals import normals

SYMMETRIC = (
    LowRankGaussian,
    dist.Normal,
    dist.MultivariateNormal,
    dist.LowRankMultivariateNormal,
    dist.Laplace,
    dist.Delta,
)
"""Kinds of distributions that lie alike on both sides of their mean."""


def pair(q: TorchDistribution) -> tuple[Tensor, Tensor]:
    """Two samples on opposite sides of the mean of ``q``; independent ones, if it is not known to be symmetric.

    Antithetic variates (Hammersley, Morton 1956): of a function that is nearly linear over the width of q the two
    errors nearly cancel.
    """
    base = q
    while isinstance(base, dist.Independent):
        base = base.base_dist
    if type(base) is dist.Normal:  # a subclass need not draw like this
        noise = normals(q.shape(), base.loc)
        if torch.is_grad_enabled():
            step = base.scale * noise
            return base.loc + step, base.loc - step
        step = noise.mul_(base.scale)  # in place: the system clears new memory before it gives it away
        return base.loc + step, step.neg_().add_(base.loc)
    z = q()
    if not isinstance(base, SYMMETRIC):
        return z, q()
    return z, torch.lerp(z, q.mean.expand_as(z).to(z.dtype), 2.0)


def spread(q: TorchDistribution, number: int, at_once: int) -> Iterator[Tensor]:
    """So many samples of q, ``[s, *batch, D]`` with at most ``at_once`` at a time.

    A mixture's components are drawn with :func:`strata`, all others independently. Without a gradient of the
    mixture's weights.
    """
    # a subclass need not draw by the address
    address = strata(q.logits, number) if type(q) is GaussianMixture else None
    for start in range(0, number, at_once):
        now = min(at_once, number - start)
        if address is None:
            yield q.expand((now, *q.batch_shape))()
        else:
            noise = normals((now, *q.shape()), q.loc)
            yield q.at(address[start : start + now], noise)


def strata(logits: Tensor, number: int) -> Tensor:
    """Indices ``[number, *batch]``, each distributed as ``softmax(logits)`` of ``[*batch, C]``.

    One falls into each of ``number`` equal parts of the cumulative distribution, in an order of its own for every
    element of the batch (Latin hypercube sampling: McKay, Beckman, Conover 1979). So the number of times that a
    component is drawn differs from ``number * w_a`` by less than two, where of independent indices it differs by
    about its square root; elements of the batch do not depend on each other.
    """
    cdf = logits.detach().softmax(-1).cumsum(-1)
    batch = logits.shape[:-1]
    # [*batch, number]: which part, in random order, and where in it; below 1, or a weight of zero could be drawn
    part = torch.rand(*batch, number, device=logits.device).argsort(-1)
    u = ((part + torch.rand_like(part, dtype=cdf.dtype)) / number).clamp_max(1 - torch.finfo(cdf.dtype).eps)
    index = torch.searchsorted(cdf / cdf[..., -1:], u, right=True)
    return index.clamp_max(logits.shape[-1] - 1).movedim(-1, 0).contiguous()  # weights that are NaN, too, give one
