"""Exact search of the most similar entries of a large memory, in chunks: no ``[T, N, C]`` is ever kept."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

ELEMENTS = 2**24  # of the similarities that are computed at once


@dataclass
class Nearest:
    """The k best candidates so far: similarity ``[T, N, k]``, ``-inf`` where there are fewer, and index."""

    value: Tensor
    index: Tensor

    @classmethod
    def none(cls, query: Tensor, k: int) -> Nearest:
        """No candidate yet, for queries ``[T, N, D]``."""
        value = query.new_full((*query.shape[:2], k), float("-inf"))
        return cls(value, torch.zeros_like(value, dtype=torch.int64))

    def look(
        self, query: Tensor, entries: Tensor, usable: Tensor, classes: Tensor, own: Tensor | None, first: int = 0
    ) -> Nearest:
        """Take in further candidates.

        Args:
            query: ``[T, N, D]``; similarity is the inner product.
            entries: ``[C, D]``.
            usable: bool ``[C]``.
            classes: ``[C]``.
            own: classes ``[T, N]`` whose entries task t must not see, or None.
            first: index of the first of these entries.
        """
        k = self.value.shape[-1]
        size = max(k, ELEMENTS // max(1, query.shape[0] * query.shape[1]))
        best = self
        for start in range(0, len(entries), size):
            part = slice(start, start + size)
            g = query @ entries[part].T  # [T, N, c]
            barred = ~usable[part]
            if own is not None:
                barred = barred | (own.unsqueeze(-1) == classes[part]).any(1)  # [T, c]
                barred = barred.unsqueeze(1)
            g = g.masked_fill(barred, float("-inf"))
            value, index = g.topk(min(k, g.shape[-1]), -1)
            value = torch.cat([best.value, value], -1)
            index = torch.cat([best.index, index + (first + start)], -1)
            value, order = value.topk(k, -1)
            best = Nearest(value, index.gather(-1, order))
        return best

    def of_tasks(self) -> tuple[Tensor, Tensor]:
        """What each task's classes found together: indices ``[T, N k]``, and true where one occurs first."""
        index, there = self.index.flatten(1), self.value.flatten(1) > float("-inf")
        earlier = torch.ones(index.shape[1], index.shape[1], dtype=torch.bool, device=index.device).tril(-1)
        again = (index.unsqueeze(-1) == index.unsqueeze(1)) & there.unsqueeze(1) & earlier
        return index, there & ~again.any(-1)
