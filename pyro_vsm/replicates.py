"""Several training seeds on the same episodes: means, spreads, and intervals that cover both.

The value of seed s on episode e is taken as `y_se = mu + a_s + b_e + c_se`, seeds and episodes crossed and both
drawn at random. Two intervals answer two questions. `over_episodes` is about these very trained models on other
episodes, as the field reports it. `over_both` is about training again as well, and belongs to claims that one
system is better than another. Both hold the test classes fixed. Where each seed has a fold of the classes and
episodes of its own, no b_e is shared and a_s holds what is of the classes, too: `over_both` then covers other
classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from pyro_vsm import metrics
from pyro_vsm.errors import UserError
from pyro_vsm.metrics import Interval


@dataclass(frozen=True)
class Spread:
    """Of one number a training seed.

    Attributes:
        mean: over the seeds.
        sd: standard deviation, with n - 1; NaN for one seed.
        low, high: the least and the greatest.
        n: number of seeds.
    """

    mean: float
    sd: float
    low: float
    high: float
    n: int


def spread(values: Sequence[float]) -> Spread:
    """Mean, standard deviation and range of one value a seed.

    Raises:
        UserError: there is none, or one is not finite.
    """
    if not values or not all(math.isfinite(v) for v in values):
        raise UserError(f"a spread over seeds needs at least one finite value, not {list(values)}")
    n = len(values)
    mean = math.fsum(values) / n
    sd = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1)) if n > 1 else math.nan
    return Spread(mean, sd, min(values), max(values), n)


def over_episodes(values: Tensor) -> Interval:
    """Mean over seeds and episodes with the 95 % interval over episodes of the seeds' average.

    `mean ± 1.96 sd_e(mean_s y_se) / sqrt(E)`: averaging first keeps what the seeds share on an episode, which
    pooling S * E values as if they were independent would not.

    Args:
        values: `[S, E]`, seeds by episodes.

    Raises:
        UserError: another shape, or values that are not finite.
    """
    return metrics.mean_interval(_checked(values).mean(0))


def over_both(values: Tensor) -> Interval:
    """Mean over seeds and episodes with a 95 % interval that covers other seeds and other episodes.

    `half^2 = t(S-1)^2 v_s / S + t(E-1)^2 v_e / E`, t the 97.5 % quantiles of Student's distribution, `v_s` the
    variance over seeds of the mean over episodes, and `v_e = max(0, var_e(mean_s y) - var(c) / S)` the variance
    of the episodes' effect by the two-way analysis of variance (Searle, Casella & McCulloch 1992, "Variance
    Components", sec. 4.5): what seed and episode make together is already in `v_s`. Each part has the width
    that it would have alone, so the interval covers at least 95 % (from 2 seeds on, in simulation 95 to 99 %), while
    one with Satterthwaite's degrees of freedom falls to 88 % with 2 seeds. Few seeds may agree by chance; as `v_s`
    holds `var(c) / E`, which is known well, `t(S-1)^2 v_s` is taken as no less than `t((S-1)(E-1))^2 var(c) / E`.
    For a single seed, whose spread nobody knows, it covers the episodes only.

    Args:
        values: `[S, E]`, seeds by episodes; for a paired difference the differences, seed by seed.

    Returns:
        The interval; its n is S * E.

    Raises:
        UserError: another shape, or values that are not finite.
    """
    y = _checked(values)
    seeds, episodes = y.shape
    mean = float(y.mean())
    if episodes == 1:
        return Interval(mean, math.nan, seeds)
    between = float(y.mean(0).var())
    if seeds == 1:
        return Interval(mean, student(episodes - 1) * math.sqrt(between / episodes), episodes)
    rest = y - y.mean(0) - y.mean(1, keepdim=True) + mean
    joint = float(rest.square().sum()) / ((seeds - 1) * (episodes - 1))
    of_seeds = student(seeds - 1) ** 2 * float(y.mean(1).var())
    least = student((seeds - 1) * (episodes - 1)) ** 2 * joint / episodes
    of_episodes = student(episodes - 1) ** 2 * max(0.0, between - joint / seeds)
    half = math.sqrt(max(of_seeds, least) / seeds + of_episodes / episodes)
    return Interval(mean, half, seeds * episodes)


@cache
def student(freedom: int) -> float:
    """The 97.5 % quantile of Student's distribution."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, 0.975))


def _checked(values: Tensor) -> Tensor:
    if values.dim() != 2 or values.numel() == 0:
        raise UserError(f"seeds by episodes need a matrix with at least one entry, not {list(values.shape)}")
    wide = values.detach().cpu().to(torch.float64)
    if not bool(wide.isfinite().all()):
        raise UserError("seeds by episodes hold NaN or infinity: evaluate again")
    return wide
