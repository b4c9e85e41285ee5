"""Bias and variance of the gradient of q(m|M,S), for 64 entries of 256 features.

``python experiments/estimators/measure.py`` trains a VSM for a moment on synthetic features (so that its networks are
no longer at their start), takes one task of unseen classes, and measures the gradient of minus the objective, per
query, in the addressing logits and in the component networks of q(m|M,S), with each estimator:

- ``mixture``: pathwise in the components; in the addresses the score function of the marginal density, with the
  leave-one-out baseline over particles and without;
- ``relaxed``: the mixture with a Concrete address, biased;
- ``moment_matched``: one Gaussian, reparametrised. Its gradient is the exact one of another objective; what is given
  as its bias is how far that objective's gradient lies from the mixture's.

The reference is unbiased and uses no score function: the address of one class at a time is enumerated, the other
classes are sampled, and the expectation over the address is differentiated. Tables go to ``results.md`` beside this
file.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from unittest import mock

import pyro.distributions as dist
import torch
from tabulate import tabulate
from torch import Tensor, nn

from pyro_vsm import objectives
from pyro_vsm.backbones import Backbone
from pyro_vsm.distributions import GaussianMixture
from pyro_vsm.encoder import Encoder
from pyro_vsm.fewshot import split_episode
from pyro_vsm.memory import Recall
from pyro_vsm.posteriors import MomentMatchedPosteriorM, RelaxedPosteriorM
from pyro_vsm.task import Task
from pyro_vsm.vsm import VSM

WAYS, SHOTS, QUERIES = 5, 1, 15
BATCHES = 20
"""Independent batch means of every gradient, for standard errors."""


class NoBackbone(Backbone):
    """Everything here is a feature already."""

    def __init__(self, dim: int):
        super().__init__(1, 1)
        self.dim = dim

    def forward(self, images: Tensor) -> Tensor:
        """Never called."""
        raise NotImplementedError


class WithoutBaseline(objectives.EpisodeELBO):
    """The score function times the plain signal."""

    def _differentiable_loss_particle(self, model_trace, guide_trace):
        with mock.patch.object(objectives, "_centred", lambda signal, particles: signal):
            return super()._differentiable_loss_particle(model_trace, guide_trace)


def world(classes: int, images: int, dim: int) -> Tensor:
    """Features ``[classes, images, dim]`` of unit RMS: related classes (32 common directions), noisy images."""
    centres = torch.randn(classes, 32) @ torch.randn(32, dim) / 32**0.5
    features = centres.unsqueeze(1) + 0.8 * torch.randn(classes, images, dim)
    return features / features.square().mean(-1, keepdim=True).sqrt()


def trained(features: Tensor, steps: int, **parts) -> VSM:
    """A VSM with its defaults but for the parts given, its memory filled, trained for so many steps."""
    classes, images, dim = features.shape
    settings = {"capacity": classes, "warmup": 0.0, "beta_z": 1e-2, "beta_m": 1e-2, **parts}
    model = VSM(Encoder(NoBackbone(dim), [0.5], [0.5]), **settings)
    everything = torch.arange(classes).unsqueeze(0)
    model.memory.store(model.memory.consolidate(features.unsqueeze(0), everything))
    optimiser = torch.optim.Adam(model.parameters(), 1e-3)
    for _ in range(steps):
        chosen = torch.stack([torch.randperm(classes)[:WAYS] for _ in range(4)])
        picked = features[chosen][:, :, torch.randperm(images)[: SHOTS + 5]]
        loss, _ = model.loss(picked, SHOTS, chosen, torch.tensor(1.0))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        model.after_step()
    return model


class Problem:
    """One task of unseen classes, its addressing logits as a leaf, and the parameters that are looked at."""

    def __init__(self, model: VSM, features: Tensor):
        self.program = model.program
        with torch.no_grad():
            self.task = model.task(*split_episode(features.unsqueeze(0), SHOTS))
        entries = self.task.recall.log_address.shape[-1] - 1
        self.logits = nn.Parameter(self.task.recall.log_address[..., :entries].clone())
        self.components: list[Tensor] = list(self.program.posterior_m.components.parameters())

    def with_logits(self) -> Task:
        """The task as a function of the leaf."""
        recall = self.task.recall
        address = torch.cat([self.logits.log_softmax(-1), recall.log_address[..., -1:]], -1)
        parts = {**vars(recall), "log_address": address}
        return Task(self.task.support, self.task.query, Recall(**parts), self.task.labels)

    def gradient(self, loss: Tensor) -> tuple[Tensor, Tensor]:
        """In the logits and in the component networks, per query, flat."""
        assert self.task.labels is not None
        logits, *rest = torch.autograd.grad(loss / self.task.labels.numel(), [self.logits, *self.components])
        return logits.flatten(), torch.cat([g.flatten() for g in rest])

    def estimate(self, objective: objectives.EpisodeELBO) -> tuple[Tensor, Tensor]:
        """One step's gradient."""
        return self.gradient(
            objective.differentiable_loss(self.program.model, self.program.guide, self.with_logits())
        )

    def reference(self, samples: int = 4) -> tuple[Tensor, Tensor]:
        """Unbiased, by enumeration of the addresses of each class in turn; noise is shared by all addresses."""
        task, program = self.with_logits(), self.program
        q = program.posterior_m(task)
        fixed = GaussianMixture(q.logits.detach(), q.loc, q.scale)  # the expectation of its own derivative is 0
        p = program.prior_m(task)
        A, D = q.loc.shape[0] - 1, q.loc.shape[1]  # the default has no weight
        total = torch.zeros(())
        for n in range(WAYS):
            others = q.rsample((samples, 1)).detach().expand(samples, A, 1, WAYS, D)
            own = q.loc[:A] + q.scale[:A] * torch.randn(samples, 1, D)
            here = (torch.arange(WAYS) == n).unsqueeze(-1)
            m = torch.where(here, own[:, :, None, None], others)  # [samples, A, 1, WAYS, D]
            p_z = program.prior_z(m, task)
            q_z = program.posterior_z(m, task, p_z).base_dist
            z = q_z.loc + q_z.scale * torch.randn(samples, 1, 1, WAYS, D)
            kl_m = fixed.log_prob(m) - p.log_prob(m)
            kl_z = dist.Normal(q_z.loc, q_z.scale).to_event(1).log_prob(z) - p_z.log_prob(z)
            kl = program.beta_m * kl_m + program.beta_z * kl_z
            likelihood = dist.Categorical(logits=program.likelihood(z, task)).log_prob(task.labels).sum(-1)
            f = (likelihood - kl[..., n])[..., 0]  # [samples, A]
            total = total - (self.logits[0, n].softmax(-1) * f.mean(0)).sum()
        return self.gradient(total)


