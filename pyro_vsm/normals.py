"""Standard normal numbers on a CPU by all of its cores: PyTorch draws them by one."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import torch
from torch import Tensor

CHUNK = 2**18
"""Numbers that one generator draws; what is drawn does not depend on the number of threads."""


def normals(shape: Sequence[int], like: Tensor) -> Tensor:
    """Standard normal numbers of a shape, with dtype and device of ``like``.

    Many on a CPU are drawn a chunk at a time, each by a generator that PyTorch's own one seeds.
    """
    shape = tuple(shape)
    if like.device.type != "cpu" or math.prod(shape) < 2 * CHUNK:
        return torch.randn(shape, dtype=like.dtype, device=like.device)
    with torch.inference_mode(False):  # a mode of this thread alone, in which others could not write
        z = torch.empty(shape, dtype=like.dtype, device="cpu")
        chunks = z.view(-1).split(CHUNK)
    seeds = torch.randint(2**32, (len(chunks),), device="cpu").tolist()
    list(_pool(torch.get_num_threads()).map(_draw, chunks, seeds))
    return z


def _draw(chunk: Tensor, seed: int) -> None:
    chunk.normal_(generator=torch.Generator("cpu").manual_seed(seed))


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="normals")


if hasattr(os, "register_at_fork"):  # threads do not survive it
    os.register_at_fork(after_in_child=_pool.cache_clear)
