"""Images in the shape that a model was trained on."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from pyro_vsm.data.decode import fit_array
from pyro_vsm.data.images import ClassImages
from pyro_vsm.errors import UserError


def matched(data: ClassImages, channels: int, size: int) -> ClassImages:
    """The same classes and images with other channels and another size; `data` itself if nothing differs.

    Grey becomes colour by repetition, colour becomes grey by luma (0.299 R + 0.587 G + 0.114 B, as Pillow has it),
    and another size is made as from files: shorter side scaled, centre cut out.

    Args:
        data: grey or colour.
        channels: 3 for colour, 1 for grey.
        size: height and width.

    Raises:
        UserError: if the images have neither one nor three channels.
    """
    if data.image_shape == (channels, size, size):
        return data
    if data.image_shape[0] not in (1, 3) or channels not in (1, 3):
        raise UserError(
            f"images of {data.image_shape[0]} channels cannot be given {channels}: only 1 and 3 are known"
        )
    images = data.images
    if channels == 1 and data.image_shape[0] == 3:
        images = torch.cat([_luma(chunk) for chunk in images.split(1024)])
    if data.image_shape[1:] != (size, size):
        images = _resized(images, size)
    if channels == 3:
        images = images.expand(-1, 3, -1, -1).contiguous()
    return ClassImages(images, data.counts, data.names, data.groups)


def _luma(images: Tensor) -> Tensor:
    weights = torch.tensor([19595, 38470, 7471], device=images.device)  # of 65536
    total = (images.long() * weights[:, None, None]).sum(1, keepdim=True) + 0x8000
    return (total >> 16).to(torch.uint8)


def _resized(images: Tensor, size: int) -> Tensor:
    out = np.empty((len(images), images.shape[1], size, size), dtype=np.uint8)
    for row, image in zip(out, images.cpu().numpy()):
        pixels = np.ascontiguousarray(image.transpose(1, 2, 0) if len(image) == 3 else image[0])
        fitted = fit_array(pixels, size)
        row[:] = fitted.transpose(2, 0, 1) if len(image) == 3 else fitted
    return torch.from_numpy(out).to(images.device)
