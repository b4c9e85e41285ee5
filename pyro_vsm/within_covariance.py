"""W, the pooled within-class covariance of features: learned from the training classes, used for new ones.

Kept in low-rank-plus-diagonal form, ``W = diag(w) + G G^T``, which the conjugate posterior and the Gaussian
likelihood use exactly. Measured (experiments/NOTES.md): it is the off-diagonal of W that helps.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pyro_vsm.precision import full_precision


class WithinCovariance(nn.Module):
    """A running estimate of the pooled within-class covariance, and its leading factor G.

    Args:
        dim: feature dimension D.
        rank: columns of G, at most D.
        keep: share of the old estimate that a batch leaves, in [0, 1).
    """

    covariance: Tensor
    factor: Tensor
    batches: Tensor

    def __init__(self, dim: int, rank: int, keep: float = 0.99):
        super().__init__()
        self.rank, self.keep = min(rank, dim), keep
        self.register_buffer("covariance", torch.zeros(dim, dim))
        self.register_buffer("factor", torch.zeros(dim, self.rank))
        self.register_buffer("batches", torch.zeros(()))

    @torch.no_grad()
    def observe(self, covariance: Tensor) -> None:
        """Take in the pooled within-class covariance ``[D, D]`` of a batch (an average, at first a plain one)."""
        self.batches += 1
        self.covariance.lerp_(covariance, (1 / self.batches).clamp_min(1 - self.keep))

    @torch.no_grad()
    def set(self, covariance: Tensor) -> None:
        """Take ``[D, D]`` in place of the estimate so far."""
        self.covariance.copy_(covariance)
        self.batches.fill_(1 / (1 - self.keep))  # it weighs as much as all the batches that are remembered
        self.refresh()

    @torch.no_grad()
    def refresh(self) -> None:
        """Recompute G from the leading eigenvectors. Slow (an eigendecomposition), so not every step."""
        values, vectors = torch.linalg.eigh(self.covariance)
        values, vectors = values[-self.rank :].clamp_min(0.0), vectors[:, -self.rank :]
        self.factor.copy_(vectors * values.sqrt())


def pooled_covariance(gap: Tensor, classes: Tensor) -> Tensor:
    """``[D, D]`` from deviations ``[J, D]`` of images from the means of their classes (a scalar, how many)."""
    with full_precision(gap):
        gap = gap.detach()
        return gap.T @ gap / (len(gap) - classes).clamp_min(1.0)
