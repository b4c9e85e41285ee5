"""Where autocast must not reach."""

from __future__ import annotations

import torch
from torch import Tensor


def full_precision(like: Tensor) -> torch.autocast:
    """A context without autocast: densities and moments need more digits than bfloat16 has."""
    return torch.autocast(like.device.type, enabled=False)
