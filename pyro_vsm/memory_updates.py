"""How an entry learns from new features of its class: the candidates ``Mbar_c`` of consolidation."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pyro_vsm.errors import UserError
from pyro_vsm.registry import Registry


class MemoryUpdate(nn.Module, ABC):
    """Interface of a memory update.

    Args:
        dim: feature dimension D.
    """

    frozen = False
    """True if an entry is never changed once it is there."""

    def __init__(self, dim: int):
        super().__init__()
        self.dim = dim

    @abstractmethod
    def forward(self, entry: Tensor, nodes: Tensor, member: Tensor) -> Tensor:
        """Candidate entries ``Mbar [S, D]``.

        Args:
            entry: the current entries ``M_s [S, D]``.
            nodes: features of all images of the batch, ``[J, D]``.
            member: bool ``[S, J]``, whether image j is of the class of entry s.
        """


MEMORY_UPDATES: Registry[MemoryUpdate] = Registry("memory_update", MemoryUpdate)


@MEMORY_UPDATES.register("mean")
class MeanUpdate(MemoryUpdate):
    """``Mbar_c`` is the mean feature of the class in the batch."""

    def forward(self, entry: Tensor, nodes: Tensor, member: Tensor) -> Tensor:
        """See the interface."""
        share = member.to(nodes.dtype)
        return share @ nodes / share.sum(-1, keepdim=True)


@MEMORY_UPDATES.register("none")
class NoUpdate(MeanUpdate):
    """An entry stays what it was when its class was first seen."""

    frozen = True


@MEMORY_UPDATES.register("attention")
class AttentionUpdate(MemoryUpdate):
    r"""Graph attention from the features of a class to its entry (paper, section 3.3).

    ``e_i = LeakyReLU(w^T [U M_c ; U h_i])``, ``beta = softmax(e)``, ``Mbar_c = act(sum_i beta_i V h_i)``, over the
    nodes ``{M_c} + {h_i}``.

    Args:
        dim: feature dimension D.
        projection: rows of U, the dimension of the attention.
        values: ``features`` (V = 1: an entry stays a convex combination of features, and trains stably)
            or ``projected`` (V a learned D x D matrix, started at the identity; the paper's, with U = V).
        activation: ``identity``, ``relu`` or ``elu``.
    """

    def __init__(self, dim: int, *, projection: int = 64, values: str = "features", activation: str = "identity"):
        super().__init__(dim)
        acts = {"identity": nn.Identity, "relu": nn.ReLU, "elu": nn.ELU}
        if values not in ("features", "projected") or activation not in acts:
            raise UserError(
                f"memory_update: values={values!r}, activation={activation!r}; give values features or projected, "
                f"activation {', '.join(acts)}"
            )
        self.U = nn.Linear(dim, projection, bias=False)
        self.w = nn.Parameter(torch.randn(2 * projection) / projection**0.5)
        self.V = nn.Linear(dim, dim, bias=False) if values == "projected" else nn.Identity()
        if isinstance(self.V, nn.Linear):
            nn.init.eye_(self.V.weight)
        self.act = acts[activation]()

    def forward(self, entry: Tensor, nodes: Tensor, member: Tensor) -> Tensor:
        """See the interface."""
        # w^T U first: then no feature has to be projected
        w_entry, w_node = self.w.view(2, -1) @ self.U.weight  # [D] each
        from_entry = entry @ w_entry  # [S]
        e = F.leaky_relu(from_entry.unsqueeze(-1) + nodes @ w_node)  # [S, J]
        e = e.masked_fill(~member, float("-inf"))
        e_self = F.leaky_relu(from_entry + entry @ w_node)  # [S]
        beta = torch.cat([e_self.unsqueeze(-1), e], -1).softmax(-1)
        return self.act(beta[:, :1] * self.V(entry) + beta[:, 1:] @ self.V(nodes))
