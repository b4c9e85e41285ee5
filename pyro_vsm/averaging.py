"""Averages of the weights over the steps, which generalise better than the last ones."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from pyro_vsm.fused import fused


class Average:
    """Exponential moving average of parameters: ``e <- e + (1 - d) (p - e)``, ``d = min(decay, (1+t)/(10+t))``.

    Args:
        parameters: what to average.
        decay: in [0, 1); 0 follows the parameters.
        compiled: update in one pass over the memory, through ``torch.compile``.

    Attributes:
        rate: ``1 - d``, on the device; apart from :meth:`update`, which may be captured in a graph.
    """

    def __init__(self, parameters: list[nn.Parameter], decay: float, compiled: bool = False):
        self.parameters: list[Tensor] = list(parameters)
        self.decay = decay
        self.values = [p.detach().clone() for p in parameters]
        self.rate = torch.ones((), device=parameters[0].device)
        self._approach = fused(_approach) if compiled else _approach

    def rate_at(self, step: int) -> float:
        """``1 - d`` in this step, to be written to :attr:`rate` before it."""
        return 1 - min(self.decay, (1 + step) / (10 + step))

    @torch.no_grad()
    def update(self) -> None:
        """Take in the current parameters."""
        self._approach(self.values, self.parameters, self.rate)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The averages stand in for the parameters inside."""
        saved = [p.detach().clone() for p in self.parameters]
        with torch.no_grad():
            torch._foreach_copy_(self.parameters, self.values)
        try:
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(self.parameters, saved)


def _approach(values: list[Tensor], targets: list[Tensor], rate: Tensor) -> None:
    gap = torch._foreach_sub(targets, values)
    torch._foreach_mul_(gap, rate)
    torch._foreach_add_(values, gap)
