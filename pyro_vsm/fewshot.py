"""What every system of this package is: something that can be trained on episodes and asked for probabilities."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pyro_vsm import parallel
from pyro_vsm.config import Config
from pyro_vsm.data.images import ClassImages
from pyro_vsm.encoder import Encoder
from pyro_vsm.feeds import EpisodeFeed, FeatureFeed, Feed


class FewShotModel(nn.Module, ABC):
    """A few-shot classifier. Training, evaluation and the command line know no more of a system than this.

    Args:
        encoder: images to features.

    Attributes:
        traceable: whether :meth:`loss` does the same tensor operations in every step, so that it may be recorded
            and compiled (:mod:`pyro_vsm.compiled`).
        pending: what :meth:`loss` leaves for :meth:`after_step`, a dataclass of tensors, or None.
        heads_in_bfloat16: compute the loss under bf16 autocast on CUDA (densities guard themselves).
    """

    traceable = True
    pending: Any = None
    heads_in_bfloat16 = False

    def __init__(self, encoder: Encoder):
        super().__init__()
        self.encoder = encoder

    @property
    def dim(self) -> int:
        """Feature dimension D."""
        return self.encoder.dim

    @property
    def joint(self) -> bool:
        """Whether several processes compute the loss of the joint batch together (see :mod:`pyro_vsm.parallel`)."""
        return type(self).forward is FewShotModel.forward

    def encode(self, images: Tensor) -> Tensor:
        """Features ``[B, D]`` of images ``[B, C, H, W]``, uint8 or float in [0, 1]."""
        return self.encoder(images)

    def forward(
        self, images: Tensor, shot: int, classes: Tensor, progress: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Training loss of a batch of episodes, in nats a query.

        Args:
            images: ``[T, N, R, C, H, W]``; of each class the first ``shot`` are support, the others queries. Of
                several processes (:mod:`pyro_vsm.parallel`) each gives its share of the T tasks.
            shot: K.
            classes: class ids in the training set, ``[T, N]``.
            progress: how much of the training is over, a scalar tensor in [0, 1].

        Returns:
            The loss and named detached scalars for the log.
        """
        features = parallel.joined(self.encode(images.flatten(0, 2)).unflatten(0, images.shape[:3]))
        low = self.heads_in_bfloat16 and features.is_cuda
        with torch.autocast(features.device.type, torch.bfloat16, enabled=low, cache_enabled=False):
            return self.loss(features, shot, classes, progress)

    def feed(self, data: ClassImages, config: Config) -> Feed:
        """What this system is trained on; by default episodes, of cached features where the encoder is frozen.

        Args:
            data: training images, on the device.
            config: the run.
        """
        return FeatureFeed(data, config, self) if config.training.freeze else EpisodeFeed(data, config)

    @abstractmethod
    def loss(
        self, features: Tensor, shot: int, classes: Tensor, progress: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """As :meth:`forward`, from the features ``[T, N, R, D]``."""

    def start(self, features: Tensor, labels: Tensor) -> None:
        """Called once before a training that starts from a trained encoder; does nothing here.

        Args:
            features: of all training images, ``[I, D]``, on the device of the model.
            labels: their class indices ``[I]``.
        """

    def calibration_parameters(self) -> list[nn.Parameter]:
        """The few scalars that ``training.calibrate`` fits to validation episodes; none here."""
        return []

    def after_step(self) -> None:
        """Called at the end of each step, for what is learned without gradient (the memory); does nothing here.

        The optimiser is at work meanwhile: neither parameters nor gradients may be read or changed here.
        """

    def refresh(self) -> None:
        """Called every ``log_every`` steps, for what is too slow for each of them; does nothing here."""

    @abstractmethod
    def predict(self, support: Tensor, query: Tensor, samples: int = 100) -> Tensor:
        """Class probabilities of queries.

        Args:
            support: features ``[T, N, K, D]``.
            query: features ``[T, Q, D]``.
            samples: from the posterior, where the system has one; probabilities are averaged over them.

        Returns:
            ``[T, Q, N]``, rows sum to one.
        """

    def predict_samples(self, support: Sequence[Tensor], query: Tensor, samples: int = 100) -> Tensor:
        """Class probabilities of one task under each posterior sample; classes may differ in their examples.

        Here for systems that want the same number of examples of each class: where they differ, those of the larger
        classes are folded (:func:`fold`), and there is one sample, the averaged probabilities.

        Args:
            support: features ``[K_n, D]`` of each of N classes.
            query: features ``[Q, D]``.
            samples: S.

        Returns:
            ``[S, Q, N]``; S = 1 for a system without a posterior.
        """
        shots = min(len(s) for s in support)
        folded = torch.stack([fold(s, shots) for s in support])
        return self.predict(folded.unsqueeze(0), query.unsqueeze(0), samples)

    def predict_exactly(self, support: Sequence[Tensor], query: Tensor, samples: int = 100) -> Tensor | None:
        """What :meth:`predict` says of such a task, ``[Q, N]``, where it is no average of :meth:`predict_samples`.

        None, as here, where it is.
        """
        return None


def fold(features: Tensor, shots: int) -> Tensor:
    """Fewer features ``[shots, D]`` of the same mean as ``[K, D]``: every example counts, and each as much.

    Feature j is the mean of the j-th part of the examples, one that lies across a border shared by both parts.
    The model then takes a class for one of ``shots`` examples: a little too unsure, never too sure.
    """
    K = len(features)
    borders = torch.arange(K + 1, device=features.device) / K
    edges = torch.arange(shots + 1, device=features.device) / shots
    low = torch.maximum(borders[:-1], edges[:-1, None])
    high = torch.minimum(borders[1:], edges[1:, None])
    return shots * (high - low).clamp_min(0) @ features


def split_episode(features: Tensor, shot: int) -> tuple[Tensor, Tensor, Tensor]:
    """Support ``[T, N, K, D]``, query ``[T, N*Q, D]`` and labels ``[T, N*Q]`` of features ``[T, N, K+Q, D]``."""
    T, N, R, _ = features.shape
    labels = torch.arange(N, device=features.device).repeat_interleave(R - shot)
    return features[:, :, :shot], features[:, :, shot:].flatten(1, 2), labels.expand(T, -1)
