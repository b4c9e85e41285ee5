"""The views of one image whose features are averaged in evaluation: mirrored, moved by some pixels, enlarged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor
from torch.nn import functional as F

from pyro_vsm.errors import UserError


@dataclass(frozen=True)
class View:
    """An image as it is, or changed.

    Attributes:
        mirrored: left and right exchanged.
        down, right: moved by so many pixels; black comes in, as under ``augment.pad``.
        enlarge: scaled by this factor, after it was moved.
    """

    mirrored: bool = False
    down: int = 0
    right: int = 0
    enlarge: float = field(default=1.0, repr=False)  # caches know views of one size by their representation

    def __call__(self, images: Tensor) -> Tensor:
        """Of square images ``[B, C, H, W]``; floating point, if they are enlarged."""
        if self.down or self.right:
            images = F.pad(images, (self.right, -self.right, self.down, -self.down))
        if self.enlarge != 1:
            size = round(self.enlarge * images.shape[-1])
            images = F.interpolate(images, size=(size, size), mode="bilinear", align_corners=False)
        return images.flip(-1) if self.mirrored else images


PLAIN = View()


def views(flip: bool, shift: int, enlarge: float | Sequence[float] = 1.0) -> list[View]:
    """The image itself; with ``shift``, moved towards its four corners, too; with ``flip``, all of these mirrored.

    All of them at each of the sizes in ``enlarge``. The image itself, at the first size, comes first.

    Raises:
        UserError: a negative shift; no factor, one twice, or one that is not from 1 to 8.
    """
    if shift < 0:
        raise UserError(f"features.shift is {shift}; give a number of pixels from 0 on")
    factors = [enlarge] if isinstance(enlarge, (int, float)) else list(enlarge)
    if not factors or len({*factors}) < len(factors) or not all(1 <= f <= 8 for f in factors):
        raise UserError(f"features.enlarge is {enlarge}; give a factor from 1 to 8, or several different ones")
    moves = [(0, 0)] + [(a, b) for a in (-shift, shift) for b in (-shift, shift) if shift]
    turns = (False, True) if flip else (False,)
    return [View(mirrored, *move, float(factor)) for factor in factors for mirrored in turns for move in moves]
