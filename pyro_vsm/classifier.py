"""Pretraining: a classifier of the training classes, whose encoder then serves every system."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pyro_vsm.baselines import PrototypicalNetwork
from pyro_vsm.config import ClassifierConfig, Config
from pyro_vsm.data.images import ClassImages
from pyro_vsm.encoder import Encoder
from pyro_vsm.errors import UserError
from pyro_vsm.feeds import Feed, ImageFeed
from pyro_vsm.fewshot import FewShotModel, split_episode
from pyro_vsm.mixing import mixed, soft_targets
from pyro_vsm.networks import Positive
from pyro_vsm.precision import full_precision


class CosineHead(nn.Module):
    """``tau cos(w_c, h)``, tau learned (Gidaris, Komodakis 2018).

    Args:
        dim: feature dimension D.
        classes: C.
        tau: at the start.
    """

    def __init__(self, dim: int, classes: int, tau: float):
        super().__init__()
        self.weight = nn.Parameter(F.normalize(torch.randn(classes, dim), dim=-1))
        self.tau = Positive(tau)

    def forward(self, h: Tensor) -> Tensor:
        """Logits ``[B, C]`` of ``[B, D]``."""
        return self.tau() * F.normalize(h, dim=-1) @ F.normalize(self.weight, dim=-1).T


class Classifier(PrototypicalNetwork):
    """Cross-entropy over the training classes, with rotation self-supervision and self-distillation as options.

    New classes are told by the nearest mean feature, so that validation is by episodes as for every system.
    Sources: Tian et al. 2020 (classification, distillation); Gidaris et al. 2019 (rotation); Rajasegaran et al. 2020
    (every rotated copy is classified, too). Mixed images (``classifier.mix``) are mixed before they are turned.

    Args:
        encoder: images to features.
        classes: number of training classes.
        config: see :class:`~pyro_vsm.config.ClassifierConfig`.
    """

    def __init__(self, encoder: Encoder, classes: int, config: ClassifierConfig):
        super().__init__(encoder)
        self.config = config
        dim = encoder.backbone.dim
        cosine = config.head == "cosine"
        self.head = CosineHead(dim, classes, config.tau) if cosine else nn.Linear(dim, classes)
        seen = classes if config.rotation_from == "logits" else dim
        self.rotation_head = nn.Linear(seen, 4) if config.rotations else None
        self._teachers: list[Classifier] = []  # in a list: their weights are no part of this model

    def learn_from(self, teacher: FewShotModel, name: str) -> None:
        """Be distilled from a teacher, besides those given before.

        Raises:
            UserError: ``name`` is no classifier of as many classes.
        """
        if not isinstance(teacher, Classifier) or teacher.class_count != self.class_count:
            raise UserError(
                f"classifier.teacher: {name} is no classifier of {self.class_count} classes; "
                "give one that was trained on the same data"
            )
        encoder = teacher.encoder  # as fast as the student's: it sees the same batches
        encoder.amp, encoder.compiled, encoder.steady = self.encoder.amp, self.encoder.compiled, True
        self._teachers.append(teacher.eval().requires_grad_(False))

    def feed(self, data: ClassImages, config: Config) -> Feed:
        """Batches of single images."""
        return ImageFeed(data, config, self.config.batch)

    @property
    def class_count(self) -> int:
        """Number of training classes."""
        return self.head.weight.shape[0]

    def logits_of(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits ``[B, C]`` of the training classes, and the backbone's output ``[B, D]``, after dropout."""
        h = F.dropout(self.encoder.raw(images), self.config.dropout, self.training)
        with full_precision(h):
            return self.head(h), h

    def classify(self, images: Tensor, labels: Tensor, progress: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss on a batch of images, in nats an image.

        Args:
            images: ``[B, channels, H, W]`` in [0, 1].
            labels: class indices ``[B]``.
            progress: see :meth:`FewShotModel.forward`; without effect.
        """
        c = self.config
        targets = labels
        if c.mix != "none":
            images, other, lam = mixed(images, c.mix, c.mix_alpha, c.mix_share)
            targets = soft_targets(labels, other, lam, self.class_count)
        copies, angles = rotated(images, c.rotations) if self.rotation_head is not None else (images, None)
        copies = copies.contiguous(memory_format=torch.channels_last)
        times = len(copies) // len(images)
        labels, targets = labels.repeat(times), targets.repeat(times, *[1] * (targets.dim() - 1))
        logits, h = self.logits_of(copies)
        loss = F.cross_entropy(logits, targets, label_smoothing=c.smoothing)
        terms = {"cross_entropy": loss.detach(), "accuracy": (logits.argmax(-1) == labels).float().mean()}
        if self._teachers:
            asked = len(images) if c.taught == "images" else len(copies)  # the images come first
            with torch.no_grad():
                answers = [F.log_softmax(t.logits_of(copies[:asked])[0] / c.temperature, -1) for t in self._teachers]
                taught = torch.stack(answers).logsumexp(0) - math.log(len(answers))
            divergence = c.temperature**2 * F.kl_div(
                F.log_softmax(logits[:asked] / c.temperature, -1),
                taught,
                log_target=True,
                reduction="batchmean",
            )
            loss = (1 - c.distillation) * loss + c.distillation * divergence
            terms["distillation"] = divergence.detach()
        if self.rotation_head is not None and angles is not None:
            with full_precision(h):
                seen = logits if c.rotation_from == "logits" else h
                turned = F.cross_entropy(self.rotation_head(seen), angles)
            loss = loss + c.rotation_weight * turned
            terms["rotation"] = turned.detach()
        return loss, terms

    def loss(
        self, features: Tensor, shot: int, classes: Tensor, progress: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross-entropy of an episode's queries by the nearest mean, for those who train this encoder by episodes."""
        support, query, labels = split_episode(features, shot)
        loss = F.cross_entropy(self.logits(support, query).flatten(0, 1), labels.flatten())
        return loss, {"log_likelihood": -loss.detach()}


def rotated(images: Tensor, copies: int) -> tuple[Tensor, Tensor]:
    """The images, and ``copies`` of each turned by a random one of 90, 180 and 270 degrees.

    Returns:
        Images ``[(1 + copies) B, C, H, W]`` and their quarter turns ``[(1 + copies) B]``.
    """
    size = len(images)
    turned = torch.stack([torch.rot90(images, k, (2, 3)) for k in (1, 2, 3)])  # [3, B, C, H, W]
    rows = torch.arange(size, device=images.device)
    parts, angles = [images], [torch.zeros(size, dtype=torch.int64, device=images.device)]
    for _ in range(copies):
        angle = torch.randint(3, (size,), device=images.device)
        parts.append(turned[angle, rows])
        angles.append(angle + 1)
    return torch.cat(parts), torch.cat(angles)
