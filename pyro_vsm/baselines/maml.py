"""Model-agnostic meta-learning (MAML: Finn, Abbeel, Levine 2017)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

from pyro_vsm.config import MAMLConfig
from pyro_vsm.encoder import Encoder
from pyro_vsm.errors import UserError
from pyro_vsm.fewshot import FewShotModel, split_episode
from pyro_vsm.fused import fused
from pyro_vsm.precision import full_precision
from pyro_vsm.views import PLAIN

Weights = dict[str, Tensor]

IMAGES = {"cpu": 1024, "cuda": 4096}
"""Images that are adapted to or answered at a time in prediction, each through weights of its task; on CUDA those of
a whole block of episodes, for fewer launches."""


class TaskBatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation by the moments of the first ``first`` images of a task; 0 for all of them.

    Parameters and buffers keep the names of those of ``nn.BatchNorm2d``, so that weights can be exchanged; the
    running moments are not used.
    """

    first = 0

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, H, W]``."""
        values = _wide(x)
        part = values[: self.first] if self.first else values
        mean = part.mean((0, 2, 3), keepdim=True)
        gap = values - mean
        var = (gap[: self.first] if self.first else gap).square().mean((0, 2, 3), keepdim=True)
        y = gap * torch.rsqrt(var + self.eps)
        if self.affine:
            y = y * self.weight.view(-1, 1, 1) + self.bias.view(-1, 1, 1)
        return y.to(x.dtype)


class MAML(FewShotModel):
    """Backbone and linear head start a task from given weights and take gradient steps on its support set.

    What other systems call features are here the normalised pixels ``[B, C*H*W]``: what an image becomes depends on
    the task. All weights are adapted, those of the batch normalisation included. The backbone's output goes through
    the feature map that every system has.

    Choices, in :class:`~pyro_vsm.config.MAMLConfig`: batch normalisation by the moments of the support set, so that
    no query is told anything of the others (the published code takes those of the queries: ``transductive``); a
    head that starts alike for all classes (Ye, Chao 2022), so that the order of the classes does not matter and their
    number is free (published: ``per_way``, a learned start for each position). What all classes' weights have in
    common cancels in the softmax, before and after every step, so the common start is zero (Kao, Chiu, Chen 2022) and
    nothing of it is learned.

    Args:
        encoder: images to features; its batch normalisations are replaced.
        config: see :class:`~pyro_vsm.config.MAMLConfig`.
        way: classes of the training episodes.
    """

    traceable = False  # the gradient goes to the encoder from inside the loss

    def __init__(self, encoder: Encoder, config: MAMLConfig, way: int):
        super().__init__(encoder)
        self.config = config
        for module in encoder.backbone.modules():
            if type(module) is nn.BatchNorm2d:
                module.__class__ = TaskBatchNorm2d
        self.inner_lr = config.inner_lr or 16 / encoder.dim
        self.head = nn.Linear(encoder.dim, way) if config.head == "per_way" else None

    @property
    def dim(self) -> int:
        """Pixels of an image, all channels."""
        return self.encoder.backbone.channels * self.encoder.backbone.image_size**2

    def encode(self, images: Tensor) -> Tensor:
        """Pixels ``[B, C*H*W]``, each channel with mean 0 and variance 1 over the training images."""
        e = self.encoder
        return ((e.pixels(images) - e.mean) / e.std).flatten(1)

    def forward(
        self, images: Tensor, shot: int, classes: Tensor, progress: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """See :class:`~pyro_vsm.fewshot.FewShotModel`; each of several processes adapts to its own tasks."""
        features = self.encode(images.flatten(0, 2)).unflatten(0, images.shape[:3])
        return self.loss(features, shot, classes, progress)

    def loss(
        self, features: Tensor, shot: int, classes: Tensor, progress: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross-entropy of the queries after ``inner_steps`` steps, differentiated through those steps."""
        support, query, labels = split_episode(features, shot)
        way = support.shape[1]
        of = torch.arange(way, device=features.device).repeat_interleave(shot)
        adapt = self._compiled_adapt if self.encoder.compiled else self.adapt
        logits = adapt(support.flatten(1, 2), of, query, way, self.config.inner_steps)
        loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten())
        accuracy = (logits.argmax(-1) == labels).float().mean()
        return loss, {"log_likelihood": -loss.detach(), "accuracy": accuracy}

    @cached_property
    def _compiled_adapt(self) -> Callable[..., Tensor]:
        """:meth:`adapt` as one compiled program, inner gradients and all."""
        # joining sums over different dimensions fails on second derivatives of the distance covariance (PyTorch 2.11)
        return fused(self.adapt, combo_kernels=False, **{"triton.mix_order_reduction": False})

    def predict(self, support: Tensor, query: Tensor, samples: int = 100) -> Tensor:
        """See :class:`~pyro_vsm.fewshot.FewShotModel`; after ``test_steps`` steps, there is nothing to sample."""
        N, K = support.shape[1:3]
        of = torch.arange(N, device=support.device).repeat_interleave(K)
        return self._predict(support.flatten(1, 2), of, query, N)

    def predict_samples(self, support: Sequence[Tensor], query: Tensor, samples: int = 100) -> Tensor:
        """See :class:`~pyro_vsm.fewshot.FewShotModel`; every example counts as one, whatever their numbers."""
        of = torch.cat([torch.full((len(s),), n, device=query.device) for n, s in enumerate(support)])
        return self._predict(torch.cat(list(support)).unsqueeze(0), of, query.unsqueeze(0), len(support))

    def _predict(self, examples: Tensor, of: Tensor, query: Tensor, way: int) -> Tensor:
        most = IMAGES.get(query.device.type, IMAGES["cpu"])
        together = max(1, most // (examples.shape[1] + query.shape[1]))
        # torch.func differentiates inside no_grad, but not tensors that inference mode has made
        with torch.inference_mode(False), torch.no_grad():
            examples, query = (t.clone() if t.is_inference() else t for t in (examples, query))
            return torch.softmax(self.adapt(examples, of, query, way, self.config.test_steps, together), -1)

    def adapt(
        self, examples: Tensor, of: Tensor, query: Tensor, way: int, steps: int, together: int | None = None
    ) -> Tensor:
        """Logits of queries under the adapted weights.

        Args:
            examples: pixels ``[T, S, P]``.
            of: class indices ``[S]``.
            query: pixels ``[T, Q, P]``.
            way: classes N.
            steps: of gradient descent on the mean cross-entropy of the examples.
            together: tasks at a time; None for all.

        Returns:
            ``[T, Q, N]``, differentiable with respect to the learned start.

        Raises:
            UserError: more classes than a head of the kind ``per_way`` has.
        """
        if self.head is not None and way > self.head.out_features:
            raise UserError(
                f"maml: {way} classes, but its head was trained for {self.head.out_features}; "
                "give fewer, or train with maml.head: shared"
            )
        start: Weights = {f"backbone.{k}": p for k, p in self.encoder.backbone.named_parameters()}
        if self.head is not None:
            start.update({"head.weight": self.head.weight[:way], "head.bias": self.head.bias[:way]})
        else:  # a row of each class, or their steps would be one step
            zeros = self.encoder.mean.new_zeros
            start.update({"head.weight": zeros(way, self.encoder.dim), "head.bias": zeros(way)})

        def inner_loss(weights: Weights, x: Tensor) -> Tensor:
            return F.cross_entropy(self._logits(weights, x), of)

        def one_task(x: Tensor, queries: Tensor) -> Tensor:
            weights = start
            for _ in range(steps):
                slope = grad(inner_loss)(weights, x)
                if self.config.first_order:
                    slope = {k: g.detach() for k, g in slope.items()}
                weights = {k: w - self.inner_lr * slope[k] for k, w in weights.items()}
            if self.config.batch_norm == "transductive":
                return self._logits(weights, queries)
            return self._logits(weights, torch.cat([x, queries]), first=len(x))[len(x) :]

        return vmap(one_task, randomness="different", chunk_size=together)(examples, query)

    def _logits(self, weights: Weights, pixels: Tensor, first: int = 0) -> Tensor:
        """``[B, N]`` of pixels ``[B, P]`` of one task, normalised by the moments of the first so many images."""
        e = self.encoder
        images = pixels.unflatten(1, (e.backbone.channels, e.backbone.image_size, e.backbone.image_size))
        views = [PLAIN] if self.training else e.views
        h = torch.stack([self._features(weights, view(images), first) for view in views]).mean(0)
        with full_precision(h):
            return F.linear(h, weights["head.weight"], weights["head.bias"])

    def _features(self, weights: Weights, images: Tensor, first: int) -> Tensor:
        e = self.encoder
        for module in e.backbone.modules():
            if isinstance(module, TaskBatchNorm2d):
                module.first = first
        own = {k.removeprefix("backbone."): w for k, w in weights.items() if k.startswith("backbone.")}
        low = e.amp and images.is_cuda
        with torch.autocast(images.device.type, torch.bfloat16, enabled=low, cache_enabled=False):
            h = functional_call(e.backbone, own, (images,))
        return e.feature_map(_wide(h))


def _wide(x: Tensor) -> Tensor:
    """Float32 of what autocast has made narrower; float64 stays."""
    return x.float() if x.element_size() < 4 else x
