"""Gaussian-process head (deep kernel transfer: Patacchiola, Turner, Crowley, O'Boyle, Storkey 2020)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pyro_vsm.encoder import Encoder
from pyro_vsm.fewshot import FewShotModel, split_episode
from pyro_vsm.networks import Positive
from pyro_vsm.precision import full_precision


def regression(x: Tensor, y: Tensor, query: Tensor, amplitude: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Gaussian-process regressions of several functions on the same examples, kernel ``a <h, h'>``.

    Args:
        x: examples ``[T, S, D]``.
        y: their values under N functions, ``[T, S, N]``.
        query: ``[T, Q, D]``.
        amplitude: a, > 0.
        noise: variance of a value, > 0.

    Returns:
        Posterior means ``k(x)^T (K + noise I)^-1 y``, ``[T, Q, N]``, and the variance of the function without noise,
        ``k(x, x) - k(x)^T (K + noise I)^-1 k(x)``, ``[T, Q]``, one for all functions (Rasmussen, Williams 2006,
        eqs. 2.25 and 2.26); float64.
    """
    with full_precision(x):
        x, y, query, amplitude, noise = (t.double() for t in (x, y, query, amplitude, noise))
        across = amplitude * x @ query.mT  # [T, S, Q]
        kernel = amplitude * x @ x.mT + noise * torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
        factor, _ = torch.linalg.cholesky_ex(kernel)  # never singular, and cholesky would wait for the device
        white = torch.linalg.solve_triangular(factor, across, upper=False)
        mean = white.mT @ torch.linalg.solve_triangular(factor, y, upper=False)
        variance = amplitude * query.square().sum(-1) - white.square().sum(-2)
    return mean, variance.clamp_min(0.0)


class GaussianProcess(FewShotModel):
    """For each class a Gaussian-process regression on the labels 1 (of that class) and -1, cosine kernel.

    ``f_n | support ~ N(mu_n(x), v(x))`` and ``p(y=n|x) = softmax_n(tau mu_n / sqrt(1 + pi tau^2 v / 4))``, for the
    mean of ``softmax(tau f)``: MacKay's (1992) approximation for two classes, whose logits differ with variance
    ``2 tau^2 v``. Far from all examples v is large and all classes are alike. Amplitude, noise and tau are learned by
    the cross-entropy of the queries, as the other systems are (published: by the marginal likelihood of the labels,
    and the sigmoid of each f).

    Args:
        encoder: images to features.
        amplitude, noise, tau: at the start.
    """

    def __init__(self, encoder: Encoder, *, amplitude: float = 1.0, noise: float = 0.1, tau: float = 5.0):
        super().__init__(encoder)
        self.amplitude, self.noise, self.tau = Positive(amplitude), Positive(noise), Positive(tau)

    def logits(self, examples: Tensor, of: Tensor, query: Tensor) -> Tensor:
        """Logarithms of the probabilities up to a constant.

        Args:
            examples: ``[T, S, D]``.
            of: one-hot classes ``[S, N]``.
            query: ``[T, Q, D]``.

        Returns:
            ``[T, Q, N]``.
        """
        x, h = F.normalize(examples, dim=-1), F.normalize(query, dim=-1)
        mean, variance = regression(x, (2 * of - 1).expand(len(x), -1, -1), h, self.amplitude(), self.noise())
        tau = self.tau().double()
        logits = tau * mean * torch.rsqrt(1 + math.pi / 4 * tau.square() * variance).unsqueeze(-1)
        return logits.to(query.dtype)

    def loss(
        self, features: Tensor, shot: int, classes: Tensor, progress: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross-entropy of the queries."""
        support, query, labels = split_episode(features, shot)
        logits = self.logits(support.flatten(1, 2), _one_hot([shot] * support.shape[1], support), query)
        loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten())
        accuracy = (logits.argmax(-1) == labels).float().mean()
        return loss, {"log_likelihood": -loss.detach(), "accuracy": accuracy}

    def calibration_parameters(self) -> list[nn.Parameter]:
        """Amplitude, noise and temperature."""
        return [*self.amplitude.parameters(), *self.noise.parameters(), *self.tau.parameters()]

    def predict(self, support: Tensor, query: Tensor, samples: int = 100) -> Tensor:
        """See :class:`~pyro_vsm.fewshot.FewShotModel`; there is nothing to sample."""
        N, K = support.shape[1:3]
        return torch.softmax(self.logits(support.flatten(1, 2), _one_hot([K] * N, support), query), -1)

    def predict_samples(self, support: Sequence[Tensor], query: Tensor, samples: int = 100) -> Tensor:
        """See :class:`~pyro_vsm.fewshot.FewShotModel`; every example counts as one, whatever their numbers."""
        of = _one_hot([len(s) for s in support], query)
        return torch.softmax(self.logits(torch.cat(list(support)).unsqueeze(0), of, query.unsqueeze(0)), -1)


def _one_hot(numbers: list[int], like: Tensor) -> Tensor:
    """Classes ``[S, N]`` of examples that come class by class."""
    return torch.block_diag(*(like.new_ones(k, 1) for k in numbers))
