"""What a training step is fed: draws a batch on the device and asks the model for its loss."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pyro_vsm import parallel
from pyro_vsm.config import Config
from pyro_vsm.data.augment import augment, distort, draws
from pyro_vsm.data.episodes import EpisodeIndex, EpisodeSampler
from pyro_vsm.data.images import ClassImages
from pyro_vsm.errors import UserError
from pyro_vsm.feature_cache import split_features
from pyro_vsm.fused import fused

if TYPE_CHECKING:
    from pyro_vsm.fewshot import FewShotModel

Loss = tuple[Tensor, dict[str, Tensor]]


class Feed(ABC):
    """A source of training batches. Nothing in it waits for the device, so that a step can be captured."""

    @abstractmethod
    def loss(self, model: FewShotModel, progress: Tensor) -> Loss:
        """The model's loss and terms (see :meth:`FewShotModel.forward`) on a fresh random batch."""


def _distortion(config: Config) -> Callable[..., Tensor]:
    """Augmentation: a dozen passes over the pixels, or compiled one or two."""
    if not config.training.compile:
        return distort
    options = {}
    if not config.augment.resamples:  # a resampled image would be computed anew for every pixel, and hardly compiles
        # what is left in memory on the way costs more than to compute it again for each of its readers
        thresholds = ("realize_reads_threshold", "realize_acc_reads_threshold", "realize_opcount_threshold")
        options = dict.fromkeys(thresholds, 1000)
    return fused(_in_channels_last, **options)


def _in_channels_last(*arguments: Any) -> Tensor:
    # as the backbone reads it
    return distort(*arguments).contiguous(memory_format=torch.channels_last)


class EpisodeFeed(Feed):
    """Episodes of augmented images.

    Args:
        data: training images, on their device.
        config: its ``episodes`` and ``augment``.

    Raises:
        UserError: the episodes do not fit the data.
    """

    def __init__(self, data: ClassImages, config: Config):
        e = config.episodes
        self.data, self.config = data, config
        self.sampler = EpisodeSampler(data, way=e.way, shot=e.shot, queries=e.queries)
        self._distort = _distortion(config)

    def loss(self, model: FewShotModel, progress: Tensor) -> Loss:
        """See :class:`Feed`."""
        index = self.sampler.sample(self.config.episodes.tasks)
        classes = index.classes if model.joint else parallel.share(index.classes)
        return model(self.images(index), self.config.episodes.shot, classes, progress)

    def images(self, index: EpisodeIndex) -> Tensor:
        """Augmented images ``[T, N, K+Q, C, H, W]`` of the episodes, float32 in [0, 1], support first.

        Of several processes each gets its share of the T tasks, from the same random stream.
        """
        positions = torch.cat([index.support, index.query], 2)
        u = draws(positions.numel(), positions.device).unflatten(1, positions.shape)
        u, positions = parallel.share(u.transpose(0, 1)).transpose(0, 1).flatten(1), parallel.share(positions)
        images = self._distort(self.data.images, positions.flatten(), self.config.augment, u)
        return images.unflatten(0, positions.shape)


class FeatureFeed(Feed):
    """Episodes of the features of a frozen encoder, computed once for several augmented views of every image.

    Args:
        data: training images, on their device.
        config: its ``episodes``, ``augment`` and ``training.views``.
        model: whose encoder is frozen.

    Raises:
        UserError: the episodes do not fit the data, or augmented images would be cropped.
    """

    def __init__(self, data: ClassImages, config: Config, model: FewShotModel):
        e = config.episodes
        if config.training.views > 1 and config.features.crop < 1:
            raise UserError(
                f"training.views is {config.training.views} and features.crop {config.features.crop}: "
                "augmented images would be cropped once more; leave one of the two at 1"
            )
        self.config = config
        self.sampler = EpisodeSampler(data, way=e.way, shot=e.shot, queries=e.queries)
        self.features = augmented_features(model, data, config, config.training.views)

    def loss(self, model: FewShotModel, progress: Tensor) -> Loss:
        """See :class:`Feed`."""
        e = self.config.episodes
        index = self.sampler.sample(e.tasks)
        images = torch.cat([index.support, index.query], 2)  # [T, N, K+Q]
        view = torch.randint(len(self.features), images.shape, device=images.device)
        return model.loss(self.features[view, images], e.shot, index.classes, progress)


class ImageFeed(Feed):
    """Batches of augmented images with their classes, for classification.

    Args:
        data: training images, on their device.
        config: its ``augment``.
        batch: images in a batch.

    Raises:
        UserError: an empty batch.
    """

    def __init__(self, data: ClassImages, config: Config, batch: int):
        if batch < 1:
            raise UserError(f"classifier.batch is {batch}; give at least 1")
        self.data, self.config, self.batch = data, config, batch
        self._distort = _distortion(config)
        self.labels = data.labels

    def loss(self, model: FewShotModel, progress: Tensor) -> Loss:
        """See :class:`Feed`."""
        device = self.labels.device
        index = torch.randint(len(self.labels), (self.batch,), device=device)
        u, index = parallel.share(draws(self.batch, device).T).T, parallel.share(index)
        images = self._distort(self.data.images, index, self.config.augment, u)
        return model.classify(images, self.labels[index], progress)  # type: ignore[operator]


@torch.no_grad()
def augmented_features(model: FewShotModel, data: ClassImages, config: Config, views: int) -> Tensor:
    """Features ``[views, I, D]`` of every training image: view 0 as it is, the others augmented."""
    mode = model.training
    model.eval()
    size = 1024 if data.images.is_cuda else 128
    result = torch.empty(views, len(data.images), model.dim, device=data.images.device)
    result[0] = split_features(model, data, device=data.images.device)
    for view in range(1, views):
        for start in range(0, len(data.images), size):
            images = data.images[start : start + size]
            result[view, start : start + size] = model.encode(augment(images, config.augment))
    model.train(mode)
    return result
