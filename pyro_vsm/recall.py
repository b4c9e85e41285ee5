"""What is read from the semantic memory and what is written to it. Shapes as in :mod:`pyro_vsm.memory`."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_vsm.precision import full_precision


@dataclass(frozen=True)
class Recall:
    """What a task may know of the memory.

    One row more than the memory has entries: the last row is the default (zeros), allowed only where no entry is,
    so that an empty memory needs no special case.

    Attributes:
        entries: ``[C+1, D]``, the entries that addressing looks at.
        values: ``[C+1, D]``, the entries that are read out (the same, unless shuffled as a control).
        variances: ``[C+1, D]``, within-class variances of the entries.
        counts: ``[C+1]``, images behind each entry.
        allowed: bool ``[T, C+1]``, entries that task t may use; one row where it is the same for all tasks, so that
            moments and covariances of the entries are computed once.
        log_address: ``[T, N, C+1]``, log gamma, the addressing weights of each class's support features.
        within_factor: ``[D, r]``, G of the within-class covariance of all classes, or None where it is not kept.
        rows: ``[C]``, the memory's row of each entry; None where they are all the memory's rows, in order.
    """

    entries: Tensor
    values: Tensor
    variances: Tensor
    counts: Tensor
    allowed: Tensor
    log_address: Tensor
    within_factor: Tensor | None = None
    rows: Tensor | None = None

    def weights(self, capacity: int) -> Tensor:
        """Gamma ``[T, N, capacity]`` over the rows of the memory, the default left out."""
        gamma = self.log_address[..., :-1].exp()
        return (
            gamma if self.rows is None else gamma.new_zeros(*gamma.shape[:2], capacity).index_add(2, self.rows, gamma)
        )

    @property
    def empty(self) -> Tensor:
        """Bool ``[T]`` (or one for all): the task may use no entry."""
        return self.allowed[:, -1]

    def mean_variance(self) -> tuple[Tensor, Tensor, Tensor]:
        """Moments over the allowed entries: weights ``[T, C+1]`` that sum to one, mean ``[T, D]``, pooled
        within-class variance ``[T, D]`` (1 for an empty memory).
        """
        weight = self.allowed.to(self.entries.dtype)
        weight = weight / weight.sum(-1, keepdim=True)
        with full_precision(weight):
            mean, within = weight @ self.entries, weight @ self.variances
        return weight, mean, torch.where(self.empty.unsqueeze(-1), 1.0, within)


@dataclass(frozen=True)
class Write:
    """New contents of some rows, differentiable in the features and in the update's parameters."""

    rows: Tensor  # [S] row of each (task, class) slot; the scratch row for slots that write nothing
    entries: Tensor  # [S, D]
    variances: Tensor  # [S, D]
    counts: Tensor  # [S]
    classes: Tensor  # [S]
    covariance: Tensor | None = None  # [D, D], pooled within-class covariance of the batch, detached
