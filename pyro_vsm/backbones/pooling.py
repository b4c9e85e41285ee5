"""Second-order pooling: what channels of the last map have in common, rather than how strong each is."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pyro_vsm.errors import UserError
from pyro_vsm.precision import full_precision


def distance_covariance(maps: Tensor, eps: float = 1e-5) -> Tensor:
    """Brownian distance covariance matrix of the channels of a map (Székely, Rizzo 2009; Xie et al. 2022, eq. 5).

    Channels are points whose coordinates are the positions: ``a_ij = sqrt(mean_p (x_ip - x_jp)^2 + eps)``, then
    ``A_ij = a_ij - a_i. - a_.j + a_..`` (dots are means). The inner product of two images' matrices, over C^2, is the
    squared distance covariance of two maps whose channels are pairs of observations.

    Args:
        maps: ``[B, C, H, W]``.
        eps: added below the root, whose derivative at zero is infinite.

    Returns:
        ``[B, C (C + 1) / 2]`` in float32 (of float64 in float64): the upper triangle row by row, what lies off the
        diagonal times ``sqrt(2)``, so that inner products are those of the matrices.
    """
    x = maps.flatten(2)
    with full_precision(x):
        x = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
        x = x - x.mean(1, keepdim=True)  # moves no channel from another, and leaves the differences their digits
        products = x @ x.mT / x.shape[2]
        norms = products.diagonal(dim1=1, dim2=2)
        squared = norms.unsqueeze(1) + norms.unsqueeze(2) - 2 * products
        a = (squared.clamp_min(0.0) + eps).sqrt()
        row = a.mean(2)  # the matrix is symmetric
        centred = a - row.unsqueeze(1) - row.unsqueeze(2) + row.mean(1)[:, None, None]
        i, j = torch.triu_indices(*a.shape[1:], device=a.device)
        # by one index a pair, whose gradient needs no sorting
        upper = centred.flatten(1).index_select(1, i * a.shape[2] + j)
        return upper * torch.full(i.shape, 2**0.5, dtype=a.dtype, device=a.device).masked_fill(i == j, 1.0)


class DistanceCovariance(nn.Module):
    """:func:`distance_covariance` of a map whose channels were reduced by 1x1 convolution, normalisation and ReLU.

    Args:
        inputs: channels of the map.
        reduced: C, channels afterwards; None leaves the map as it is.

    Attributes:
        dim: C (C + 1) / 2.

    Raises:
        UserError: fewer than two channels.
    """

    def __init__(self, inputs: int, reduced: int | None = None):
        super().__init__()
        channels = inputs if reduced is None else reduced
        if not isinstance(channels, int) or channels < 2:
            raise UserError(f"distance covariance of {channels!r} channels; give a whole number from 2 on")
        layers: list[nn.Module] = []
        if reduced is not None:
            layers = [nn.Conv2d(inputs, reduced, 1, bias=False), nn.BatchNorm2d(reduced), nn.ReLU(inplace=True)]
        self.reduce = nn.Sequential(*layers)
        self.dim = channels * (channels + 1) // 2

    def forward(self, maps: Tensor) -> Tensor:
        """Float32 ``[B, dim]`` of ``[B, inputs, H, W]``."""
        return distance_covariance(self.reduce(maps))
