"""Variational Semantic Memory as a few-shot system: encoder, memory, and the Pyro model and guide."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor, nn

from pyro_vsm.encoder import Encoder
from pyro_vsm.errors import UserError
from pyro_vsm.fewshot import FewShotModel, split_episode
from pyro_vsm.likelihood import LIKELIHOODS
from pyro_vsm.memory import SemanticMemory, Write
from pyro_vsm.memory_updates import MEMORY_UPDATES
from pyro_vsm.memory_uses import MEMORY_USES
from pyro_vsm.model import VSMProgram
from pyro_vsm.objectives import build_objective
from pyro_vsm.posteriors import POSTERIORS_M, POSTERIORS_Z
from pyro_vsm.priors import PRIORS_M, PRIORS_Z
from pyro_vsm.task import Task, check_features


@dataclass(frozen=True)
class Inference:
    """What the model believes of one episode: S posterior samples, N ways, Q queries, D features, C entries.

    Attributes:
        probabilities: ``[Q, N]``, averaged over the samples; with z integrated out where the likelihood can
            (``generative``).
        sample_probabilities: ``[S, Q, N]``, for each sample.
        z: posterior samples of the prototypes, ``[S, N, D]``.
        m: posterior samples of the recalled memory, ``[S, N, D]`` (one reading repeated where m is not latent).
        addressing: weights gamma over the memory entries, ``[N, C]``; the rest to one is the default's.
        support: ``[N, K, D]``; query: ``[Q, D]``.
    """

    probabilities: Tensor
    sample_probabilities: Tensor
    z: Tensor
    m: Tensor
    addressing: Tensor
    support: Tensor
    query: Tensor

    @property
    def entropy(self) -> Tensor:
        """Total uncertainty of each query, ``[Q]`` in nats: entropy of the averaged probabilities."""
        return -torch.xlogy(self.probabilities, self.probabilities).sum(-1)

    @property
    def expected_entropy(self) -> Tensor:
        """``[Q]`` in nats: what would remain if the prototypes were known exactly."""
        p = self.sample_probabilities
        return -torch.xlogy(p, p).sum(-1).mean(0)

    @property
    def mutual_information(self) -> Tensor:
        """``[Q]`` in nats: what more shots would remove."""
        return (self.entropy - self.expected_entropy).clamp_min(0.0)


class VSM(FewShotModel):
    """Variational Semantic Memory.

    Each part is a name, a specification with arguments, or an object of yours (see :mod:`pyro_vsm.registry`).

    Args:
        encoder: images to features.
        capacity: entries of the memory.
        prior_m, prior_z, posterior_m, posterior_z, likelihood: the factors (:mod:`pyro_vsm.model`).
        memory_use: ``latent``, ``rote``, ``transformed``, ``moments``, ``off``, ``shuffled``.
        memory_update: ``attention``, ``mean``, ``none``.
        alpha, address_dim, top_k, within_rank, retrieve: see :class:`~pyro_vsm.memory.SemanticMemory`.
        objective: ``elbo`` or ``importance_weighted``.
        integrate_z: train on ``E_q(m)[log p(y|x,m,S)] - beta_m KL(q(m|M,S) || p(m|M))`` with z integrated out under
            q(z|m,S), as it is in prediction, instead of sampling it; for likelihoods with a closed form.
        particles: posterior samples a training step.
        beta_z, beta_m: final weights of the KL terms; 1 is the evidence lower bound.
        warmup: fraction of the training over which the weights rise from 0, in [0, 1].
        trusted: whether dotted paths may import modules (no, for a checkpoint of unknown origin).
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        capacity: int,
        prior_m: Any = "mixture",
        prior_z: Any = "memory",
        posterior_m: Any = "mixture",
        posterior_z: Any = "amortised",
        likelihood: Any = "euclidean",
        memory_use: Any = "latent",
        memory_update: Any = "attention",
        alpha: float = 0.9,
        address_dim: int = 64,
        top_k: int = 0,
        within_rank: int = 0,
        retrieve: int = 0,
        objective: str = "elbo",
        integrate_z: bool = False,
        particles: int = 4,
        beta_z: float = 1e-4,
        beta_m: float = 1e-4,
        warmup: float = 0.2,
        trusted: bool = True,
    ):
        super().__init__(encoder)
        if min(beta_z, beta_m) < 0 or not 0 <= warmup <= 1:
            raise UserError(
                f"model: beta_z={beta_z}, beta_m={beta_m}, warmup={warmup}; give weights >= 0 and a warm-up in [0, 1]"
            )
        dim = encoder.dim
        use = MEMORY_USES.build(memory_use, dim, trusted=trusted)
        self.memory = SemanticMemory(
            dim,
            capacity=capacity,
            update=MEMORY_UPDATES.build(memory_update, dim, trusted=trusted),
            alpha=alpha,
            address_dim=address_dim,
            top_k=top_k,
            within_rank=within_rank,
            retrieve=retrieve,
            shuffled=use.shuffled,
        )
        self.memory.requires_grad_(not use.closed)  # nothing of a closed memory is ever read
        if not use.addressed:
            self.memory.key.requires_grad_(False)
            self.memory.query.requires_grad_(False)
        self.program = VSMProgram(
            PRIORS_M.build(prior_m, dim, trusted=trusted),
            PRIORS_Z.build(prior_z, dim, trusted=trusted),
            POSTERIORS_M.build(posterior_m, dim, trusted=trusted),
            POSTERIORS_Z.build(posterior_z, dim, trusted=trusted),
            LIKELIHOODS.build(likelihood, dim, trusted=trusted),
            use,
        )
        if integrate_z and not self.program.likelihood.closed:
            raise UserError(
                "model.integrate_z needs a likelihood in which z can be integrated out; set likelihood to generative"
            )
        self.integrate_z = integrate_z
        self.elbo = build_objective(objective, particles)
        self.beta_z, self.beta_m, self.warmup = beta_z, beta_m, warmup

    def model(self, task: Task) -> Tensor:
        """The Pyro model, see :meth:`VSMProgram.model <pyro_vsm.model.VSMProgram.model>`."""
        return self.program.model(task)

    def guide(self, task: Task) -> None:
        """The Pyro guide, see :meth:`VSMProgram.guide <pyro_vsm.model.VSMProgram.guide>`."""
        return self.program.guide(task)

    def task(
        self,
        support: Tensor,
        query: Tensor,
        labels: Tensor | None = None,
        own: Tensor | None = None,
        write: Write | None = None,
        counts: Tensor | None = None,
    ) -> Task:
        """Features ``[T, N, K, D]`` and ``[T, Q, D]`` with what the memory recalls for them.

        ``own`` are the class ids ``[T, N]`` whose entries are left out, ``write`` entries just consolidated,
        ``counts`` the numbers of examples ``[T, N]`` whose mean stands in ``support`` (then ``[T, N, 1, D]``).
        """
        recall = self.memory(support.mean(2), own, write, closed=self.program.memory_use.closed)
        return Task(support, query, recall, labels, counts)

    def loss(
        self, features: Tensor, shot: int, classes: Tensor, progress: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Minus the weighted objective a query. Consolidates the memory for the next :meth:`after_step`.

        Recall within the batch reads the entries just consolidated by the other tasks, so that the memory
        update gets a gradient.
        """
        support, query, labels = split_episode(features, shot)
        # a closed memory is never read, and need not be written
        closed = self.program.memory_use.closed
        self.pending = None if closed else self.memory.consolidate(features, classes)
        task = self.task(support, query, labels, classes, self.pending)
        ramp = (progress / self.warmup).clamp(1e-6, 1.0) if self.warmup else 1.0
        self.program.beta_z, self.program.beta_m = self.beta_z * ramp, self.beta_m * ramp
        if self.beta_z == 0:
            self.program.beta_z = 0.0
        if self.beta_m == 0:
            self.program.beta_m = 0.0
        pair = (self.model, self.guide)
        if self.integrate_z:
            pair = (self.program.model_without_z, self.program.guide_without_z)
        loss = self.elbo.differentiable_loss(*pair, task) / labels.numel()
        return loss, {**self.elbo.terms, "loss": loss.detach()}

    def start(self, features: Tensor, labels: Tensor) -> None:
        """Fill the memory with all training classes at once: their means, variances and pooled covariance."""
        self.memory.fill(features, labels)

    def calibration_parameters(self) -> list[nn.Parameter]:
        """Scales and temperatures: every parameter of the factors that is a single number."""
        return [p for p in self.program.parameters() if p.numel() == 1]

    def after_step(self) -> None:
        """Store what :meth:`loss` consolidated."""
        if self.pending is not None:
            self.memory.store(self.pending)
            self.pending = None

    def refresh(self) -> None:
        """Refresh the memory's within-class covariance."""
        self.memory.refresh()

    def posterior(self, task: Task, samples: int) -> tuple[poutine.Trace, Tensor]:
        """Trace of the guide with S particles, and the logits ``[S, T, Q, N]`` of the model replayed against it."""
        task = task.unlabelled()
        with pyro.plate("samples", samples, dim=-3):
            trace = poutine.trace(self.guide).get_trace(task)
            logits = poutine.replay(self.model, trace)(task)
        return trace, logits.expand(samples, *logits.shape[-3:])

    def predict(self, support: Tensor, query: Tensor, samples: int = 100) -> Tensor:
        """See :class:`FewShotModel`."""
        return self.program.predictive(self.task(support, query), samples)

    def marginal(self, task: Task, samples: int) -> Tensor | None:
        """Logits ``[S, T, Q, N]`` with z integrated out, or None where the likelihood has no closed form."""
        if not self.program.likelihood.closed:
            return None
        task = task.unlabelled()
        with pyro.plate("samples", samples, dim=-3):
            logits = self.program.marginal(task)
        return None if logits is None else logits.expand(samples, *logits.shape[-3:])

    def predict_samples(self, support: Sequence[Tensor], query: Tensor, samples: int = 100) -> Tensor:
        """See :class:`FewShotModel`; exact for any numbers of examples: the factors read mean and number."""
        return self.posterior(self._ragged(support, query), samples)[1].softmax(-1)[:, 0]

    def predict_exactly(self, support: Sequence[Tensor], query: Tensor, samples: int = 100) -> Tensor | None:
        """See :class:`FewShotModel`; there is a closed form under the likelihood ``generative``."""
        logits = self.marginal(self._ragged(support, query), samples)
        return None if logits is None else logits.softmax(-1).mean(0)[0]

    def _ragged(self, support: Sequence[Tensor], query: Tensor) -> Task:
        counts = [len(s) for s in support]
        if len(set(counts)) == 1:
            return self.task(torch.stack(list(support)).unsqueeze(0), query.unsqueeze(0))
        means = torch.stack([s.mean(0) for s in support])[None, :, None]
        return self.task(means, query.unsqueeze(0), counts=means.new_tensor(counts).unsqueeze(0))

    @torch.no_grad()
    def infer(self, support: Tensor, query: Tensor, samples: int = 1000) -> Inference:
        """Everything the model believes of one episode.

        Args:
            support: images ``[N, K, C, H, W]`` (uint8, or float in [0, 1]), or features ``[N, K, D]``.
            query: images ``[Q, C, H, W]``, or features ``[Q, D]``.
            samples: S.

        Raises:
            UserError: wrong shapes, no images, NaN.
        """
        mode = self.training
        self.eval()
        try:
            if support.dim() == 5:
                support = self.encode(support.flatten(0, 1)).unflatten(0, support.shape[:2])
            if query.dim() == 4:
                query = self.encode(query)
            support, query = support.unsqueeze(0), query.unsqueeze(0)
            check_features(support, query, self.dim)
            task = self.task(support, query)
            trace, logits = self.posterior(task, samples)
            exact = self.marginal(task, samples)
        finally:
            self.train(mode)
        z: Any = trace.nodes["z"]["value"]
        m: Any = trace.nodes["m"]["value"] if "m" in trace else self.program.memory_use(task)
        N, D = z.shape[-2:]
        p = logits.softmax(-1)[:, 0]
        return Inference(
            probabilities=p.mean(0) if exact is None else exact.softmax(-1).mean(0)[0],
            sample_probabilities=p,
            z=z.expand(samples, 1, N, D)[:, 0],
            m=m.expand(samples, 1, N, D)[:, 0],
            addressing=task.recall.weights(self.memory.capacity)[0],
            support=support[0],
            query=query[0],
        )

    def svi_programs(self, name: str = "vsm") -> tuple[Callable, Callable]:
        """Model and guide for :class:`pyro.infer.SVI`: they take a feature batch and register the parameters.

        Each takes ``(features [T, N, R, D], shot, classes [T, N])``. The parameters enter Pyro's global store
        under ``name``; use another name for another model. Call :meth:`after_step` after each step: the memory
        stays empty otherwise. The loss is a sum over tasks, weighted by ``program.beta_z`` and ``program.beta_m``.
        """

        def program(run: Callable[[Task], Any]) -> Callable:
            def wrapped(features: Tensor, shot: int, classes: Tensor) -> Any:
                pyro.module(name, self)
                support, query, labels = split_episode(features, shot)
                self.pending = self.memory.consolidate(features, classes)
                return run(self.task(support, query, labels, classes, self.pending))

            return wrapped

        return program(self.model), program(self.guide)
