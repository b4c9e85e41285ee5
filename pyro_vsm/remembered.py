"""Matrices that are the same for all tasks are computed once, not at every call: for prediction on a CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


class Remembered(Generic[T]):
    """A pure function of tensors that keeps the result of its last call, and gives it again for equal arguments.

    Arguments are compared by value with copies of the last ones, and the result is that of the copies: nothing is
    stale, whatever has changed the arguments, in whichever way and thread. To be used where :func:`lasting` says so:
    on CUDA the host would have to wait for the comparison, and a result with gradients belongs to the graph of one
    call. Posterior and likelihood together hold about six D x D matrices where W has full rank, in no ``state_dict``,
    copy or pickle.

    Args:
        function: of tensors, numbers and None; nobody may change its result in place.
    """

    def __init__(self, function: Callable[..., T]):
        self.function = function
        self._last: tuple[list[Any], T] | None = None

    def __call__(self, *arguments: Any) -> T:
        """``function(*arguments)``."""
        last = self._last  # read once: another thread may replace it
        if last is None or not all(map(_equal, last[0], arguments)):
            # what inference mode makes could not be used in a graph afterwards
            with torch.inference_mode(False), torch.no_grad():
                copies = [a.clone() if isinstance(a, Tensor) else a for a in arguments]
                last = self._last = (copies, self.function(*copies))
        return last[1]

    def __getstate__(self) -> dict[str, Any]:
        return {"function": self.function, "_last": None}


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    return type(a) is type(b) and a == b


def lasting(diagonals: list[Tensor], factors: list[Tensor | None]) -> bool:
    """Whether what follows from these covariances is to be remembered, as ``D x D`` matrices.

    It is without gradients and on a CPU, where all classes, tasks and samples share them, and where their factors
    have so many columns that a product with a whole matrix costs no more than those with the factors.

    Args:
        diagonals: ``[..., D]`` each.
        factors: ``[..., D, R]`` each, or None.
    """
    first, there = diagonals[0], [f for f in factors if f is not None]
    return (
        not torch.is_grad_enabled()
        and first.device.type == "cpu"
        and all(d.shape[:-1].numel() == 1 for d in diagonals)
        and all(f.shape[:-2].numel() == 1 for f in there)
        and 2 * sum(f.shape[-1] for f in there) >= first.shape[-1]
    )
