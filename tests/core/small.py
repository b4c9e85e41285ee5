"""Small models, memories and tasks for the tests of the core."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from pyro_vsm.backbones import Backbone
from pyro_vsm.encoder import Encoder
from pyro_vsm.likelihood import LIKELIHOODS
from pyro_vsm.memory import SemanticMemory
from pyro_vsm.memory_updates import MEMORY_UPDATES
from pyro_vsm.memory_uses import MEMORY_USES
from pyro_vsm.posteriors import POSTERIORS_M, POSTERIORS_Z
from pyro_vsm.priors import PRIORS_M, PRIORS_Z
from pyro_vsm.task import Task
from pyro_vsm.vsm import VSM

CAPACITY = 6
REGISTRIES = {
    r.kind: r for r in (PRIORS_M, PRIORS_Z, POSTERIORS_M, POSTERIORS_Z, LIKELIHOODS, MEMORY_USES, MEMORY_UPDATES)
}
DEFAULTS = {
    name: parameter.default for name, parameter in inspect.signature(VSM).parameters.items() if name in REGISTRIES
}
"""The default of every kind of part."""

STATES = {"empty": 0, "one-entry": 1, "full": CAPACITY}
"""Memory states, as the number of entries."""


class Flat(Backbone):
    """One linear layer on the pixels of 4x4 images: a backbone that costs nothing."""

    def __init__(self, dim: int):
        super().__init__(1, 4)
        self.dim = dim
        self.layer = nn.Sequential(nn.Flatten(), nn.Linear(16, dim))

    def forward(self, images: Tensor) -> Tensor:
        return self.layer(images)


def narrow(kind: str, spec: Any, hidden: int = 16) -> Any:
    """The spec of a part with hidden layers of that width, where it has some and does not say how wide."""
    if isinstance(spec, nn.Module):
        return spec
    path, arguments = (spec["class_path"], spec.get("init_args", {})) if isinstance(spec, dict) else (spec, {})
    takes = inspect.signature(REGISTRIES[kind].find(path)).parameters
    return {"class_path": path, "init_args": {**({"hidden": hidden} if "hidden" in takes else {}), **arguments}}


def vsm(dim: int = 8, **options) -> VSM:
    """A VSM of that feature dimension, with narrow networks and no warm-up."""
    settings = {"capacity": CAPACITY, "warmup": 0.0, "address_dim": 4, "beta_z": 1.0, "beta_m": 1.0, **options}
    if settings.get("trusted", True):
        settings.update({kind: narrow(kind, settings.get(kind, name)) for kind, name in DEFAULTS.items()})
    return VSM(Encoder(Flat(dim), [0.5], [0.25]), **settings)


def memory(dim: int, entries: int, *, images: int = 4, **options) -> SemanticMemory:
    """A memory with that many entries, of classes 0, 1, ..., each consolidated from a few random features."""
    m = SemanticMemory(dim, **{"capacity": CAPACITY, "address_dim": 4, **options})
    if entries:
        m.store(m.consolidate(torch.randn(1, entries, images, dim), torch.arange(entries).unsqueeze(0)))
        m.refresh()
    return m


def task(
    dim: int, entries: int, *, tasks: int = 2, ways: int = 3, shots: int = 2, queries: int = 4, **options
) -> Task:
    """A random task whose memory has that many entries."""
    support, query = torch.randn(tasks, ways, shots, dim), torch.randn(tasks, queries, dim)
    labels = torch.arange(queries).expand(tasks, -1) % ways
    return recall(memory(dim, entries, **options), support, query, labels)


def recall(m: SemanticMemory, support: Tensor, query: Tensor, labels: Tensor | None = None) -> Task:
    """The task of these features with what the memory says, without gradient into the memory's parameters."""
    with torch.no_grad():
        return Task(support, query, m(support.mean(2)), labels)


def to(part: Task, *args) -> Task:
    """The same task with another dtype or device."""
    move = {
        name: value.to(*args) if value.is_floating_point() or isinstance(args[0], torch.device) else value
        for name, value in vars(part.recall).items()
        if value is not None
    }
    labels = part.labels.to(args[0]) if part.labels is not None and isinstance(args[0], torch.device) else part.labels
    return Task(part.support.to(*args), part.query.to(*args), type(part.recall)(**move), labels)


@torch.no_grad()
def randomise(module: nn.Module, scale: float = 0.5) -> nn.Module:
    """Add noise to every parameter, so that nothing hides behind a layer that starts at zero.

    A weight's noise is divided by the root of its inputs: outputs move by about ``scale``.
    """
    for p in module.parameters():
        p.add_(scale * torch.randn_like(p) / (p.shape[1] ** 0.5 if p.dim() == 2 else 1))
    return module
