"""The semantic memory M: what it holds, how it is recalled, how it is consolidated. Plain PyTorch, no Pyro.

Shapes: T tasks, N classes (ways) a task, R images of a class (support and query), C entries, D features.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import get_proxy_mode
from torch.nn import functional as F

from pyro_vsm.errors import UserError
from pyro_vsm.fused import fused
from pyro_vsm.memory_updates import MEMORY_UPDATES, MemoryUpdate
from pyro_vsm.precision import full_precision
from pyro_vsm.recall import Recall, Write
from pyro_vsm.registry import Spec
from pyro_vsm.retrieval import Nearest
from pyro_vsm.within_covariance import WithinCovariance, pooled_covariance

__all__ = ["Recall", "SemanticMemory", "Write"]

PAIRWISE = 1024
"""Up to so many rows are ranked by comparing each with each, which fuses with what surrounds it; more by a search."""


class SemanticMemory(nn.Module):
    r"""Long-term memory: one entry a training class, ``M_c`` in R^D, with its within-class variance.

    Recall: ``gamma_a = softmax_a g(M_a, s_n)`` with the learned similarity ``g = k(M_a) . q(s_n) / sqrt(d)``
    (k, q linear), over the allowed entries, optionally over the ``top_k`` largest only.

    Consolidation: ``M_c <- alpha M_c + (1 - alpha) Mbar_c`` where the candidate ``Mbar_c`` comes from a
    :class:`~pyro_vsm.memory_updates.MemoryUpdate` (paper: graph attention over the entry and the features of
    its class). A class not yet seen is appended as its mean feature. When the memory is full, the entry written
    longest ago makes room (of several, the one in the lowest row), never one of a class in the batch; where a batch
    has more new classes than there is room, those with the largest ids are not stored.
    All classes of a batch are written at once, so their order does not matter.

    Args:
        dim: feature dimension D.
        capacity: largest number of entries C >= 1.
        update: name or spec of the memory update (``attention``, ``mean``, ``none``).
        alpha: share of the old entry that is kept, in [0, 1).
        address_dim: dimension d of the learned similarity.
        top_k: address only the k most similar entries; 0 for all.
        retrieve: restrict each task to the entries that are among the so many most similar of one of its classes,
            found by exact search: then prior, posterior and moments see these alone, and the cost of all but the
            search no longer depends on C; 0 for all. For memories of many thousand entries.
        shuffled: a control: addressing looks at ``M_a`` but reads out ``M_{pi(a)}``, pi a shift by half of the
            filled entries; a task reads nothing that is its own class's.
        within_rank: columns of the factor of the pooled within-class covariance; 0 keeps none. The covariance is
            pooled over all classes, those of a task included: it says nothing of a single one.
    """

    entries: Tensor
    variances: Tensor
    counts: Tensor
    classes: Tensor
    written: Tensor
    step: Tensor

    def __init__(
        self,
        dim: int,
        *,
        capacity: int,
        update: Spec | MemoryUpdate = "attention",
        alpha: float = 0.9,
        address_dim: int = 64,
        top_k: int = 0,
        shuffled: bool = False,
        within_rank: int = 0,
        retrieve: int = 0,
    ):
        super().__init__()
        if capacity < 1 or not 0 <= alpha < 1 or min(top_k, within_rank, retrieve) < 0 or address_dim < 1:
            raise UserError(
                f"memory: capacity={capacity}, alpha={alpha}, top_k={top_k}, address_dim={address_dim}, "
                f"within_rank={within_rank}, retrieve={retrieve}; give capacity and address_dim >= 1, "
                "0 <= alpha < 1, top_k, rank and retrieve >= 0"
            )
        if retrieve and shuffled:
            raise UserError("memory: retrieve cannot be combined with the control shuffled; set one of them to 0")
        self.retrieve = min(retrieve, capacity)
        self.dim, self.capacity, self.alpha, self.top_k, self.shuffled = dim, capacity, alpha, top_k, shuffled
        self.update = MEMORY_UPDATES.build(update, dim)
        self.within = WithinCovariance(dim, within_rank) if within_rank else None
        self.key = nn.Linear(dim, address_dim, bias=False)
        self.query = nn.Linear(dim, address_dim, bias=False)
        self.query.weight.data.copy_(self.key.weight.data)  # starts as a similarity: g(s, s) is large
        # row C is the default of Recall and stays zero, row C+1 takes the writes that go nowhere
        self.register_buffer("entries", torch.zeros(capacity + 2, dim))
        self.register_buffer("variances", torch.zeros(capacity + 2, dim))
        self.register_buffer("counts", torch.zeros(capacity + 2))
        self.register_buffer("classes", torch.full((capacity + 2,), -1))
        self.register_buffer("written", torch.zeros(capacity + 2, dtype=torch.int64))
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    @property
    def filled(self) -> Tensor:
        """Bool ``[C]``."""
        return self.classes[: self.capacity] >= 0

    def forward(
        self, support: Tensor, own: Tensor | None = None, write: Write | None = None, closed: bool = False
    ) -> Recall:
        """Recall for the support features of T tasks.

        Args:
            support: mean support feature of each class, ``[T, N, D]``.
            own: class ids of the tasks, ``[T, N]``, whose entries are left out. Needed while training:
                otherwise the model learns to look its own class up.
            write: entries just consolidated in this batch, used in place of the stored ones so that the
                update learns from the recall of *other* tasks.
            closed: recall as if the memory were empty (the control ``off``).
        """
        if self.retrieve and not closed:
            return self._retrieved(support, own, write)
        C = self.capacity
        entries, variances, counts, classes = self.entries, self.variances, self.counts, self.classes
        if write is not None:
            entries = entries.index_copy(0, write.rows, write.entries)
            variances = variances.index_copy(0, write.rows, write.variances)
            counts = counts.index_copy(0, write.rows, write.counts)
            classes = classes.index_copy(0, write.rows, write.classes)
        entries, variances, counts, classes = (t[: C + 1] for t in (entries, variances, counts, classes))
        allowed = (classes[:C] >= 0).unsqueeze(0)  # one row for all tasks as long as they may use the same
        if closed:
            allowed = torch.zeros_like(allowed)
        elif own is not None:
            allowed = allowed & (own.unsqueeze(-1) != classes[:C]).all(1)
        values = entries
        if self.shuffled:
            read = self._shuffle(classes[:C] >= 0)
            # neither the entry addressed nor the entry read may be of the task's own classes, nor both the same
            allowed = allowed & allowed[:, read] & (read != torch.arange(C, device=read.device))
            values = torch.cat([entries[read], entries[C:]])
        allowed = torch.cat([allowed, ~allowed.any(-1, keepdim=True)], -1)
        factor = None if self.within is None else self.within.factor
        return Recall(entries, values, variances, counts, allowed, self.address(support, entries, allowed), factor)

    def _retrieved(self, support: Tensor, own: Tensor | None, write: Write | None) -> Recall:
        """Recall of what a search finds: T N k entries, of which each task may use those that its classes found."""
        C, T = self.capacity, len(support)
        usable, classes = self.filled, self.classes[:C]
        with torch.no_grad(), full_precision(support):
            # k(M_a) . q(s) = M_a . K^T q(s): the entries are read once and need not be projected
            query = self.query(support.detach()) @ self.key.weight
            found = Nearest.none(query, self.retrieve)
            if write is not None:  # in place of what stands in the rows
                usable = (
                    usable & ~torch.zeros_like(self.classes, dtype=torch.bool).index_fill(0, write.rows, True)[:C]
                )
                new = write.entries.detach().to(query.dtype)
                found = found.look(query, new, write.rows < C, write.classes, own, first=C)
            index, mine = found.look(query, self.entries[:C], usable, classes, own).of_tasks()
        index = index.flatten()

        def fetch(stored: Tensor, written: Tensor | None, default: Tensor) -> Tensor:
            values = stored[index.clamp(max=C - 1)]
            if written is not None:
                new = (index >= C).view(-1, *[1] * (stored.dim() - 1))
                values = torch.where(new, written[(index - C).clamp_min(0)].to(values.dtype), values)
            return torch.cat([values, default[C : C + 1]])

        late = (None,) * 4 if write is None else (write.entries, write.variances, write.counts, write.rows)
        entries = fetch(self.entries, late[0], self.entries)
        variances = fetch(self.variances, late[1], self.variances)
        counts = fetch(self.counts, late[2], self.counts)
        rows = fetch(torch.arange(C, device=index.device), late[3], index.new_zeros(C + 1))[:-1]
        own_block = torch.eye(T, dtype=torch.bool, device=index.device).unsqueeze(-1)
        allowed = (own_block & mine).flatten(1)  # [T, T N k]
        allowed = torch.cat([allowed, ~allowed.any(-1, keepdim=True)], -1)
        factor = None if self.within is None else self.within.factor
        address = self.address(support, entries, allowed)
        return Recall(entries, entries, variances, counts, allowed, address, factor, rows)

    @staticmethod
    def _shuffle(filled: Tensor) -> Tensor:
        """The permutation pi ``[C]``: the filled rows shifted by half their number, the others as they are."""
        order = (~filled).to(torch.uint8).sort(stable=True).indices  # filled rows first
        rank, number = filled.cumsum(0) - 1, filled.sum().clamp_min(1)
        read = order[(rank + (number + 1) // 2) % number]
        return torch.where(filled, read, torch.arange(len(filled), device=filled.device))

    def address(self, support: Tensor, entries: Tensor, allowed: Tensor) -> Tensor:
        """Log gamma ``[T, N, C+1]`` for support ``[T, N, D]``, entries ``[C+1, D]``, allowed ``[T, C+1]``."""
        with full_precision(support):
            g = self.query(support) @ self.key(entries).T / self.key.out_features**0.5
        g = g.masked_fill(~allowed.unsqueeze(1), float("-inf"))
        if self.top_k and self.top_k < g.shape[-1]:
            least = g.topk(self.top_k, -1).values[..., -1:]
            g = g.masked_fill(g < least, float("-inf"))
        return F.log_softmax(g, -1)

    def consolidate(self, features: Tensor, classes: Tensor) -> Write:
        """New contents for the classes of a batch; nothing is stored yet (:meth:`store` does that).

        Args:
            features: of all images of the batch, ``[T, N, R, D]``.
            classes: class ids >= 0, ``[T, N]``; a class may occur in several tasks.
        """
        with full_precision(features):
            R, D = features.shape[2:]
            slots, nodes = classes.reshape(-1), features.to(self.entries.dtype).reshape(-1, D)  # [S], [S*R, D]
            same = slots.unsqueeze(-1) == slots  # [S, S]
            member = same.repeat_interleave(R, 1)  # [S, S*R] node i shows the class of slot s
            share = same.to(nodes.dtype)
            number = R * share.sum(-1)
            mean = share @ nodes.view(-1, R, D).sum(1) / number.unsqueeze(-1)
            gap = nodes.view(-1, R, D) - mean.unsqueeze(1)  # node i stands in slot i // R
            variance = share @ gap.square().sum(1) / (number - 1).clamp_min(1.0).unsqueeze(-1)
            gap = gap.flatten(0, 1)

            classes, written = self.classes[: self.capacity], self.written[: self.capacity]
            rows, known, first = rows_of(slots, classes, written, slots.is_cuda and get_proxy_mode() is not None)
            count = number + torch.where(known, self.counts[rows], 0.0)
            old, known = self.entries[rows], known.unsqueeze(-1)
            candidate = self.update(old, nodes, member)
            alpha = 1.0 if self.update.frozen else self.alpha
            entries = torch.where(known, alpha * old + (1 - alpha) * candidate, mean)
            variances = torch.where(known, alpha * self.variances[rows] + (1 - alpha) * variance, variance)
        rows = torch.where(first, rows, self.capacity + 1)  # a class in several slots is written once
        covariance = None if self.within is None else pooled_covariance(gap, first.sum())
        return Write(rows, entries, variances, count, slots, covariance)

    @torch.no_grad()
    def store(self, write: Write) -> None:
        """Put the consolidated rows into the memory, detached. Training only: evaluation never calls it."""
        self.step += 1
        self.entries.index_copy_(0, write.rows, write.entries.to(self.entries.dtype))
        self.variances.index_copy_(0, write.rows, write.variances.to(self.variances.dtype))
        self.counts.index_copy_(0, write.rows, write.counts)
        self.classes.index_copy_(0, write.rows, write.classes)
        self.written.index_copy_(0, write.rows, self.step.expand(len(write.rows)))
        for buffer in (self.entries, self.variances, self.counts, self.written):
            buffer[-1].zero_()  # the scratch row holds nothing
        self.classes[-1].fill_(-1)
        if self.within is not None and write.covariance is not None:
            self.within.observe(write.covariance)

    @torch.no_grad()
    def fill(self, features: Tensor, labels: Tensor) -> None:
        """Replace the contents by the exact moments of labelled features: one entry a class, in the order of the ids.

        Args:
            features: ``[I, D]``.
            labels: class ids ``[I]``, each class at least twice.

        Raises:
            UserError: more classes than entries.
        """
        classes, inverse, counts = labels.unique(return_inverse=True, return_counts=True)
        number = len(classes)
        if number > self.capacity:
            raise UserError(f"memory: {number} classes do not fit into {self.capacity} entries; raise model.capacity")
        with full_precision(features):
            zeros = features.new_zeros(number, self.dim)
            share = counts.unsqueeze(-1).to(features.dtype)
            means = zeros.index_add(0, inverse, features) / share
            gap = features - means[inverse]
            variances = zeros.index_add(0, inverse, gap.square()) / (share - 1).clamp_min(1.0)
        for buffer in (self.entries, self.variances, self.counts, self.written):
            buffer.zero_()
        self.classes.fill_(-1)
        self.entries[:number], self.variances[:number] = means, variances
        self.counts[:number], self.classes[:number] = counts.to(self.counts.dtype), classes
        if self.within is not None:
            self.within.set(pooled_covariance(gap, counts.new_tensor(number)))

    def refresh(self) -> None:
        """Bring up to date what is too slow for every step: the factor of the within-class covariance."""
        if self.within is not None:
            self.within.refresh()


@torch.library.custom_op("pyro_vsm::rows_of", mutates_args=())
def rows_of(slots: Tensor, classes: Tensor, written: Tensor, compiled: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Which row of the memory each slot of a batch has, or is given: static shapes, nothing waits for the device.

    An operator of its own, which a compiler calls and does not look into: Triton fails to compile these few
    reductions and gathers where they are fused with the copies that follow. It is compiled by itself.

    Args:
        slots: class ids of the batch ``[S]``, classes may repeat.
        classes: class ids of the rows ``[C]``, -1 for a free one.
        written: step at which each row was last written ``[C]``.
        compiled: through ``torch.compile``.

    Returns:
        Row ``[S]`` (C + 1 where none is left), whether the class is stored already ``[S]``, and whether no earlier
        slot has the class ``[S]``.
    """
    return (_compiled_rows() if compiled else _rows)(slots, classes, written)


