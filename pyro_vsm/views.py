"""The views of an image whose features are averaged in evaluation: mirrored, moved, enlarged, cropped, pieces."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product

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
        piece: side of a square that is cut out, as a fraction of the image's, and where it lies between top and
            bottom and between left and right, each from 0 to 1; scaled to the image's size. None for all of it.
    """

    mirrored: bool = False
    down: int = 0
    right: int = 0
    enlarge: float = 1.0
    piece: tuple[float, float, float] | None = None

    def __call__(self, images: Tensor) -> Tensor:
        """Of square images ``[B, C, H, W]``; floating point, if they are enlarged or cut."""
        if self.down or self.right:
            images = F.pad(images, (self.right, -self.right, self.down, -self.down))
        size = round(self.enlarge * images.shape[-1])
        if self.piece:
            side, down, right = self.piece
            cut = max(1, round(side * images.shape[-1]))
            top, left = (round(place * (images.shape[-1] - cut)) for place in (down, right))
            images = images[..., top : top + cut, left : left + cut]
        if images.shape[-1] != size:
            images = F.interpolate(images, size=(size, size), mode="bilinear", align_corners=False)
        return images.flip(-1) if self.mirrored else images


PLAIN = View()


def views(
    flip: bool, shift: int = 0, enlarge: float | Sequence[float] = 1.0, pieces: float = 1.0, crop: float = 1.0
) -> list[View]:
    """The image itself; with ``shift``, moved towards its four corners, too; with ``flip``, all of these mirrored.

    With ``crop`` below 1, its centre stands for the image, enlarged to its size. With ``pieces`` below 1, also five
    pieces of the whole image, its centre and its four corners. All of them at each of the sizes in ``enlarge``. What
    stands for the image, at the first size, comes first.

    Raises:
        UserError: a negative shift; no factor, one twice, or one that is not from 1 to 8; pieces or a crop below a
            tenth.
    """
    if shift < 0:
        raise UserError(f"features.shift is {shift}; give a number of pixels from 0 on")
    factors = [enlarge] if isinstance(enlarge, (int, float)) else list(enlarge)
    if not factors or len({*factors}) < len(factors) or not all(1 <= f <= 8 for f in factors):
        raise UserError(f"features.enlarge is {enlarge}; give a factor from 1 to 8, or several different ones")
    for name, side in (("pieces", pieces), ("crop", crop)):
        if not 0.1 <= side <= 1:
            raise UserError(f"features.{name} is {side}; give a fraction of the image's side from 0.1 to 1")
    whole = View(piece=(crop, 0.5, 0.5)) if crop < 1 else View()
    kinds = [whole]
    if shift:
        kinds += [replace(whole, down=a, right=b) for a, b in product((-shift, shift), repeat=2)]
    if pieces < 1:
        places = [(0.5, 0.5), *product((0.0, 1.0), repeat=2)]
        kinds += [v for v in (View(piece=(pieces, a, b)) for a, b in places) if v != whole]
    turns = (False, True) if flip else (False,)
    return [replace(v, mirrored=m, enlarge=float(f)) for f in factors for m in turns for v in kinds]