class Moments:
    """Batch means and the total variance of a random vector."""

    def __init__(self) -> None:
        self.sums: list[Tensor] = []
        self.squares, self.number = 0.0, 0

    def add(self, step: int, steps: int, vector: Tensor) -> None:
        batch = step * BATCHES // steps
        if batch == len(self.sums):
            self.sums.append(torch.zeros_like(vector, dtype=torch.float64))
        self.sums[batch] += vector
        self.squares += float(vector.double().square().sum())
        self.number += 1

    @property
    def means(self) -> Tensor:
        """``[BATCHES, size]``."""
        return torch.stack(self.sums) * (BATCHES / self.number)

    @property
    def variance(self) -> float:
        """Of one step, summed over the components."""
        mean = self.means.mean(0)
        return (self.squares / self.number - float(mean.square().sum())) * self.number / (self.number - 1)


def squared_length(replicates: Tensor) -> tuple[float, float]:
    """Unbiased estimate of ``|E x|^2`` from independent replicates ``[B, size]``, and its jackknife error."""
    gram = (replicates @ replicates.T).double()

    def estimate(keep: Tensor) -> Tensor:
        part, number = gram[keep][:, keep], len(keep)
        return (part.sum() - part.diagonal().sum()) / (number * (number - 1))

    B = len(replicates)
    left_out = torch.stack([estimate(torch.tensor([j for j in range(B) if j != i])) for i in range(B)])
    error = ((B - 1) / B * (left_out - left_out.mean()).square().sum()).sqrt()
    return float(estimate(torch.arange(B))), float(error)