@rows_of.register_fake
def _(slots: Tensor, classes: Tensor, written: Tensor, compiled: bool) -> tuple[Tensor, Tensor, Tensor]:
    flags = torch.empty_like(slots, dtype=torch.bool)
    return torch.empty_like(slots), flags, torch.empty_like(flags)


@cache
def _compiled_rows() -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    return fused(_rows)


def _rows(slots: Tensor, classes: Tensor, written: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    C, S = len(classes), len(slots)
    row, slot = (torch.arange(n, device=slots.device) for n in (C, S))
    match = slots.unsqueeze(-1) == classes  # [S, C]
    known, mine = match.any(-1), match.any(0)
    stored = torch.where(match, row, C).amin(-1)
    first = torch.where(slots.unsqueeze(-1) == slots, slot, S).amin(-1) == slot
    # rank among the new classes by class id, so that the order in the batch does not matter
    rank = ((slots.unsqueeze(-1) > slots) & first & ~known).sum(-1)
    # rows to give away: free ones first, then the longest unwritten, of several the lowest; never one of this batch
    age = torch.where(classes >= 0, written + 1, 0) * C + row
    age = torch.where(mine, torch.iinfo(torch.int64).max, age)
    if C <= PAIRWISE:
        place = (age.unsqueeze(-1) > age).sum(-1)
        fresh = torch.where(place == rank.unsqueeze(-1), row, C).amin(-1)
    else:  # a batch needs no more than S of them
        order = age.topk(min(S, C), largest=False).indices
        fresh = order[rank.clamp_max(len(order) - 1)]
    fresh = torch.where(rank < C - mine.sum(), fresh, C + 1)
    return torch.where(known, stored, fresh), known, first
