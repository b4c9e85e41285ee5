"""Several processes, one training: ``torchrun --nproc-per-node 2 -m pyro_vsm.cli train ...``.

What is split and what is not. Every process draws the same joint batch of tasks from the same random stream and
encodes its own share of the tasks; the features are gathered, and every process computes the heads, the loss
and the memory's consolidation of the joint batch alike. So loss and memory are those of one process with the joint
batch, posterior noise included, and a system need not know of any of this. Its price: the heads, a few per cent of a
step, are computed by all. The backbone's gradients are averaged; heads and memory stay equal up to rounding and are
levelled whenever a line of the log is written. Batch normalisation sees the share of a process alone, unless
``training.sync_batch_norm`` makes its moments those of the joint batch (then the results agree to rounding).

A system with a ``forward`` of its own (MAML, say) gets its share of tasks and classes; its gradients are averaged.

With one process every function here does nothing.
"""

from __future__ import annotations

import gc
import math
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from itertools import pairwise
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pyro_vsm.errors import UserError

_alone = False
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor  # renamed in PyTorch 2.14


def start() -> None:
    """Join the processes that torchrun started; does nothing where there is one process, or when called again.

    Raises:
        UserError: torchrun's variables are set, but the processes cannot meet.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or dist.is_initialized():
        return
    cuda = torch.cuda.is_available()
    if cuda:
        local = int(os.environ.get("LOCAL_RANK", "0"))
        if local >= torch.cuda.device_count():
            raise UserError(
                f"process {local + 1} of this machine has no GPU ({torch.cuda.device_count()} are here); "
                "give torchrun --nproc-per-node as many processes as GPUs"
            )
        torch.cuda.set_device(local)
    try:
        dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=timedelta(minutes=10))
    except (RuntimeError, ValueError) as error:
        raise UserError(f"the processes of torchrun cannot meet ({error}); start them with torchrun") from error


def finish() -> None:
    """Leave the group, if there is one."""
    if dist.is_initialized():
        gc.collect()  # a captured step that still waits to be freed would hold the group
        dist.destroy_process_group()


def size() -> int:
    """Number of processes W."""
    return dist.get_world_size() if dist.is_initialized() and not _alone else 1


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if size() > 1 else 0


def is_main() -> bool:
    """Whether this process writes files and speaks to the user."""
    return rank() == 0


@contextmanager
def alone() -> Iterator[None]:
    """As if there were one process (to compare with)."""
    global _alone
    before, _alone = _alone, True
    try:
        yield
    finally:
        _alone = before


def barrier() -> None:
    """Wait for the others."""
    agree(False)


def agree(flag: bool) -> bool:
    """Whether the flag is set in any process. Waits for the other processes, not for the device."""
    if size() == 1:
        return flag
    value = torch.tensor(int(flag))
    dist.all_reduce(value, dist.ReduceOp.MAX)
    return bool(value)


def shared(value: Any) -> Any:
    """The first process's value (anything that pickles; the processes trust each other)."""
    if size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, 0)
    return box[0]


@contextmanager
def main_first() -> Iterator[None]:
    """The first process runs the body before the others (which then find what it has cached)."""
    if not is_main():
        barrier()
    yield
    if is_main():
        barrier()


def share(tensor: Tensor) -> Tensor:
    """The part of this process of the joint batch: ``[B, ...]`` to ``[B / W, ...]``.

    Raises:
        UserError: B is no multiple of W.
    """
    W = size()
    if W == 1:
        return tensor
    if len(tensor) % W:
        raise UserError(f"{len(tensor)} cannot be split over {W} processes; give a multiple of {W} (episodes.tasks)")
    return tensor.chunk(W)[rank()]


class _Gather(torch.autograd.Function):
    """Concatenation over the processes, in a program that goes on alike in all of them.

    The gradient of the joint loss with respect to this process's part is at hand without asking the others; the
    factor W makes the average of the parameters' gradients over the processes the joint one.
    """

    @staticmethod
    def forward(ctx, part: Tensor) -> Tensor:
        whole = part.new_empty(part.shape[0] * size(), *part.shape[1:])
        _all_gather(whole, part.contiguous())
        return whole

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return gradient.chunk(size())[rank()] * size()


class _Average(torch.autograd.Function):
    """Mean over the processes of a tensor of the same shape."""

    @staticmethod
    def forward(ctx, value: Tensor) -> Tensor:
        value = value.clone()
        dist.all_reduce(value)
        return value / size()

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return _Average.forward(ctx, gradient)


def joined(part: Tensor) -> Tensor:
    """The joint batch ``[B, ...]`` of every process's ``[B / W, ...]``, differentiable."""
    return part if size() == 1 else _Gather.apply(part)


def average(value: Tensor) -> Tensor:
    """The mean over the processes, differentiable."""
    return value if size() == 1 else _Average.apply(value)


@torch.no_grad()
def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace gradients by their means over the processes, in one message."""
    found = [p.grad for p in parameters if p.grad is not None]
    if size() == 1 or not found:
        return
    flat = torch.cat([g.reshape(-1) for g in found])
    dist.all_reduce(flat)
    flat /= size()
    parts = flat.split([g.numel() for g in found])
    torch._foreach_copy_(found, [part.view(g.shape) for part, g in zip(parts, found)])


@torch.no_grad()
def level(tensors: Iterable[Tensor]) -> None:
    """Give every process the first one's values."""
    if size() == 1:
        return
    for tensor in tensors:
        value = tensor.contiguous()
        dist.broadcast(value, 0)
        if value is not tensor:
            tensor.copy_(value)


def portion(number: int, unit: int = 1) -> range:
    """Which of so many things this process works on: neighbours, whole units; all where there are too few units."""
    W, units = size(), math.ceil(number / unit)
    if units < W:
        return range(number)
    return range(rank() * units // W * unit, min((rank() + 1) * units // W * unit, number))


@torch.no_grad()
def gather_portions(part: Tensor, number: int, unit: int = 1) -> Tensor:
    """Rows ``[number, ...]`` of what every process made of its :func:`portion`, in order, on every process."""
    W, units = size(), math.ceil(number / unit)
    if W == 1 or units < W:
        return part
    borders = [min(r * units // W * unit, number) for r in range(W + 1)]
    lengths = [b - a for a, b in pairwise(borders)]
    kind = torch.uint8 if part.dtype == torch.bool else part.dtype  # gloo does not send bools
    padded = torch.zeros(max(lengths), *part.shape[1:], dtype=kind, device=part.device)
    padded[: len(part)] = part
    whole = padded.new_empty(W, *padded.shape)
    _all_gather(whole.view(-1, *padded.shape[1:]), padded)
    return torch.cat([whole[r, :n] for r, n in enumerate(lengths)]).to(part.dtype)
