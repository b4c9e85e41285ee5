"""``torch.compile`` as every part of a training step asks for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def fused(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """Compiled for tensors of fixed shapes.

    A step has hundreds of kernels of a few microseconds. The compiler joins those that follow from one another;
    here it is asked to put independent ones of one level (``combo_kernels``) into one kernel, too.

    Args:
        function: what to compile.
        options: further wishes (:func:`torch._inductor.list_options`); those that this version does not know are
            left out.
    """
    import torch._inductor  # two seconds, which only those who compile should wait

    known = torch._inductor.list_options()
    wishes = {"combo_kernels": True, **options}
    return torch.compile(function, dynamic=False, options={k: v for k, v in wishes.items() if k in known})
