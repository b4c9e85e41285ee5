"""The optimiser of a training: its groups, its rates over time, and clipping in its own pass."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pyro_vsm.config import TrainingConfig


def build_optimizer(
    backbone: Sequence[nn.Parameter], heads: Sequence[nn.Parameter], t: TrainingConfig, device: torch.device
) -> tuple[torch.optim.Optimizer, list[float]]:
    """A fused optimiser, because only that takes from the device, without waiting for it, a rate and a wish to skip.

    Args:
        backbone: parameters with the rate ``lr``.
        heads: parameters with the rate ``head_lr``; one group with the others where the two rates are the same.
        t: the rates, which optimiser, the weight decay.
        device: on CUDA the rate of a group is a tensor, so that a captured step reads the current one.

    Returns:
        The optimiser, and the rate of each of its groups at the start.
    """
    cuda = device.type == "cuda"
    parts = [(list(g), lr) for g, lr in ((backbone, t.lr), (heads, t.head_lr)) if g]
    if t.lr == t.head_lr:  # one group is one pass
        parts = [([*backbone, *heads], t.lr)]
    # of so many tensors a pass takes the first few dozen at once: the large ones
    parts = [(sorted(g, key=torch.Tensor.numel, reverse=True), lr) for g, lr in parts]
    groups = [{"params": g, "lr": torch.tensor(lr, device=device) if cuda else lr} for g, lr in parts]
    rates = [lr for _, lr in parts]
    if t.optimizer == "sgd":
        sgd = torch.optim.SGD(groups, momentum=0.9, nesterov=True, weight_decay=t.weight_decay, fused=True)
        for g, _ in parts:
            for p in g:  # PyTorch leaves the buffers unset where the first step is skipped
                sgd.state[p]["momentum_buffer"] = torch.zeros_like(p)
        return sgd, rates
    return torch.optim.AdamW(groups, weight_decay=t.weight_decay, capturable=cuda, fused=True), rates


def share_of_rate(t: TrainingConfig, done: float) -> float:
    """What the rates are multiplied by when so much of the training is over, ``done`` in [0, 1]."""
    if t.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * done))
    return 0.1 ** sum(done >= m for m in t.milestones)  # 1 but under steps


@torch.no_grad()
def limit(norms: Sequence[Tensor], divisor: Tensor, clip: float) -> Tensor:
    """Norm of the gradient whose tensors have these; sets what to divide it by to keep within ``clip`` (0: any)."""
    norm = torch.stack(list(norms)).norm()
    if clip:
        divisor.copy_((norm / clip).clamp_min(1.0))
    return norm
