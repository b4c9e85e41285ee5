"""What a factor of the model may look at: the features of a batch of tasks and what the memory says of them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pyro_vsm.errors import UserError
from pyro_vsm.memory import Recall


@dataclass(frozen=True)
class Task:
    """A batch of T tasks with N ways, K shots and Q queries in all, as features of dimension D.

    Attributes:
        support: ``[T, N, K, D]``.
        query: ``[T, Q, D]``.
        recall: what the memory says.
        labels: int64 ``[T, Q]``, the way of each query; None where it is to be predicted.
        counts: ``[T, N]``, examples of each class where their numbers differ; support then holds their mean alone.
    """

    support: Tensor
    query: Tensor
    recall: Recall
    labels: Tensor | None = None
    counts: Tensor | None = None

    @property
    def prototype(self) -> Tensor:
        """s_n, the mean support feature, ``[T, N, D]``."""
        return self.support.mean(2)

    @property
    def shots(self) -> int | Tensor:
        """K; where classes differ in it, ``[T, N, 1]``."""
        return self.support.shape[2] if self.counts is None else self.counts.unsqueeze(-1)

    def unlabelled(self) -> Task:
        """The same task with its query labels hidden."""
        return replace(self, labels=None)


def check_features(support: Tensor, query: Tensor, dim: int | None = None) -> None:
    """Refuse features of wrong shape or with NaN, before anything is computed from them.

    Raises:
        UserError: support is not ``[T, N, K, D]``, query not ``[T, Q, D]`` of the same T and D, no class, shot or
            query is there, or a value is NaN or infinite.
    """
    if support.dim() != 4 or query.dim() != 3:
        raise UserError(
            f"support has shape {list(support.shape)} and query {list(query.shape)}; "
            "give [tasks, ways, shots, features] and [tasks, queries, features]"
        )
    if support.shape[0] != query.shape[0] or support.shape[-1] != query.shape[-1]:
        raise UserError(
            f"support {list(support.shape)} and query {list(query.shape)} differ in tasks or features; "
            "make them agree"
        )
    if dim is not None and support.shape[-1] != dim:
        raise UserError(f"features have {support.shape[-1]} dimensions, the model was trained with {dim}")
    if 0 in support.shape or 0 in query.shape:
        raise UserError(
            f"an episode without images: support {list(support.shape)}, query {list(query.shape)}; "
            "add at least one each"
        )
    if not (torch.isfinite(support).all() and torch.isfinite(query).all()):
        raise UserError("support or query features hold NaN or infinity; check the images and the checkpoint")
