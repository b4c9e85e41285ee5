"""Where autocast must not reach, and how float32 matrix products are computed on a CPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch
from torch import Tensor


def full_precision(like: Tensor) -> torch.autocast:
    """A context without autocast: densities and moments need more digits than bfloat16 has."""
    return torch.autocast(like.device.type, enabled=False)


@contextmanager
def fast_products() -> Iterator[None]:
    """Float32 matrix products on the CPU by oneDNN, where it keeps the digits of float32; CUDA is not concerned.

    PyTorch gives them to oneDNN only if bfloat16 is allowed inside, else to MKL, which on AMD processors uses half
    of the vector width. oneDNN makes use of the permission where there are matrix units for bfloat16: tried once.
    The setting is one of the process, and what it was before afterwards.
    """
    if not _digits_kept():
        yield
        return
    with _bfloat16_allowed():
        yield


@contextmanager
def _bfloat16_allowed() -> Iterator[None]:
    matmul = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = matmul.fp32_precision
    matmul.fp32_precision = "bf16"
    try:
        yield
    finally:
        matmul.fp32_precision = before


@cache
def _digits_kept() -> bool:
    if not torch.backends.mkldnn.is_available():
        return False
    # numbers that bfloat16 would round to 1; large enough for the kernel that large products get
    x = torch.full((512, 512), 1 + 2.0**-12, device="cpu", dtype=torch.float32)
    with _bfloat16_allowed(), torch.inference_mode(), full_precision(x):
        return torch.equal(x @ torch.eye(512, device="cpu", dtype=torch.float32), x)
