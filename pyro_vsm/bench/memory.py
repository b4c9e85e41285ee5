"""Recall and consolidation against the number of entries of the memory: time and memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from pyro_vsm.bench.timing import peak_megabytes, reset_memory, timed
from pyro_vsm.memory import SemanticMemory
from pyro_vsm.training import pick_device


@dataclass
class MemoryConfig:
    """What is timed.

    Args:
        entries: numbers of entries C, each a memory of its own, full.
        dim: feature dimension.
        tasks: episodes in a batch.
        way: classes in an episode.
        images: of each class in a batch.
        retrieve: entries that each class of a task retrieves by exact search.
        dense_up_to: largest C at which recall of all entries is timed, too.
        device: auto, cpu, cuda or cuda:N.
        seconds: about how long each thing is timed.
    """

    entries: list[int] = field(default_factory=lambda: [64, 1000, 10_000, 100_000, 1_000_000])
    dim: int = 640
    tasks: int = 8
    way: int = 5
    images: int = 16
    retrieve: int = 16
    dense_up_to: int = 100_000
    device: str = "auto"
    seconds: float = 0.5


def filled(c: MemoryConfig, entries: int, device: torch.device, retrieve: int) -> SemanticMemory:
    """A memory of random entries of unit RMS, full."""
    with torch.device(device):
        memory = SemanticMemory(c.dim, capacity=entries, retrieve=retrieve)
    with torch.no_grad():
        memory.entries[:entries].normal_()
        memory.variances[:entries].fill_(1.0)
        memory.counts[:entries].fill_(1.0)
        memory.classes[:entries] = torch.arange(entries, device=device)
        memory.written[:entries] = torch.arange(entries, device=device)
        memory.step.fill_(entries)
    return memory


def run(c: MemoryConfig, log: Callable[[str], None] = print) -> list[dict[str, Any]]:
    """A row for each C and way of recall."""
    device = pick_device(c.device)
    rows = []
    for entries in c.entries:
        ways = [("retrieved", c.retrieve)] + ([("all", 0)] if entries <= c.dense_up_to else [])
        for name, retrieve in ways:
            reset_memory(device)
            before = peak_megabytes(device)
            torch.manual_seed(0)
            memory = filled(c, entries, device, retrieve)
            held = sum(b.numel() * b.element_size() for b in memory.buffers()) / 2**20
            features = torch.randn(c.tasks, c.way, c.images, c.dim, device=device, requires_grad=True)
            # half of the classes are known, half are new and push old ones out
            ids = torch.randperm(2 * entries, device=device)[: c.tasks * c.way] if entries >= 64 else None
            classes = (ids if ids is not None else torch.arange(c.tasks * c.way, device=device)).view(c.tasks, c.way)

            def recall(memory=memory, features=features, classes=classes) -> torch.Tensor:
                write = memory.consolidate(features, classes)
                seen = memory(features[:, :, 0], classes, write)
                loss = (seen.log_address.exp() @ seen.values).square().mean()
                (gradient,) = torch.autograd.grad(loss, features)
                return gradient

            def consolidate(memory=memory, features=features, classes=classes) -> None:
                with torch.no_grad():
                    memory.store(memory.consolidate(features, classes))

            row: dict[str, Any] = {"entries": entries, "recall": name, "held_MB": round(held, 2)}
            training = timed(recall, device, graph=True, seconds=c.seconds)
            with torch.no_grad():
                reading = timed(partial(memory, features[:, :, 0]), device, graph=True, seconds=c.seconds)
            writing = timed(consolidate, device, graph=True, seconds=c.seconds)
            row["recall_ms"] = round(reading.ms, 4)
            row["consolidate_and_store_ms"] = round(writing.ms, 4)
            row["consolidate_recall_backward_ms"] = round(training.ms, 4)
            if device.type == "cuda":  # on the CPU only the peak of the whole process is known
                row["working_MB"] = round(peak_megabytes(device) - before - held, 2)
            rows.append(row)
            log(", ".join(f"{k} {v}" for k, v in row.items()))
            del memory, features
    return rows
