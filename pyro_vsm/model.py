"""The generative model and the guide of Variational Semantic Memory, as Pyro programs.

Source: Zhen, Du, Xiong, Qiu, Snoek, Shao, "Learning to Learn Variational Semantic Memory", NeurIPS 2020.

Generative model, for every class n and every query i of a task::

    m_n ~ p(m | M)                                   recall prior            priors.PriorM
    z_n ~ p(z | m_n)                                 prototype prior         priors.PriorZ
    y_i ~ Categorical(softmax_n(logits(h(x_i), z)))  likelihood              likelihood.Likelihood

Guide::

    q(m_n | M, S_n)                                  recall                  posteriors.PosteriorM
    q(z_n | m_n, S_n)                                prototype posterior     posteriors.PosteriorZ
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext

import pyro
import pyro.distributions as dist
from pyro import poutine
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from pyro_vsm.likelihood import Likelihood
from pyro_vsm.memory_uses import MemoryUse
from pyro_vsm.posteriors import PosteriorM, PosteriorZ
from pyro_vsm.priors import PriorM, PriorZ
from pyro_vsm.sampling import pair, spread
from pyro_vsm.task import Task

AT_ONCE = 2**22
"""Elements of the tensors of samples that are drawn at a time on a CPU (16 MiB in float32)."""

ENOUGH = 16
"""Samples of m in a prediction, before more than two samples of z share each."""


class VSMProgram(nn.Module):
    """The pair :meth:`model` and :meth:`guide`, made of six interchangeable factors.

    Both take a :class:`~pyro_vsm.task.Task` of T tasks, N ways and Q queries. Plates: ``tasks`` (dim -2), ``classes``
    and ``queries`` (dim -1); a particle plate may stand to their left (dim -3).

    Attributes:
        beta_z, beta_m: weights of the KL terms, a number or a scalar tensor, >= 0; they scale the latent sites in
            model and guide alike. 1 is the evidence lower bound, 0 takes the factor out of the objective.
    """

    def __init__(
        self,
        prior_m: PriorM,
        prior_z: PriorZ,
        posterior_m: PosteriorM,
        posterior_z: PosteriorZ,
        likelihood: Likelihood,
        memory_use: MemoryUse,
    ):
        super().__init__()
        self.memory_use = memory_use
        if memory_use.latent:  # otherwise there is no site m, and no parameters for one
            self.prior_m, self.posterior_m = prior_m, posterior_m
        self.prior_z, self.posterior_z, self.likelihood = prior_z, posterior_z, likelihood
        prior_z.bind(posterior_z)
        self.beta_z: float | Tensor = 1.0
        self.beta_m: float | Tensor = 1.0

    def model(self, task: Task) -> Tensor:
        """``p(y|x,z) p(z|m) p(m|M)``; returns the logits ``[..., T, Q, N]``."""
        tasks, classes, queries = self._plates(task)
        with tasks:
            with classes:
                m = self._m(lambda: self.prior_m(task), task)
                with weighted(self.beta_z):
                    z = pyro.sample("z", self.prior_z(m, task))
            logits = self.likelihood(z, task)
            with queries:
                pyro.sample("y", dist.Categorical(logits=logits), obs=task.labels)
        return logits

    def guide(self, task: Task) -> None:
        """``q(z|m,S) q(m|M,S)``."""
        tasks, classes, _ = self._plates(task)
        with tasks, classes:
            m = self._m(lambda: self.posterior_m(task), task)
            with weighted(self.beta_z):
                pyro.sample("z", self._q_z(m, task))

    def marginal(self, task: Task) -> Tensor | None:
        """Logits ``[..., T, Q, N]`` with m sampled from q(m|M,S) and z integrated out; None without a closed form."""
        tasks, classes, _ = self._plates(task)
        with tasks, classes:
            return self._without_z(self._m(lambda: self.posterior_m(task), task), task)

    def model_without_z(self, task: Task) -> Tensor:
        """``p(y|x,m,S) p(m|M)``, z integrated out under q(z|m,S); returns the logits ``[..., T, Q, N]``.

        The likelihood must have a closed form
        (:meth:`Likelihood.marginal <pyro_vsm.likelihood.Likelihood.marginal>`).
        """
        tasks, classes, queries = self._plates(task)
        with tasks:
            with classes:
                m = self._m(lambda: self.prior_m(task), task)
            logits = self._without_z(m, task)
            assert logits is not None  # the likelihood has a closed form
            with queries:
                pyro.sample("y", dist.Categorical(logits=logits), obs=task.labels)
        return logits

    def guide_without_z(self, task: Task) -> None:
        """``q(m|M,S)``."""
        tasks, classes, _ = self._plates(task)
        with tasks, classes:
            self._m(lambda: self.posterior_m(task), task)

    def predictive(self, task: Task, samples: int) -> Tensor:
        """Class probabilities ``[T, Q, N]`` of the queries, averaged over S samples of the guide.

        ``1/S sum_s softmax(logits(z_s))`` with ``m_s ~ q(m|M,S)``, ``z_s ~ q(z|m_s,S)``, or z integrated out where
        the likelihood can. Each sample has the right distribution, so the average is unbiased; they are not
        independent: two of z share an m, four where that leaves at least ``ENOUGH`` of m, and lie in pairs opposite
        each other (:func:`~pyro_vsm.sampling.pair`), and the entries that m comes from are drawn in strata
        (:func:`~pyro_vsm.sampling.strata`). With trained models 100 are as precise as 100 to 230 independent ones,
        for a quarter of the networks' work (experiments/NOTES.md, 34 and 35); where m alone is uncertain, as of an
        untrained model, of half or a quarter as many. What only densities need (priors, labels, Pyro's handlers) is
        left out, and on a CPU only so many samples are drawn at a time as fill 16 MiB a tensor.
        """
        if self.likelihood.closed and not self.memory_use.latent:  # nothing is sampled
            logits = self._without_z(self.memory_use(task), task)
            if logits is not None:
                return logits.softmax(-1)
        T, N = task.support.shape[:2]
        certain = self.likelihood.closed or not self.posterior_z.random
        of_each = 1 if certain else 4 if samples >= 4 * ENOUGH else 2
        number = -(-samples // of_each)  # of m
        at_once = number if task.query.is_cuda else max(1, AT_ONCE // task.prototype.numel())
        total, left = task.query.new_zeros(()), samples
        for now, q_z in self._q_zs(task, number, at_once):
            for logits in self._drawn(q_z, (now, T, N), min(left, now * of_each), task):
                total = total + logits.softmax(-1).sum(0)
            left -= now * of_each
        return total / samples

    def _q_zs(self, task: Task, number: int, at_once: int) -> Iterator[tuple[int, TorchDistribution]]:
        """``q(z|m,S)`` for so many m, for at most ``at_once`` at a time; the same one where m is not random."""
        if self.memory_use.latent:
            for m in spread(self.posterior_m(task), number, at_once):
                yield len(m), self._q_z(m, task)
        else:
            q_z = self._q_z(self.memory_use(task), task)
            for start in range(0, number, at_once):
                yield min(at_once, number - start), q_z

    def _drawn(
        self, q_z: TorchDistribution, batch: tuple[int, int, int], number: int, task: Task
    ) -> Iterator[Tensor]:
        """Logits ``[s, T, Q, N]`` of so many samples in all, with z from ``q_z``, in pairs, or integrated out."""
        logits = self.likelihood.marginal(q_z, task)
        if logits is not None:
            yield logits.expand(batch[0], *logits.shape[-3:])
            return
        q_z = q_z.expand(batch)
        while number > 0:
            for z in pair(q_z):
                if number > 0:
                    yield self.likelihood(z[:number], task)
                number -= batch[0]

    def _q_z(self, m: Tensor, task: Task) -> TorchDistribution:
        prior = self.prior_z(m, task) if self.posterior_z.uses_prior else None
        return self.posterior_z(m, task, prior)

    def _without_z(self, m: Tensor, task: Task) -> Tensor | None:
        return self.likelihood.marginal(self._q_z(m, task), task)

    def _m(self, factor: Callable[[], TorchDistribution], task: Task) -> Tensor:
        """M ``[..., T, N, D]``: sampled from its factor, or read out of the memory."""
        if not self.memory_use.latent:
            return self.memory_use(task)
        with weighted(self.beta_m):
            return pyro.sample("m", factor())

    @staticmethod
    def _plates(task: Task):
        T, N = task.support.shape[:2]
        return (
            pyro.plate("tasks", T, dim=-2),
            pyro.plate("classes", N, dim=-1),
            pyro.plate("queries", task.query.shape[1], dim=-1),
        )


def weighted(beta: float | Tensor):
    """Scale the log densities inside by beta; mask them where beta is the number 0, which Pyro's scale refuses."""
    if isinstance(beta, Tensor):
        return poutine.scale(scale=beta)
    if beta == 1:
        return nullcontext()
    return poutine.scale(scale=beta) if beta > 0 else poutine.mask(mask=False)
