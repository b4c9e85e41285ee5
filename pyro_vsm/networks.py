"""The small networks inside priors and posteriors."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pyro_vsm.errors import UserError


class Residual(nn.Module):
    """``start + f(conditions)`` with f zero at the start.

    Args:
        dim: feature dimension D.
        conditions: how many D-dimensional tensors f looks at.
        hidden: width of the two hidden layers.
    """

    def __init__(self, dim: int, conditions: int = 1, *, hidden: int = 512):
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Linear(conditions * dim, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU()
        )
        self.mean = _zero_linear(hidden, dim)

    def hidden(self, *conditions: Tensor) -> Tensor:
        """``[..., hidden]`` from conditions that broadcast to ``[..., D]``."""
        first, *rest = self.trunk
        assert isinstance(first, nn.Linear)
        # the first layer of the conditions side by side, without repeating those that have fewer dimensions
        parts = [F.linear(c, w) for c, w in zip(conditions, first.weight.chunk(len(conditions), 1))]
        h = sum(parts[1:], parts[0]) + first.bias
        for layer in rest:
            h = layer(h)
        return h

    def forward(self, start: Tensor, *conditions: Tensor) -> Tensor:
        """``[..., D]``."""
        return start + self.mean(self.hidden(*conditions))


class ResidualGaussian(Residual):
    """Mean and standard deviation of a diagonal Gaussian around a given point.

    ``mean = start + f(conditions)``, ``log sigma = log_sigma + g(conditions)`` bounded to [-6, 2], f and g zero at
    the start: the deterministic prototype with little noise, which is what trains stably.

    Args:
        dim: feature dimension D.
        conditions: how many D-dimensional tensors f and g look at.
        hidden: width of the two hidden layers.
        log_sigma: log standard deviation at the start.
    """

    def __init__(self, dim: int, conditions: int = 1, *, hidden: int = 512, log_sigma: float = -2.0):
        super().__init__(dim, conditions, hidden=hidden)
        self.log_sigma = _zero_linear(hidden, dim, log_sigma)

    def forward(self, start: Tensor, *conditions: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """Mean and sigma, ``[..., D]``."""
        hidden = self.hidden(*conditions)
        if hidden.is_cuda:  # two small products are one there; on a CPU it would not pay for the copy of the weights
            layers = (self.mean, self.log_sigma)
            both = F.linear(hidden, torch.cat([m.weight for m in layers]), torch.cat([m.bias for m in layers]))
            mean, log_sigma = both.chunk(2, -1)
        else:
            mean, log_sigma = self.mean(hidden), self.log_sigma(hidden)
        log_sigma = log_sigma.to(start.dtype)  # an autocast region would leave it in bfloat16
        if torch.is_grad_enabled():
            return start + mean, log_sigma.clamp(-6.0, 2.0).exp()
        return start + mean, log_sigma.clamp_(-6.0, 2.0).exp_()  # its own memory: new memory costs time on a CPU


def _zero_linear(inputs: int, outputs: int, bias: float = 0.0) -> nn.Linear:
    layer = nn.Linear(inputs, outputs)
    nn.init.zeros_(layer.weight)
    nn.init.constant_(layer.bias, bias)
    return layer


class Positive(nn.Module):
    """A learned positive number, or a vector of them.

    Args:
        start: value at the start, > 0.
        size: number of entries.

    Raises:
        UserError: start is not positive.
    """

    def __init__(self, start: float, size: int = 1):
        super().__init__()
        if not start > 0:
            raise UserError(f"a scale, temperature or variance starts at {start}; give a number above 0")
        self.raw = nn.Parameter(torch.full((size,), start).expm1().log())

    def forward(self) -> Tensor:
        """``[size]``, > 0."""
        return F.softplus(self.raw) + 1e-6