def measure(steps: int, draw: Callable[[], tuple[Tensor, Tensor]]) -> tuple[Moments, Moments]:
    """Moments of both gradients over so many steps."""
    logits, components = Moments(), Moments()
    for step in range(steps):
        for moments, vector in zip((logits, components), draw()):
            moments.add(step, steps, vector)
    return logits, components


def table(problem: Problem, particles: Sequence[int], steps: int) -> str:
    """Markdown: every estimator at the program's KL weights."""
    program, mixture = problem.program, problem.program.posterior_m
    reference = measure(max(steps // 4, BATCHES), problem.reference)
    lengths = [squared_length(m.means) for m in reference]
    relaxed = RelaxedPosteriorM(mixture.dim)
    matched = MomentMatchedPosteriorM(mixture.dim)
    rows = []
    for name, posterior, objective in (
        ("mixture, leave-one-out baseline", mixture, objectives.EpisodeELBO),
        ("mixture, no baseline", mixture, WithoutBaseline),
        ("relaxed, temperature 0.5", relaxed, objectives.EpisodeELBO),
        ("moment_matched (another family)", matched, objectives.EpisodeELBO),
    ):
        posterior.components = mixture.components
        program.posterior_m = posterior
        for P in particles:
            moments = measure(steps, partial(problem.estimate, objective(P)))
            row = [name, P]
            for moment, base, (length, _) in zip(moments, reference, lengths):
                bias, error = squared_length(moment.means - base.means)
                row += [f"{bias / length:.2g} ± {error / length:.1g}", f"{moment.variance / length:.3g}"]
            rows.append(row)
    program.posterior_m = mixture
    header = ["estimator", "particles", "addresses: bias²", "variance", "components: bias²", "variance"]
    lines = tabulate(rows, header, tablefmt="github", disable_numparse=True, colalign=("left", *["right"] * 5))
    sizes = ", ".join(f"{length**0.5:.3g} ± {error / 2 / length**0.5:.1g}" for length, error in lengths)
    weights = f"beta_m = {program.beta_m:g}, beta_z = {program.beta_z:g}"
    return f"## {weights}\n\nLength |g| of the reference gradient: {sizes} (addresses, components).\n\n{lines}\n"


def main(arguments: Sequence[str] | None = None) -> str:
    """The whole report, written and returned."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--entries", type=int, default=64, help="C")
    parser.add_argument("--features", type=int, default=256, help="D")
    parser.add_argument("--particles", type=int, nargs="+", default=[2, 4, 10])
    parser.add_argument("--steps", type=int, default=1000, help="gradients for each row")
    parser.add_argument("--training", type=int, default=200, help="steps of training before")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("results.md"))
    options = parser.parse_args(arguments)
    torch.manual_seed(0)
    features = world(options.entries + WAYS, 20, options.features)
    model = trained(features[: options.entries], options.training)
    problem = Problem(model, features[options.entries :, : SHOTS + QUERIES])
    perplexity = dist.Categorical(logits=problem.logits.detach()).entropy().exp().mean()
    report = (
        f"# Estimators of the gradient of q(m|M,S), C = {options.entries}, D = {options.features}\n\n"
        f"`python experiments/estimators/measure.py`, CPU, torch {torch.__version__.split('+')[0]}, seed 0, "
        f"{options.steps} gradients a row, {WAYS}-way {SHOTS}-shot, {QUERIES} queries a class, after "
        f"{options.training} steps of training; the addressing weights have perplexity {perplexity:.1f}.\n\n"
        "All in units of |g|², the squared length of the reference gradient. *bias²* is an unbiased estimate of "
        "|E ĝ - g|² ± its jackknife standard error, so it may come out below 0. *variance* is that of the gradient "
        "of one step, summed over its components. `moment_matched` is unbiased for its own objective; its bias² is "
        "the distance between the two objectives' gradients. Where the KL weights are 1 the likelihood is a small "
        "part of the gradient, where they are 1e-4 (the default) almost all of it.\n"
    )
    for beta in (1e-4, 1.0):
        model.program.beta_m = model.program.beta_z = beta
        report += "\n" + table(problem, options.particles, options.steps)
    options.output.write_text(report, encoding="utf-8")
    return report


if __name__ == "__main__":
    print(main())
