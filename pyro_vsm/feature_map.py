"""What is done to the backbone's output before anything else sees it: power, centring, projection, scale."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Union

import torch
from torch import Tensor, nn

from pyro_vsm.errors import UserError
from pyro_vsm.precision import full_precision


@dataclass
class FeatureConfig:
    """What every system alike does to the backbone's output; see :class:`FeatureMap`.

    Args:
        power: exponent of the activations; below 1 makes them less skewed.
        components: principal components of the training images' features that are kept; 0 for all dimensions.
        centre: subtract the mean feature of the training images.
        renormalise: scale each centred feature to unit RMS again.
        flip: in evaluation, average the features of an image and of its mirror image.
        shift: in evaluation, average also over the image moved by so many pixels towards its four corners; 0 is off.
            Each image is then encoded five times as often.
        enlarge: in evaluation, images are enlarged by this factor before the backbone, at least 1. A backbone trained
            on random pieces has seen things larger than they are in whole images (Touvron et al. 2019). Of several
            factors, ``[1.0, 1.2]`` say, the features at all these sizes are averaged.
        pieces: in evaluation, average also over five pieces of the image, its centre and its four corners, with sides
            of this fraction of the image's, scaled to its size; 1 is off. Each image is encoded six times as often.
            They are pieces of the whole image, whatever ``crop`` is.
        crop: in evaluation, the centre of an image, with sides of this fraction of the image's, is scaled to its size
            and stands for it; 1 is off. For a backbone trained on pieces of one size: the square root of
            ``augment.crop_scale``, which is of the area.
    """

    power: float = 1.0
    components: int = 0
    centre: bool = False
    renormalise: bool = False
    flip: bool = False
    shift: int = 0
    enlarge: Union[float, list[float]] = 1.0  # noqa: UP007  jsonargparse reads this form on Python 3.10
    pieces: float = 1.0
    crop: float = 1.0


def unit_rms(h: Tensor) -> Tensor:
    """``h sqrt(D) / |h|`` a row; the small constant keeps a constant image (h = 0) from becoming NaN."""
    return h * torch.rsqrt(h.square().mean(-1, keepdim=True) + 1e-6)


class FeatureMap(nn.Module):
    """``h -> unit RMS(sign(h) |h|^power) -> c P (h - mu)``: power transform, scale, principal components.

    The power transform makes skewed activations more Gaussian (Yang, Liu, Xu 2021); centring and scaling after it
    is SimpleShot's CL2N (Wang et al. 2019) with ``renormalise``. ``mu``, ``P`` and ``c`` are those of the training
    images' features (:meth:`fit`), so that the result has unit RMS a dimension; before that, mu = 0.

    Args:
        dim: of the backbone's output, D.
        power: exponent, 1 leaves the activations as they are.
        components: leading principal components that are kept, in decreasing order; 0 keeps all D dimensions.
        centre: subtract the mean of the training images' features (components above 0 implies it).
        renormalise: scale each centred feature to unit RMS again.

    Raises:
        UserError: a power that is not positive, or more components than dimensions.
    """

    mean: Tensor
    matrix: Tensor
    scale: Tensor

    def __init__(
        self,
        dim: int,
        *,
        power: float = 1.0,
        components: int = 0,
        centre: bool = False,
        renormalise: bool = False,
    ):
        super().__init__()
        if not power > 0 or not 0 <= components <= dim:
            raise UserError(
                f"features: power={power}, components={components}; give a power above 0 and at most {dim} components"
            )
        self.power, self.components, self.renormalise = power, components, renormalise
        self.centre = centre or components > 0
        self.dim = components or dim
        if self.centre:
            self.register_buffer("mean", torch.zeros(dim))
            self.register_buffer("scale", torch.ones(()))
        if components:
            self.register_buffer("matrix", torch.eye(components, dim))

    def scaled(self, h: Tensor) -> Tensor:
        """The part before centring."""
        if self.power != 1:
            # the gradient of a power below 1 is infinite at zero, where ReLU leaves half of the activations
            h = h.sign() * (h.abs() + 1e-4).pow(self.power)
        return unit_rms(h)

    def forward(self, h: Tensor) -> Tensor:
        """Features ``[B, dim]`` of the backbone's output ``[B, D]``, float32."""
        h = self.scaled(h)
        if not self.centre:
            return h
        h = h - self.mean
        if self.components:
            with full_precision(h):
                h = h @ self.matrix.T
        return unit_rms(h) if self.renormalise else h * self.scale

    @torch.no_grad()
    def fit(self, scaled: Tensor) -> None:
        """Take mean, components and scale from the :meth:`scaled` features ``[I, D]`` of the training images.

        Raises:
            UserError: fewer images than components.
        """
        if not self.centre:
            return
        if len(scaled) <= self.components:
            raise UserError(
                f"features.components is {self.components}, but there are {len(scaled)} training images; give fewer"
            )
        self.mean.copy_(scaled.mean(0))
        gap = scaled - self.mean
        if self.components:
            covariance = (gap.T @ gap).double() / len(gap)
            vectors = torch.linalg.eigh(covariance)[1].flip(1)[:, : self.components].T
            # the sign of an eigenvector is arbitrary: make its largest entry positive
            largest = vectors.gather(1, vectors.abs().argmax(1, keepdim=True))
            self.matrix.copy_(vectors * largest.sign())
            gap = gap @ self.matrix.T
        self.scale.copy_(gap.square().mean().rsqrt())
