"""VERSA (Gordon, Bronskill, Bauer, Nowozin, Turner 2019): amortised weights of a linear classifier."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pyro_vsm.config import VersaConfig
from pyro_vsm.encoder import Encoder
from pyro_vsm.fewshot import FewShotModel, fold, split_episode
from pyro_vsm.precision import full_precision


def inference_block(inputs: int, hidden: int, outputs: int, start: float = 0.0) -> nn.Sequential:
    """Three dense layers with ELU between them (the paper's appendix); ``start`` is the last bias."""
    last = nn.Linear(hidden, outputs)
    nn.init.constant_(last.bias, start)
    return nn.Sequential(nn.Linear(inputs, hidden), nn.ELU(), nn.Linear(hidden, hidden), nn.ELU(), last)


class Versa(FewShotModel):
    """``q(w_n, b_n | S_n)``: a Gaussian whose moments networks infer from the mean support feature ``s_n``.

    Class n is inferred from its own examples alone, so that any number of ways works. Logits are
    ``w_n' h(x) / sqrt(D) + b_n`` (h has unit RMS a dimension, so that D does not set their scale). They are Gaussian
    under q, independent over classes, and are sampled as such (local reparametrisation, as in the authors' code).

    Training maximises ``log 1/L sum_l p(y | x, w_l)`` of each query (the paper's eq. 5) with ``config.samples`` = L.

    Args:
        encoder: images to features.
        config: see :class:`~pyro_vsm.config.VersaConfig`.
    """

    def __init__(self, encoder: Encoder, config: VersaConfig):
        super().__init__(encoder)
        self.config = config
        D, hidden = encoder.dim, config.hidden
        self.weight_mean = inference_block(D, hidden, D)
        self.weight_log_variance = inference_block(D, hidden, D, 2 * config.log_sigma)
        self.bias_mean = inference_block(D, hidden, 1)
        self.bias_log_variance = inference_block(D, hidden, 1, 2 * config.log_sigma)

    def moments(self, support: Tensor, query: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of the logits under q, ``[T, Q, N]``; support ``[T, N, K, D]``, query ``[T, Q, D]``."""
        s = support.mean(2)
        weight, bias = self.weight_mean(s), self.bias_mean(s)
        weight_log_variance, bias_log_variance = self.weight_log_variance(s), self.bias_log_variance(s)
        with full_precision(query):
            h = query.float() / math.sqrt(query.shape[-1])
            mean = h @ weight.float().mT + bias.float().mT
            # bounded, so that no feature however strange makes the variance infinite
            weight_variance = weight_log_variance.float().clamp(-20, 10).exp()
            bias_variance = bias_log_variance.float().clamp(-20, 10).exp()
            return mean, h.square() @ weight_variance.mT + bias_variance.mT

    def log_probabilities(self, support: Tensor, query: Tensor, samples: int) -> Tensor:
        """``log p(y = n | x, w_l, b_l)`` of sampled classifiers, ``[L, T, Q, N]``."""
        mean, variance = self.moments(support, query)
        noise = torch.randn(samples, *mean.shape, device=mean.device)
        return F.log_softmax(mean + variance.sqrt() * noise, -1)

    def loss(
        self, features: Tensor, shot: int, classes: Tensor, progress: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Negative Monte Carlo log-likelihood of the queries."""
        support, query, labels = split_episode(features, shot)
        L = self.config.samples
        log_p = self.log_probabilities(support, query, L).logsumexp(0) - math.log(L)
        loss = -log_p.gather(-1, labels.unsqueeze(-1)).mean()
        accuracy = (log_p.argmax(-1) == labels).float().mean()
        return loss, {"log_likelihood": -loss.detach(), "accuracy": accuracy}

    def predict(self, support: Tensor, query: Tensor, samples: int = 100) -> Tensor:
        """See :class:`~pyro_vsm.fewshot.FewShotModel`."""
        return self.log_probabilities(support, query, samples).exp().mean(0)

    def predict_samples(self, support: Sequence[Tensor], query: Tensor, samples: int = 100) -> Tensor:
        """See :class:`~pyro_vsm.fewshot.FewShotModel`; only the mean of the examples matters."""
        means = torch.stack([fold(s, 1) for s in support])
        return self.log_probabilities(means.unsqueeze(0), query.unsqueeze(0), samples).squeeze(1).exp()
