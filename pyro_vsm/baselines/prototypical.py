"""Prototypical network (Snell, Swersky, Zemel 2017)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pyro_vsm.encoder import Encoder
from pyro_vsm.fewshot import FewShotModel, split_episode
from pyro_vsm.likelihood import half_distance
from pyro_vsm.networks import Positive


class PrototypicalNetwork(FewShotModel):
    """``p(y=n|x) = softmax_n(-tau * mean_d (h(x) - s_n)^2)``, ``s_n`` the mean support feature, tau learned.

    Args:
        encoder: images to features.
        tau: inverse temperature at the start.
    """

    def __init__(self, encoder: Encoder, *, tau: float = 5.0):
        super().__init__(encoder)
        self.tau = Positive(tau)

    def logits(self, support: Tensor, query: Tensor) -> Tensor:
        """``[T, Q, N]`` for support ``[T, N, K, D]`` and query ``[T, Q, D]``."""
        return self.tau() * half_distance(query, support.mean(2)) / self.dim

    def loss(
        self, features: Tensor, shot: int, classes: Tensor, progress: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross-entropy of the queries."""
        support, query, labels = split_episode(features, shot)
        logits = self.logits(support, query)
        loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten())
        accuracy = (logits.argmax(-1) == labels).float().mean()
        return loss, {"log_likelihood": -loss.detach(), "accuracy": accuracy}

    def calibration_parameters(self) -> list[nn.Parameter]:
        """The temperature."""
        return list(self.tau.parameters())

    def predict(self, support: Tensor, query: Tensor, samples: int = 100) -> Tensor:
        """See :class:`FewShotModel`; there is nothing to sample."""
        return torch.softmax(self.logits(support, query), -1)
