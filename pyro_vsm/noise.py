"""W in the model: the pooled within-class covariance as noise of an image around its prototype."""

from __future__ import annotations

from torch import Tensor, nn

from pyro_vsm.networks import Positive
from pyro_vsm.task import Task


class Noise(nn.Module):
    """W as a factor of the model sees it: ``scale * (W + shrink * mean(diag W)) / (1 + shrink)``, both learned.

    Args:
        scale: at the start; None fixes it to 1.
    """

    def __init__(self, scale: float | None = 1.0):
        super().__init__()
        self.scale = Positive(scale) if scale is not None else None
        self.shrink = Positive(1.0)

    def forward(self, task: Task) -> tuple[Tensor, Tensor | None]:
        """Diagonal ``[T, 1, D]`` and factor ``[T, 1, D, r]`` (None where no covariance is kept); 1 for no memory."""
        recall = task.recall
        w = recall.mean_variance()[2].unsqueeze(1)
        shrink = self.shrink()
        share = (1.0 if self.scale is None else self.scale()) / (1 + shrink)
        rest, factor = w, None
        if recall.within_factor is not None:
            g = recall.within_factor * (~recall.empty).to(w.dtype)[:, None, None]  # [T, D, r]
            rest = (w - g.square().sum(-1).unsqueeze(1)).clamp_min(0.0)
            factor = share.sqrt() * g.unsqueeze(1)
        return share * (rest + shrink * w.mean(-1, keepdim=True)) + 1e-6, factor
