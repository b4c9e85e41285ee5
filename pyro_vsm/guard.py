"""Training steps that are not finite do no harm: skipped and counted on the device, which is not waited for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pyro_vsm import parallel
from pyro_vsm.fused import fused

_COUNTS = ("good", "skipped", "row", "began")
BUFFERS = "memory or batch statistics"
"""What is named where everything but the model's buffers was finite."""


@dataclass(frozen=True)
class Findings:
    """What was not finite, read from the device.

    Attributes:
        good: steps that were finite since the last line of the log.
        skipped: steps that were not, since then.
        row: steps in a row that were not, up to the last one.
        began: the first of that row.
        odd: the terms that were not finite in it.
    """

    good: int
    skipped: int
    row: int
    began: int
    odd: list[str]

    def sentence(self) -> str:
        """Which factors, which step."""
        # a factor that is not finite takes these with it
        results = ("elbo", "loss", "gradient_norm")
        factors = [k for k in self.odd if k not in results]
        found = [k for k in self.odd if k in results]
        what = ", ".join(factors or found) + (f" (and with that {', '.join(found)})" if factors and found else "")
        return f"from step {self.began} on {self.row} steps in a row were not finite: {what}"


class StepGuard:
    """Leaves weights, optimiser, average and buffers of the model as they were where a step is not finite.

    A step is good if every term of the loss, the norm of the gradient and the buffers after it are finite. Where
    one of the first two is not, fused optimisers skip the step by their ``found_inf``; the buffers (memory, batch
    statistics) are put back. Every operation has a fixed shape and none waits, so a step can be captured.

    Args:
        model: whose buffers are put back.
        optimizer: a fused one.
        device: of the model.
        compiled: through ``torch.compile``: some dozens of kernels for a handful of numbers become a few.

    Attributes:
        number: of the step to come, from 1, on the device; set before the step, which may be captured in a graph.
    """

    def __init__(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, device: torch.device, compiled: bool = False
    ):
        self.model = model
        self.bad = torch.zeros((), device=device)
        vars(optimizer)["found_inf"] = self.bad  # as GradScaler does
        self.number = torch.zeros((), device=device)
        self.counts = torch.zeros(len(_COUNTS), device=device)  # float32 is exact up to 16 million steps
        self.names: list[str] = []
        self.odd = torch.zeros(0, dtype=torch.bool, device=device)
        self._now = self.odd
        self._buffers: list[Tensor] | None = None
        self._floats: list[Tensor] = []
        self._kept: list[Tensor] = []
        as_asked: Callable = fused if compiled else lambda function: function
        self._keep, self._odd = as_asked(_keep), as_asked(_odd)
        self._spoiled, self._settle = as_asked(_spoiled), as_asked(_settle)

    @torch.no_grad()
    def before(self) -> None:
        """Keep the buffers."""
        if self._buffers is None:
            self._buffers = list(self.model.buffers())
            self._floats = [b for b in self._buffers if b.is_floating_point() and b.numel()]
            self._kept = [torch.empty_like(b) for b in self._buffers]
        if self._buffers:
            self._keep(self._kept, self._buffers)

    @torch.no_grad()
    def judge(self, values: dict[str, Tensor]) -> Tensor:
        """Whether the optimiser may step.

        Args:
            values: scalars by name, as a rule the same in every step.

        Returns:
            1 or 0, a scalar on the device.
        """
        names = [*values, BUFFERS]
        if names != self.names:
            self.names, self.odd = names, torch.zeros(len(names), dtype=torch.bool, device=self.bad.device)
        self._now, good = self._odd(list(values.values()), self.bad)
        if parallel.size() > 1:
            self._now = parallel.average(self._now.float()) > 0  # all processes skip, or none
            self.bad.copy_(self._now.any())
            good = 1 - self.bad
        return good

    @torch.no_grad()
    def after(self) -> Tensor:
        """Put the buffers back where the step was not finite, and count.

        Returns:
            Whether the step was finite, a bool scalar on the device.
        """
        assert self._buffers is not None
        spoiled = self._spoiled(self._floats) if self._floats else torch.zeros_like(self._now[:1])
        if parallel.size() > 1:
            spoiled = parallel.average(spoiled.float()) > 0
        return self._settle(self._now, spoiled, self._buffers, self._kept, self.number, self.counts, self.odd)

    def findings(self) -> Findings:
        """Waits for the device."""
        good, skipped, row, began, *odd = torch.cat([self.counts, self.odd.float()]).tolist()
        names = [name for name, one in zip(self.names, odd) if one]
        return Findings(int(good), int(skipped), int(row), int(began), names)

    def next_line(self) -> None:
        """Count good and skipped steps anew; the row goes on."""
        self.counts[:2].zero_()

    def forgive(self) -> None:
        """End the row, so that a training that goes on from here is given as many steps again."""
        self.counts[2].zero_()

    def state(self) -> tuple[dict[str, Tensor], list[str]]:
        """What :meth:`restore` needs, to be saved."""
        return {"guard.counts": self.counts, "guard.odd": self.odd}, self.names

    def restore(self, tensors: dict[str, Tensor], names: list[str], good: int) -> None:
        """Put back what :meth:`state` gave; of states that have none, ``good`` steps were finite."""
        self.counts.zero_()
        self.counts[0] = good
        if "guard.counts" in tensors:
            self.counts.copy_(tensors["guard.counts"])
            self.names = [str(name) for name in names]
            self.odd = tensors["guard.odd"].to(self.bad.device)


def _keep(kept: list[Tensor], buffers: list[Tensor]) -> None:
    for copy, buffer in zip(kept, buffers):
        copy.copy_(buffer)


def _odd(values: list[Tensor], bad: Tensor) -> tuple[Tensor, Tensor]:
    """Which of some scalars are not finite, bool ``[n]``; 0 or 1 for whether all are, and in ``bad`` the opposite."""
    now = ~torch.isfinite(torch.stack([v.detach().float() for v in values]))
    bad.copy_(now.any())
    return now, 1 - bad


def _spoiled(floats: list[Tensor]) -> Tensor:
    """Whether any entry of some tensors is not finite, bool ``[1]``."""
    return ~torch.isfinite(torch.stack([b.abs().amax().float() for b in floats])).all(0, keepdim=True)


def _settle(
    now: Tensor,
    spoiled: Tensor,
    buffers: list[Tensor],
    kept: list[Tensor],
    number: Tensor,
    counts: Tensor,
    odd: Tensor,
) -> Tensor:
    """Puts back the buffers and counts, in place, where the step was bad; whether it was good."""
    now = torch.cat([now, spoiled & ~now.any()])
    bad = now.any()
    for buffer, before in zip(buffers, kept):
        buffer.copy_(torch.where(bad, before, buffer))
    one = bad.float()
    row = (counts[2] + 1) * one
    first = row == 1
    began = torch.where(first, number, counts[3])
    odd.copy_(torch.where(first, now, odd))
    counts.copy_(torch.stack([counts[0] + 1 - one, counts[1] + one, row, began]))
    return ~bad
