"""Monte Carlo comparisons whose false-failure rate is fixed by design.

Each comparison fails by chance with probability at most ``ALPHA``, and a run that makes more than ``LIMIT`` of them
is itself an error, so a correct package fails one of them with probability at most ``ALPHA * LIMIT`` = 1 in 1000
(union bound), whatever the seeds. For means that is k standard errors with k from Student's t: 5.5 for many
replicates, 6.9 for 40.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy import stats
from torch import Tensor

ALPHA, LIMIT = 5e-8, 20_000
_made = 0


def _count(number: int) -> None:
    global _made
    _made += number
    assert _made <= LIMIT, f"{_made} comparisons: raise LIMIT and lower ALPHA so that their product stays 1e-3"


def standard_errors(replicates: int) -> float:
    """The k for means of that many independent replicates."""
    return float(stats.t.isf(ALPHA / 2, replicates - 1))


def agree(
    replicates: Tensor, exact: Tensor, *, power: float, scale: Tensor | None = None, error: float = 1e-7
) -> None:
    """The mean of independent replicates is the exact value, within k standard errors.

    Args:
        replicates: ``[B, ...]``.
        exact: ``[...]``.
        power: the largest allowed ``k * standard error`` relative to ``scale``: a comparison that could not see
            an error of that size is refused.
        scale: of the exact values; by default the largest of them.
        error: numerical error of ``exact`` (of its quadrature).
    """
    assert replicates.shape[1:] == exact.shape
    assert torch.isfinite(replicates).all()
    _count(exact.numel())
    k = standard_errors(len(replicates))
    margin = k * replicates.std(0) / len(replicates) ** 0.5
    scale = exact.abs().max() if scale is None else scale
    assert (margin <= power * scale).all(), f"too noisy: {margin.max():.3g} of {scale}"
    gap = (replicates.mean(0) - exact).abs()
    worst = (gap - margin).max()
    assert worst <= error, f"off by {gap.max():.3g}, {worst:.3g} more than k={k:.2f} standard errors"


def uniform(values: np.ndarray | Tensor) -> None:
    """Kolmogorov-Smirnov: the values in [0, 1] are uniformly distributed."""
    _count(1)
    p = stats.kstest(np.asarray(values), "uniform").pvalue
    assert p > ALPHA, f"not uniform, p = {p:.2g}"


def equally_often(counts: np.ndarray | Tensor) -> None:
    """Chi-square: all bins have the same expected count."""
    _count(1)
    p = stats.chisquare(np.asarray(counts)).pvalue
    assert p > ALPHA, f"counts {counts}, p = {p:.2g}"
