"""A system's loss with its gradients as one compiled function, whatever Python (Pyro, too) computes it.

``torch.compile`` cannot look through Pyro's handlers. But they run ordinary tensor operations of fixed shapes, so the
loss and its backward pass are recorded once with ``make_fx`` and the record is compiled: hundreds of small kernels
become some dozens. What the record cannot see is a Python branch that changes from step to step; a system whose loss
has one says ``traceable = False``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

from pyro_vsm.fused import fused

if TYPE_CHECKING:
    from pyro_vsm.fewshot import FewShotModel

Terms = dict[str, Tensor]


class CompiledLoss:
    """Stands in for :meth:`FewShotModel.loss <pyro_vsm.fewshot.FewShotModel.loss>` of one model.

    The gradients are computed together with the loss; ``backward`` only hands them out. Recorded anew for other
    shapes, shots or autocast; parameters that are frozen when it is recorded get no gradient.

    Args:
        model: whose heads (everything outside the encoder) the loss depends on.
        compiler: applied to the recorded graph; by default :func:`~pyro_vsm.fused.fused`.
        root: ``backward`` is called on the loss itself, not on a multiple: the gradients need not be scaled.
    """

    def __init__(self, model: FewShotModel, compiler: Callable[[Any], Any] | None = None, root: bool = False):
        self.model = model
        self.loss = type(model).loss
        self.compiler = compiler or fused
        self.root = root
        self._recorded: dict[tuple, tuple[Callable, _Outline]] = {}

    def __call__(self, features: Tensor, shot: int, classes: Tensor, progress: Tensor) -> tuple[Tensor, Terms]:
        """See :meth:`FewShotModel.loss <pyro_vsm.fewshot.FewShotModel.loss>`."""
        parameters = {
            k: p
            for k, p in self.model.named_parameters(remove_duplicate=False)
            if not k.startswith("encoder.") and p.requires_grad
        }
        rest = {
            k: v
            for k, v in (*self.model.named_parameters(), *self.model.named_buffers())
            if k not in parameters and not k.startswith("encoder.")
        }
        inputs = [features.detach(), classes, progress, *(p.detach() for p in parameters.values()), *rest.values()]
        device = features.device.type
        key: tuple = (shot, features.requires_grad, torch.is_autocast_enabled(device), tuple(parameters))
        key += tuple((t.shape, t.dtype) for t in inputs)
        if key not in self._recorded:
            self._recorded[key] = self._record(inputs, shot, features.requires_grad, list(parameters), list(rest))
        graph, outline = self._recorded[key]
        with torch.no_grad(), torch.autocast(device, enabled=False):  # the casts are in the record
            out = graph(*inputs)
        loss, gradients, terms, pending = outline.split(out)
        if outline.pending is not None:
            self.model.pending = outline.pending(pending)
        return _Given.apply(loss, gradients, self.root, features, *parameters.values()), terms

    def _record(
        self, inputs: list[Tensor], shot: int, through: bool, names: list[str], rest: list[str]
    ) -> tuple[Callable, _Outline]:
        outline = _Outline(len(names))
        whole = _Whole(self.model, self.loss)

        def run(features: Tensor, classes: Tensor, progress: Tensor, *tensors: Tensor) -> list[Tensor]:
            features = features.detach().requires_grad_(through)
            heads = [t.detach().requires_grad_() for t in tensors[: len(names)]]
            state = dict(zip((f"model.{n}" for n in (*names, *rest)), (*heads, *tensors[len(names) :])))
            with torch.enable_grad():
                loss, terms = torch.func.functional_call(whole, state, (features, shot, classes, progress))
                found = torch.autograd.grad(loss, [features, *heads] if through else heads, allow_unused=True)
            return outline.join(loss, found if through else (None, *found), terms, self.model.pending)

        with _attributes_kept(self.model):
            graph = make_fx(run, tracing_mode="fake")(*inputs)
        graph.graph.eliminate_dead_code()  # constants of the CPU that nothing reads, which a capture would not allow
        graph.recompile()
        return self.compiler(graph), outline


class _Whole(nn.Module):
    """A module whose call is the model's loss, for :func:`torch.func.functional_call`."""

    def __init__(self, model: nn.Module, loss: Callable):
        super().__init__()
        self.model, self.loss = model, loss

    def forward(self, *args: Any) -> tuple[Tensor, Terms]:
        """The loss."""
        return self.loss(self.model, *args)


class _Outline:
    """How loss, gradients, terms and what the model leaves for ``after_step`` lie in one flat list."""

    def __init__(self, parameters: int):
        self.parameters = parameters
        self.found: list[bool] = []
        self.terms: list[str] = []
        self.pending: Callable[[list[Tensor]], Any] | None = None

    def join(self, loss: Tensor, found: tuple, terms: Terms, pending: Any) -> list[Tensor]:
        """The flat list; remembers its form."""
        self.found, self.terms = [g is not None for g in found], list(terms)
        flat = [loss, *(g for g in found if g is not None), *terms.values()]
        if pending is not None:
            values = {f.name: getattr(pending, f.name) for f in fields(pending)}
            kind, names = type(pending), [k for k, v in values.items() if v is not None]
            nothing = dict.fromkeys(values)
            self.pending = lambda given: kind(**{**nothing, **dict(zip(names, given))})
            flat += [values[k] for k in names]
        return [t.detach() for t in flat]

    def split(self, flat: list[Tensor]) -> tuple[Tensor, list[Tensor | None], Terms, list[Tensor]]:
        """Loss, a gradient or None for the features and each parameter, terms, the rest."""
        loss, *rest = flat
        gradients: list[Tensor | None] = [rest.pop(0) if there else None for there in self.found]
        terms = {name: rest.pop(0) for name in self.terms}
        return loss, gradients, terms, rest


class _Given(torch.autograd.Function):
    """A value whose gradients are known already."""

    @staticmethod
    def forward(ctx, loss: Tensor, gradients: list[Tensor | None], root: bool, *inputs: Tensor) -> Tensor:
        ctx.gradients, ctx.root = gradients, root
        return loss.clone()

    @staticmethod
    def backward(ctx, outer: Tensor) -> tuple:  # type: ignore[override]
        # held by nothing else, they become the parameters' own; otherwise each would be copied
        gradients, ctx.gradients = ctx.gradients, None
        if not ctx.root:
            scaled = iter(torch._foreach_mul([g for g in gradients if g is not None], outer))
            gradients = [None if g is None else next(scaled) for g in gradients]
        return (None, None, None, *gradients)


@contextmanager
def _attributes_kept(model: nn.Module) -> Iterator[None]:
    """What a recorded call sets on the modules (weights of the KL terms, say) belongs to the record alone."""
    before = [(m, dict(m.__dict__)) for m in model.modules()]
    try:
        yield
    finally:
        for module, attributes in before:
            module.__dict__.clear()
            module.__dict__.update(attributes)


def compile_loss(model: FewShotModel, compiler: Callable[[Any], Any] | None = None, root: bool = False) -> None:
    """Replace ``model.loss`` by its compiled form, where the system can be recorded (``traceable``).

    See :class:`CompiledLoss` for the arguments.
    """
    if model.traceable:
        model.__dict__["loss"] = CompiledLoss(model, compiler, root)
