"""Batch normalisation by the moments of what all processes hold together.

Apart from :mod:`pyro_vsm.parallel`, because it loads the compiler, which takes two seconds.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pyro_vsm import parallel

average = torch.compiler.disable(parallel.average)  # a message between processes is nothing to compile


class JointBatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation by the moments of the joint batch; ``nn.SyncBatchNorm`` for CPU, too."""

    def forward(self, x: Tensor) -> Tensor:
        """``[B / W, C, H, W]``."""
        if not self.training or parallel.size() == 1:
            return super().forward(x)
        values = x.float()
        own_mean, own_var = values.mean((0, 2, 3)), values.var((0, 2, 3), unbiased=False)
        mean = average(own_mean)
        var = average(own_var + (own_mean - mean).square())
        if self.track_running_stats and self.running_mean is not None and self.running_var is not None:
            number = values.numel() // values.shape[1] * parallel.size()
            with torch.no_grad():
                self.num_batches_tracked.add_(1)  # type: ignore[union-attr]
                self.running_mean.lerp_(mean, self.momentum or 0.0)
                self.running_var.lerp_(var * (number / (number - 1)), self.momentum or 0.0)
        scale = torch.rsqrt(var + self.eps)
        if self.affine:
            scale = scale * self.weight
        shift = (self.bias if self.affine else 0.0) - mean * scale
        return (values * scale[:, None, None] + shift[:, None, None]).to(x.dtype)


def join_batch_norm(module: nn.Module) -> None:
    """Make every :class:`torch.nn.BatchNorm2d` inside normalise by the joint batch; names and values stay."""
    for part in module.modules():
        if type(part) is nn.BatchNorm2d:
            part.__class__ = JointBatchNorm2d
