"""The views of one image whose features are averaged in evaluation: mirrored, and moved by some pixels."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from pyro_vsm.errors import UserError


@dataclass(frozen=True)
class View:
    """An image as it is, or changed.

    Attributes:
        mirrored: left and right exchanged.
        down, right: moved by so many pixels; black comes in, as under ``augment.pad``.
    """

    mirrored: bool = False
    down: int = 0
    right: int = 0

    def __call__(self, images: Tensor) -> Tensor:
        """Of images ``[..., H, W]``."""
        if self.down or self.right:
            images = F.pad(images, (self.right, -self.right, self.down, -self.down))
        return images.flip(-1) if self.mirrored else images


PLAIN = View()


def views(flip: bool, shift: int) -> list[View]:
    """The image itself; with ``shift``, moved towards its four corners, too; with ``flip``, all of these mirrored.

    The image itself comes first.

    Raises:
        UserError: a negative shift.
    """
    if shift < 0:
        raise UserError(f"features.shift is {shift}; give a number of pixels from 0 on")
    moves = [(0, 0)] + [(a, b) for a in (-shift, shift) for b in (-shift, shift) if shift]
    return [View(mirrored, *move) for mirrored in ((False, True) if flip else (False,)) for move in moves]
