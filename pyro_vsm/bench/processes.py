"""Several processes against one: the same losses and memory for the same joint batches, and images a second.

Start with ``torchrun --nproc-per-node 2 -m pyro_vsm.cli bench parallel``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from pyro_vsm import parallel
from pyro_vsm.bench.step import StepConfig, as_trained, make_trainer, random_splits
from pyro_vsm.bench.timing import reset_memory, rounds
from pyro_vsm.errors import UserError
from pyro_vsm.training import pick_device


@dataclass
class ParallelConfig(StepConfig):
    """As for a step; ``tasks`` are those of one process, so that W processes have W times the joint batch.

    Args:
        checked_steps: eager float32 steps with joint batch normalisation whose losses are compared; 0 for none.
    """

    systems: list[str] = field(default_factory=lambda: ["vsm"])
    checked_steps: int = 5


def run(c: ParallelConfig, log: Callable[[str], None] = print) -> list[dict[str, Any]]:
    """Speeds of one and of W processes, and the largest differences of losses and memory.

    Raises:
        UserError: there is one process.
    """
    W = parallel.size()
    if W == 1:
        raise UserError("bench parallel compares processes; start it with torchrun --nproc-per-node 2")
    device = pick_device(c.device)
    data = random_splits(c, device)
    rows: list[dict[str, Any]] = []
    with as_trained():
        for system in c.systems:
            row: dict[str, Any] = {"system": system, "processes": W, "tasks_per_process": c.tasks}
            with parallel.alone():  # all processes at once, each alone on its device
                one = _speed(c, system, data, device)
            parallel.barrier()
            joint = _speed(replace(c, tasks=W * c.tasks), system, data, device)
            parallel.barrier()
            row["one_ms"], row["all_ms"] = round(one, 3), round(joint, 3)
            row["one_images_per_s"] = round(1e3 * c.batch / one, 1)
            row["all_images_per_s"] = round(1e3 * W * c.batch / joint, 1)
            row["speed_up"] = round(W * one / joint, 3)
            if c.checked_steps:
                row |= _differences(c, system, data, device)
            rows.append(row)
            log(", ".join(f"{k} {v}" for k, v in row.items()))
    return rows


def _speed(c: StepConfig, system: str, data: Any, device: torch.device) -> float:
    """Milliseconds of a step with the joint batch of ``c``."""
    reset_memory(device)
    trainer = make_trainer(c, system, data)
    for _ in range(8):
        trainer._advance()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return rounds(trainer._advance, device, c.seconds).ms


def _differences(c: ParallelConfig, system: str, data: Any, device: torch.device) -> dict[str, float]:
    """Largest differences between all processes together and one with the same joint batches."""
    plain: dict[str, Any] = {
        "amp": False,
        "amp_heads": False,
        "compile": False,
        "compile_heads": False,
        "cuda_graph": False,
    }
    plain |= {"tasks": parallel.size() * c.tasks}
    found = []
    precision = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        found.append(_trained(replace(c, **plain), system, data, c.checked_steps))
        with parallel.alone():
            found.append(_trained(replace(c, **plain), system, data, c.checked_steps))
    finally:
        torch.backends.cudnn.allow_tf32 = precision
    (losses, memory), (losses_one, memory_one) = found
    result = {
        "losses_differ_by": max(abs(a - b) for a, b in zip(losses, losses_one)),
        "last_loss": losses[-1],
    }
    if memory is not None and memory_one is not None:
        result["memory_differs_by"] = (memory - memory_one).abs().max().item()
        result["memory_size"] = memory_one.abs().max().item()
        mean = parallel.average(memory)
        result["processes_differ_by"] = (mean - memory).abs().max().item()
    return {k: float(f"{v:.3g}") for k, v in result.items()}


def _trained(c: StepConfig, system: str, data: Any, steps: int) -> tuple[list[float], torch.Tensor | None]:
    # Adam divides by the gradient's size, and would blow its rounding up where the gradient is zero
    trainer = make_trainer(c, system, data, "sgd")
    from pyro_vsm.joint_norm import join_batch_norm

    join_batch_norm(trainer.model.encoder)
    losses = []
    for _ in range(steps):
        before = trainer.sums["loss"].item() if trainer.sums else 0.0
        trainer._advance()
        losses.append(trainer.sums["loss"].item() - before)
    memory = getattr(trainer.model, "memory", None)
    return losses, None if memory is None else memory.entries.clone()
