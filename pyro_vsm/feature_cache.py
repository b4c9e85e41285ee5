"""Features of whole splits; what a frozen backbone gives is kept between runs.

Where the encoder is frozen (``training.freeze``), every system, seed and evaluation asks for the same backbone
outputs: they are computed once, in true float32, and kept in the cache folder under a hash of the backbone's weights
and of the pixels. As with decoded images, the cache is a convenience: a damaged file, or a folder that cannot be
written, costs time.
"""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from pyro_vsm import checkpoint, parallel
from pyro_vsm.answering import batch_size, encode_all
from pyro_vsm.data.cache import cache_folder
from pyro_vsm.data.images import ClassImages
from pyro_vsm.encoder import Encoder
from pyro_vsm.errors import UserError
from pyro_vsm.views import PLAIN, View

log = logging.getLogger("pyro_vsm.features")


def split_features(model: Any, data: ClassImages, **settings: Any) -> Tensor:
    """Features ``[I, D]`` of all images of a split, from the cache where the model's encoder is ``cached``.

    Args:
        model: :class:`~pyro_vsm.answering.Evaluable`; few-shot models have an ``encoder``.
        data: the split; its identity names the images.
        settings: of :func:`~pyro_vsm.answering.encode_all`.

    Raises:
        UserError: see :func:`~pyro_vsm.answering.encode_all`.
    """
    encoder = getattr(model, "encoder", None)
    if not isinstance(encoder, Encoder) or not encoder.cached:
        return encode_all(model, data.images, **settings)
    device = torch.device(settings.get("device") or data.images.device)
    mode = encoder.training
    encoder.eval()
    with torch.no_grad():
        features = encoder.features(raw_features(encoder, data, device, view) for view in encoder.views)
    encoder.train(mode)
    return features


@torch.no_grad()
def raw_features(encoder: Encoder, data: ClassImages, device: torch.device, view: View = PLAIN) -> Tensor:
    """Backbone outputs ``[I, D]`` of all images in true float32, from the cache where the encoder is ``cached``.

    Args:
        encoder: on ``device``; its backbone is run in evaluation mode.
        data: the images.
        device: where to compute.
        view: of them.

    Raises:
        UserError: images of another shape than the backbone was made for.
    """
    path = cache_folder() / "features" / f"{_key(encoder, data, view)}.safetensors" if encoder.cached else None
    if path is not None and path.is_file():
        try:
            return checkpoint.read(path)[0]["features"].to(device, copy=True)  # not mapped: the file may change
        except (UserError, KeyError) as error:
            log.warning("%s; computing the features anew", error)
    size = batch_size(data.images, device)
    parts = []
    amp, mode = encoder.amp, encoder.training
    encoder.amp = False
    encoder.eval()
    starts = range(0, len(data.images), size)
    try:
        with torch.backends.cudnn.flags(allow_tf32=False, enabled=torch.backends.cudnn.enabled):
            for start in tqdm(starts, desc="features", unit="batch", dynamic_ncols=True, leave=False):
                images = data.images[start : start + size].to(device)
                parts.append(encoder.raw(images, view))
    finally:
        encoder.amp = amp
        encoder.train(mode)
    result = torch.cat(parts)
    if path is not None and parallel.is_main():
        _keep(path, result)
    return result


def _key(encoder: Encoder, data: ClassImages, view: View) -> str:
    """Hash of everything that the outputs depend on: layers, weights, normalisation and pixels."""
    total = hashlib.sha256(
        f"{encoder.backbone} {view.enlarge} {view}{view.piece or ''} {data.identity().sha256}".encode()
    )
    for name, value in sorted({**encoder.backbone.state_dict(), "mean": encoder.mean, "std": encoder.std}.items()):
        total.update(
            name.encode() + value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        )
    return total.hexdigest()[:32]


def _keep(path: Path, features: Tensor) -> None:
    try:
        checkpoint.write(path, {"features": features}, {})
    except (UserError, OSError) as error:
        log.warning("features are not kept for the next run: %s", error)
