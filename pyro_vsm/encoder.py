"""From pixels to features: normalisation, backbone, feature map."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cached_property

import torch
from torch import Tensor, nn

from pyro_vsm.backbones import Backbone
from pyro_vsm.errors import UserError
from pyro_vsm.feature_map import FeatureMap
from pyro_vsm.fused import fused
from pyro_vsm.views import PLAIN, View, views


class Encoder(nn.Module):
    """``h(x)``: images with their channel statistics removed, through the backbone, scaled to unit RMS a dimension.

    Args:
        backbone: the network.
        mean, std: of the training images in [0, 1], one number a channel.
        amp: run the backbone in bfloat16 on CUDA (features come out in float32 all the same); under autocast it is
            run in that everywhere.
        compiled: run the backbone through ``torch.compile`` while training; always, where ``steady`` is set.
        feature_map: what is done to the backbone's output; by default it is scaled to unit RMS.
        flip, shift: in evaluation, the features of these views are averaged (:func:`~pyro_vsm.views.views`).
        enlarge: in evaluation, images are enlarged by this factor before the backbone, or by each of several.
        pieces: in evaluation, average also over pieces of this fraction of an image's side.
        crop: in evaluation, the centre of this fraction of an image's side stands for it.
        cached: the backbone is frozen, and its outputs may be kept (:mod:`pyro_vsm.feature_cache`).

    Raises:
        UserError: mean and std do not have one number a channel; ``enlarge`` is not from 1 to 8, or is above 1 for a
            backbone that takes images of one size.
    """

    mean: Tensor
    std: Tensor
    steady = False  # batches of one size are to come, in evaluation, too

    def __init__(
        self,
        backbone: Backbone,
        mean: Sequence[float],
        std: Sequence[float],
        *,
        amp: bool = False,
        compiled: bool = False,
        feature_map: FeatureMap | None = None,
        flip: bool = False,
        shift: int = 0,
        enlarge: float | Sequence[float] = 1.0,
        pieces: float = 1.0,
        crop: float = 1.0,
        cached: bool = False,
    ):
        super().__init__()
        if not len(mean) == len(std) == backbone.channels:
            raise UserError(
                f"encoder: {len(mean)} means and {len(std)} deviations for {backbone.channels} channels; "
                "give one each"
            )
        self.views = views(flip, shift, enlarge, pieces, crop)
        if any(v.enlarge > 1 for v in self.views) and not backbone.any_size:
            raise UserError(
                f"features.enlarge is {enlarge}, but this backbone takes images of one size; leave it at 1, or "
                "pool the last map (conv4 with pool: average or distance_covariance)"
            )
        self.backbone = backbone
        self.feature_map = FeatureMap(backbone.dim) if feature_map is None else feature_map
        self.amp, self.compiled, self.cached = amp, compiled, cached
        if max(abs(v.down) for v in self.views) >= backbone.image_size:
            raise UserError(f"features.shift is {shift}; give less than the {backbone.image_size} pixels of an image")
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).clamp_min(1e-3).view(-1, 1, 1))

    @property
    def dim(self) -> int:
        """Feature dimension D."""
        return self.feature_map.dim

    def forward(self, images: Tensor) -> Tensor:
        """Features ``[B, D]`` (float32) of images ``[B, C, H, W]``, uint8 or float in [0, 1].

        Raises:
            UserError: images of another shape than the backbone was made for.
        """
        if self.training and self.compiled:
            return self._compiled_features(self.pixels(images))
        return self.features(self.raw(images, view) for view in ([PLAIN] if self.training else self.views))

    def features(self, raw: Iterable[Tensor]) -> Tensor:
        """Features ``[B, D]`` of the backbone's outputs for each view of the images, averaged over the views.

        One view at a time: a generator's outputs need not all be held at once.
        """
        outputs = iter(raw)
        total, number = self.feature_map(next(outputs)), 1
        for h in outputs:
            total, number = total + self.feature_map(h), number + 1
        return total / number if number > 1 else total

    def raw(self, images: Tensor, view: View = PLAIN) -> Tensor:
        """The backbone's output ``[B, D]`` (float32) of a view of images ``[B, C, H, W]``, uint8 or float in [0, 1].

        Raises:
            UserError: images of another shape than the backbone was made for.
        """
        images = view(self.pixels(images))
        # evaluation comes in other batch sizes, each of which would be compiled anew
        compiled = self.compiled and (self.training or self.steady)
        return self._compiled_output(images) if compiled else self._output(images)

    def pixels(self, images: Tensor) -> Tensor:
        """Float32 in [0, 1] of images ``[B, C, H, W]``, uint8 or float in [0, 1].

        Raises:
            UserError: images of another shape than the backbone was made for.
        """
        wanted = (self.backbone.channels, self.backbone.image_size, self.backbone.image_size)
        if images.dim() != 4 or tuple(images.shape[1:]) != wanted:
            raise UserError(
                f"images have shape {list(images.shape)}; this model takes [batch, {', '.join(map(str, wanted))}]"
            )
        return images.float() / 255 if images.dtype == torch.uint8 else images.float()

    def _output(self, images: Tensor) -> Tensor:
        kind = images.device.type
        low = (self.amp and images.is_cuda) or torch.is_autocast_enabled(kind)
        with torch.autocast(kind, torch.bfloat16, enabled=low, cache_enabled=False):
            x = ((images - self.mean) / self.std).contiguous(memory_format=torch.channels_last)
            h = self.backbone(x)
        return h.float()

    @cached_property
    def _compiled_output(self) -> Callable[[Tensor], Tensor]:
        return fused(self._output)

    @cached_property
    def _compiled_features(self) -> Callable[[Tensor], Tensor]:
        return fused(lambda images: self.feature_map(self._output(images)))
