"""What every variant of a kind of part must do, whoever wrote it.

Derive from the class of the kind and parametrise over the variants::

    @pytest.mark.parametrize("spec", ["my_package.MyPrior"])
    class TestMyPrior(PriorZContract):
        pass

A spec is what :class:`pyro_vsm.registry.Registry` takes: a name, a dotted path, a mapping with ``class_path`` and
``init_args``. Every part is tried with its parameters randomised, so that no layer that starts at zero hides it.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from pyro.distributions import Delta, TorchDistribution
from torch import Tensor, nn

from pyro_vsm.distributions import LowRankGaussian
from pyro_vsm.likelihood import LIKELIHOODS, Likelihood
from pyro_vsm.memory import SemanticMemory
from pyro_vsm.memory_updates import MEMORY_UPDATES
from pyro_vsm.memory_uses import MEMORY_USES
from pyro_vsm.posteriors import POSTERIORS_M, POSTERIORS_Z, AmortisedPosteriorZ
from pyro_vsm.priors import PRIORS_M, PRIORS_Z, MemoryPriorZ
from pyro_vsm.registry import Registry
from pyro_vsm.task import Task

from . import statistics
from .small import STATES, memory, narrow, randomise, recall, task, to, vsm

__all__ = [
    "LikelihoodContract",
    "MemoryUpdateContract",
    "MemoryUseContract",
    "PosteriorMContract",
    "PosteriorZContract",
    "PriorMContract",
    "PriorZContract",
    "name_of",
    "uncovered",
]

states = pytest.mark.parametrize("entries", STATES.values(), ids=STATES.keys())
P, T, N, Q, D = 3, 2, 3, 4, 8  # particles, tasks, ways, queries, features


def name_of(spec: Any) -> str:
    """The name or dotted path of a spec."""
    return spec if isinstance(spec, str) else spec["class_path"]


def uncovered(registry: Registry, specs: list) -> set[str]:
    """Registered variants that a list of specs leaves out, and listed ones that are not registered."""
    return set(registry.classes) ^ {name_of(s) for s in specs}


def point_mass(law: TorchDistribution) -> bool:
    """Whether the law is no density but a point, documented by its class."""
    return isinstance(getattr(law, "base_dist", law), Delta)


class PartContract:
    """What holds for a part of any kind."""

    registry: ClassVar[Registry]
    with_it: ClassVar[dict[str, Any]] = {}
    """Other options of the VSM that is trained."""
    of_memory: ClassVar[dict[str, Any]] = {}
    """Options of the memory that the part is tried with."""

    def task(self, dim: int, entries: int, **shape: int) -> Task:
        """A random task whose memory has that many entries."""
        return task(dim, entries, **shape, **self.of_memory)

    def memory(self, dim: int, entries: int) -> SemanticMemory:
        """A memory with that many entries."""
        return memory(dim, entries, **self.of_memory)

    def untrained(self, spec: Any) -> set[str]:
        """Parameters (by prefix) that get no gradient in the training step, documented."""
        return set()

    def build(self, spec: Any, dim: int) -> nn.Module:
        """The part with randomised parameters."""
        return randomise(self.registry.build(narrow(self.registry.kind, spec), dim))

    def test_one_training_step_gives_every_parameter_a_gradient(self, spec):
        model = vsm(D, **{**self.with_it, self.registry.kind: spec}, capacity=12)
        optimiser = torch.optim.Adam(model.parameters(), 0.01)
        # layers behind a layer that starts at zero get their first gradient in the second step, and so does the
        # memory's update, which needs an entry to update
        for _ in range(4):
            images = torch.rand(2, N, 4, 1, 4, 4)
            classes = torch.stack([torch.randperm(12)[:N] for _ in range(2)])
            optimiser.zero_grad()
            loss, _ = model(images, 1, classes, torch.tensor(0.5))
            loss.backward()
            optimiser.step()
            model.after_step()
            model.refresh()
        for name, p in model.named_parameters():
            if not p.requires_grad or name.startswith(tuple(self.untrained(spec))):
                continue
            assert p.grad is not None, name
            assert torch.isfinite(p.grad).all(), name
            assert (p.grad != 0).any(), name

    @pytest.mark.parametrize("kind", ["autocast", pytest.param("cuda", marks=pytest.mark.cuda)])
    def test_a_model_with_it_agrees_with_full_precision(self, spec, kind):
        """Probabilities under bf16 autocast and on the GPU are those of float32 on the CPU."""
        model = randomise(vsm(D, **{**self.with_it, self.registry.kind: spec}), 0.1).eval()
        buffers = dict(self.memory(D, 4).named_buffers())
        model.memory.load_state_dict({**model.memory.state_dict(), **buffers})
        support, query = torch.randn(T, N, 2, D), torch.randn(T, Q, D)
        if kind == "cuda":  # other random numbers there: many samples
            expected, device = model.predict(support, query, 2000), torch.device("cuda")
            got = model.to(device).predict(support.to(device), query.to(device), 2000).cpu()
        else:
            torch.manual_seed(0)
            expected = model.predict(support, query, 50)
            torch.manual_seed(0)
            with torch.autocast("cpu", torch.bfloat16):
                got = model.predict(support, query, 50)
        assert got.dtype == torch.float32
        torch.testing.assert_close(got, expected, atol=0.06 if kind == "cuda" else 0.03, rtol=0)


class DensityContract(PartContract):
    """A part that is a conditional density over R^D, one a class."""

    exact_samples = True
    """False where samples do not follow the density, documented."""

    def law(self, part: nn.Module, given: Task, m: Tensor) -> TorchDistribution:
        """The density; ``m [..., T, N, D]`` is what a density of z is conditioned on."""
        raise NotImplementedError

    def follows(self, spec: Any) -> bool:
        """Whether samples follow the density (a part may say no: its class documents it)."""
        return True

    @states
    def test_batch_shapes(self, spec, entries):
        part, given, m = self.build(spec, D), self.task(D, entries), torch.randn(P, T, N, D)
        law = self.law(part, given, m)
        assert law.event_shape == (D,)
        law = law.expand((P, T, N))  # a particle plate
        value = law.rsample()
        assert value.shape == (P, T, N, D)
        assert law.log_prob(value).shape == (P, T, N)
        assert torch.isfinite(value).all()
        assert torch.isfinite(law.log_prob(value)).all()
        assert self.law(part, given, m[0]).expand((T, N)).rsample((5,)).shape == (5, T, N, D)

    @states
    def test_particles_and_tasks_are_computed_alone(self, spec, entries):
        """One batch over particles and tasks is a loop over them."""
        part, store = self.build(spec, D), self.memory(D, entries)
        support, query, m = torch.randn(T, N, 2, D), torch.randn(T, Q, D), torch.randn(P, T, N, D)
        law = self.law(part, recall(store, support, query), m).expand((P, T, N))
        value = law.rsample().detach()
        together = value if point_mass(law) else law.log_prob(value)
        for t in range(T):
            one = recall(store, support[t : t + 1], query[t : t + 1])
            for p in range(P):
                alone = self.law(part, one, m[p, t : t + 1]).expand((1, N))
                alone = alone.rsample() if point_mass(law) else alone.log_prob(value[p, t : t + 1])
                torch.testing.assert_close(alone[0], together[p, t], atol=1e-4, rtol=1e-4)

    @states
    @pytest.mark.parametrize("dim", [1, 2])
    def test_density_integrates_to_one_and_samples_follow_it(self, spec, entries, dim):
        part, given = self.build(spec, dim).double(), to(self.task(dim, entries, tasks=1, ways=2), torch.float64)
        law = self.law(part, given, torch.randn(1, 2, dim, dtype=torch.float64)).expand((1, 2))
        draws = law.rsample((4000,)).detach()
        if point_mass(law):  # a point mass has no density; all draws are the point
            assert (draws == draws[0]).all()
            assert (law.log_prob(draws[0]) == 0).all()
            return
        with torch.no_grad():
            for n in range(2):
                self.check_density(law, draws[:, 0, n], n, self.follows(spec))

    @staticmethod
    def check_density(law: TorchDistribution, draws: Tensor, n: int, follows: bool) -> None:
        """Trapezoid rule over a grid three times as wide as the draws, then Kolmogorov-Smirnov along each axis."""
        dim = draws.shape[-1]
        number = 6001 if dim == 1 else 401
        low, high = draws.amin(0), draws.amax(0)
        step = (high - low) * 3 / (number - 1)
        axes = [torch.linspace(2 * a - b, 2 * b - a, number, dtype=draws.dtype) for a, b in zip(low, high)]
        grid = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1)
        points = grid.reshape(-1, 1, 1, dim).expand(-1, 1, 2, dim)
        density = law.log_prob(points)[:, 0, n].exp().reshape(grid.shape[:-1])
        # a density with a kink, such as Laplace's, is integrated less well than a smooth one
        assert abs(float(density.sum() * step.prod()) - 1) < (1e-4 if dim == 1 else 2e-3)
        if not follows:
            return
        for axis in range(dim):
            marginal = density if dim == 1 else density.sum(1 - axis)
            cdf = torch.cumsum(marginal, 0) - marginal / 2
            statistics.uniform(np.interp(draws[:, axis], axes[axis], cdf / marginal.sum()))
        if dim == 2:  # and the dependence between the axes
            product = (density * grid.prod(-1)).sum() * step.prod()
            replicates = draws.prod(-1).reshape(100, -1).mean(1)
            statistics.agree(replicates, product, power=1.0, scale=draws.square().mean(0).prod().sqrt(), error=1e-3)

    @states
    def test_float32_and_autocast_agree_with_float64(self, spec, entries):
        part, given, m = self.build(spec, D), self.task(D, entries), torch.randn(P, T, N, D)
        law = self.law(part, given, m).expand((P, T, N))
        value = law.rsample().detach()
        single = law.log_prob(value)
        with torch.autocast("cpu", torch.bfloat16):
            inside = self.law(part, given, m).expand((P, T, N))
            half, draw = inside.log_prob(value), inside.rsample()
        double = (
            self.law(part.double(), to(given, torch.float64), m.double()).expand((P, T, N)).log_prob(value.double())
        )
        assert draw.shape == value.shape
        assert draw.dtype == torch.float32
        assert torch.isfinite(draw).all()
        if point_mass(law):
            torch.testing.assert_close(draw, value, atol=0.05, rtol=0.02)
            return
        torch.testing.assert_close(single.double(), double, atol=1e-3, rtol=1e-4)
        # networks in bfloat16 move the density; the density itself must not lose digits
        torch.testing.assert_close(half, single, atol=0.5, rtol=0.03)

    @pytest.mark.cuda
    @states
    def test_cuda(self, spec, entries):
        part, given, m = self.build(spec, D), self.task(D, entries), torch.randn(P, T, N, D)
        value = self.law(part, given, m).expand((P, T, N)).rsample().detach()
        expected = self.law(part, given, m).expand((P, T, N)).log_prob(value)
        device = torch.device("cuda")
        law = self.law(part.to(device), to(given, device), m.to(device)).expand((P, T, N))
        assert law.rsample().device.type == "cuda"
        if not point_mass(law):
            torch.testing.assert_close(law.log_prob(value.to(device)).cpu(), expected, atol=1e-2, rtol=1e-3)


class PriorMContract(DensityContract):
    """``p(m|M)``."""

    registry = PRIORS_M

    def law(self, part, given, m):
        return part(given)


class PosteriorMContract(PriorMContract):
    """``q(m|M,S)``."""

    registry = POSTERIORS_M


class PriorZContract(DensityContract):
    """``p(z|m)``."""

    registry = PRIORS_Z

    def build(self, spec, dim):
        part = PRIORS_Z.build(narrow("prior_z", spec), dim)
        posterior = AmortisedPosteriorZ(dim, hidden=16)
        part.bind(posterior)
        part.keep = nn.ModuleList([posterior])  # so that .double() and .to() reach it
        return randomise(part)

    def law(self, part, given, m):
        return part(m, given)


class PosteriorZContract(DensityContract):
    """``q(z|m,S)``."""

    registry = POSTERIORS_Z

    def build(self, spec, dim):
        part = POSTERIORS_Z.build(narrow("posterior_z", spec), dim)
        part.prior = MemoryPriorZ(dim, hidden=16)
        return randomise(part)

    def law(self, part, given, m):
        return part(m, given, part.prior(m, given))


class LikelihoodContract(PartContract):
    """``p(y|x,z)``, as logits over the classes."""

    registry = LIKELIHOODS

    @states
    def test_shapes_particles_and_tasks(self, spec, entries):
        part, store = self.build(spec, D), self.memory(D, entries)
        support, query, z = torch.randn(T, N, 2, D), torch.randn(T, Q, D), torch.randn(P, T, N, D)
        logits = part(z, recall(store, support, query))
        assert logits.shape == (P, T, Q, N)
        for t in range(T):
            one = recall(store, support[t : t + 1], query[t : t + 1])
            torch.testing.assert_close(part(z[:, t : t + 1], one)[:, 0], logits[:, t], atol=1e-4, rtol=1e-4)

    @states
    def test_classes_and_queries_are_exchangeable(self, spec, entries):
        part, given, z = self.build(spec, D), self.task(D, entries), torch.randn(T, N, D)
        order = torch.tensor([2, 0, 1])
        torch.testing.assert_close(part(z[:, order], given), part(z, given)[..., order], atol=1e-5, rtol=1e-5)

    @states
    def test_a_query_at_a_prototype_is_of_its_class(self, spec, entries):
        part, given = LIKELIHOODS.build(spec, D), self.task(D, entries, queries=N)
        torch.testing.assert_close(part(given.query, given).argmax(-1), torch.arange(N).expand(T, -1))

    @states
    def test_autocast(self, spec, entries):
        part, given, z = self.build(spec, D), self.task(D, entries), torch.randn(P, T, N, D)
        with torch.autocast("cpu", torch.bfloat16):
            inside = part(z, given)
        torch.testing.assert_close(inside, part(z, given), atol=1e-4, rtol=1e-4)

    @states
    def test_marginal(self, spec, entries):
        """None, or logits with z integrated out: shapes, each particle and task for itself, no order, autocast."""
        part, store = self.build(spec, D), self.memory(D, entries)
        support, query, loc = torch.randn(T, N, 2, D), torch.randn(T, Q, D), torch.randn(P, T, N, D)
        factor, diag = 0.3 * torch.randn(P, T, N, D, 2), torch.rand(P, T, N, D) + 0.1
        given = recall(store, support, query)
        logits = part.marginal(LowRankGaussian(loc, factor, diag), given)
        if type(part).marginal is Likelihood.marginal:
            assert logits is None
            return
        assert logits.shape == (P, T, Q, N)
        assert torch.isfinite(logits).all()
        logits = logits.log_softmax(-1)
        close = {"atol": 1e-3, "rtol": 1e-3}
        order = torch.tensor([2, 0, 1])
        turned = LowRankGaussian(loc[..., order, :], factor[..., order, :, :], diag[..., order, :])
        torch.testing.assert_close(part.marginal(turned, given).log_softmax(-1), logits[..., order], **close)
        for t in range(T):
            one = recall(store, support[t : t + 1], query[t : t + 1])
            for p in range(P):
                q = LowRankGaussian(loc[p, t : t + 1], factor[p, t : t + 1], diag[p, t : t + 1])
                torch.testing.assert_close(part.marginal(q, one)[0].log_softmax(-1), logits[p, t], **close)
        with torch.autocast("cpu", torch.bfloat16):
            inside = part.marginal(LowRankGaussian(loc, factor, diag), given).log_softmax(-1)
        torch.testing.assert_close(inside, logits, **close)

    @pytest.mark.cuda
    @states
    def test_marginal_on_cuda(self, spec, entries):
        part, given = self.build(spec, D), self.task(D, entries)
        loc, factor, diag = torch.randn(P, T, N, D), torch.randn(T, N, D, 2), torch.rand(T, N, D) + 0.1
        expected, device = part.marginal(LowRankGaussian(loc, factor, diag), given), torch.device("cuda")
        q = LowRankGaussian(loc.to(device), factor.to(device), diag.to(device))
        got = part.to(device).marginal(q, to(given, device))
        assert (got is None) == (expected is None)
        if got is not None:
            got = got.log_softmax(-1).cpu()
            torch.testing.assert_close(got, expected.log_softmax(-1), atol=1e-2, rtol=1e-3)

    @pytest.mark.cuda
    @states
    def test_cuda(self, spec, entries):
        part, given, z = self.build(spec, D), self.task(D, entries), torch.randn(P, T, N, D)
        expected, device = part(z, given), torch.device("cuda")
        got = part.to(device)(z.to(device), to(given, device)).cpu()
        torch.testing.assert_close(got, expected, atol=1e-3, rtol=1e-3)


class MemoryUpdateContract(PartContract):
    """The candidate ``Mbar_c`` of an entry and the features of its class."""

    registry = MEMORY_UPDATES
    slots, images = 4, 10

    def batch(self) -> tuple[Tensor, Tensor, Tensor]:
        """Entries, nodes, member; every slot has a node of its class."""
        member = torch.arange(self.images) % self.slots == torch.arange(self.slots).unsqueeze(-1)
        return torch.randn(self.slots, D), torch.randn(self.images, D), member

    def test_shape_and_equivariance(self, spec):
        part, (entry, nodes, member) = self.build(spec, D), self.batch()
        candidate = part(entry, nodes, member)
        assert candidate.shape == entry.shape
        a, b = torch.randperm(self.slots), torch.randperm(self.images)
        torch.testing.assert_close(part(entry[a], nodes[b], member[a][:, b]), candidate[a], atol=1e-5, rtol=1e-5)

    def test_only_images_of_the_class_matter(self, spec):
        part, (entry, nodes, member) = self.build(spec, D), self.batch()
        other = torch.where(member[0].unsqueeze(-1), nodes, torch.randn_like(nodes))
        torch.testing.assert_close(part(entry, other, member)[0], part(entry, nodes, member)[0])
        assert not torch.equal(part(entry, other, member)[1], part(entry, nodes, member)[1])

    def test_equal_features_give_a_finite_gradient(self, spec):
        """A constant image, all support images alike, an entry of zeros: nothing is NaN."""
        part, (entry, nodes, member) = self.build(spec, D), self.batch()
        nodes = torch.ones_like(nodes).requires_grad_()
        part(torch.zeros_like(entry), nodes, member).square().sum().backward()
        assert torch.isfinite(nodes.grad).all()

    def test_autocast_and_double(self, spec):
        part, batch = self.build(spec, D), self.batch()
        expected = part(*batch)
        with torch.autocast("cpu", torch.bfloat16):
            torch.testing.assert_close(part(*batch).float(), expected, atol=0.05, rtol=0.05)
        entry, nodes, member = batch
        double = part.double()(entry.double(), nodes.double(), member)
        torch.testing.assert_close(double.float(), expected, atol=1e-5, rtol=1e-5)

    @pytest.mark.cuda
    def test_cuda(self, spec):
        part, batch = self.build(spec, D), self.batch()
        expected = part(*batch)
        got = part.cuda()(*(b.cuda() for b in batch)).cpu()
        torch.testing.assert_close(got, expected, atol=1e-3, rtol=1e-3)


class MemoryUseContract(PartContract):
    """How the memory enters the model."""

    registry = MEMORY_USES

    @states
    def test_reading(self, spec, entries):
        part, given = self.build(spec, D), self.task(D, entries)
        m = part(given)
        assert m.shape == (T, N, D)
        assert torch.isfinite(m).all()

    @states
    def test_autocast(self, spec, entries):
        part, given = self.build(spec, D), self.task(D, entries)
        with torch.autocast("cpu", torch.bfloat16):
            inside = part(given)
        assert inside.dtype == torch.float32
        torch.testing.assert_close(inside, part(given), atol=0.05, rtol=0.05)

    def test_says_what_it_is(self, spec):
        part = self.build(spec, D)
        assert isinstance(part.latent, bool)
        assert isinstance(part.closed, bool)
        assert isinstance(part.shuffled, bool)
        assert not (part.latent and part.closed)
