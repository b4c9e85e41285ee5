"""Starting a system from an encoder that was trained before."""

from __future__ import annotations

from itertools import chain
from pathlib import Path

import torch

from pyro_vsm import checkpoint
from pyro_vsm.data.images import ClassImages
from pyro_vsm.errors import UserError
from pyro_vsm.feature_cache import raw_features
from pyro_vsm.fewshot import FewShotModel
from pyro_vsm.loading import find_model

BACKBONE = "encoder.backbone."
STATISTICS = ("encoder.mean", "encoder.std")
"""Of the images that the backbone was trained on: it must see others through the same glasses."""


def warm_start(model: FewShotModel, path: Path | str, data: ClassImages, device: torch.device) -> None:
    """Take the backbone of a trained model, fit the feature map, and let the system see all training features.

    The training images are encoded only where the feature map or the system learns something of them.

    Args:
        model: moved to ``device``.
        path: run folder, system folder or ``model.safetensors`` of any system.
        data: training images.
        device: where to compute.

    Raises:
        UserError: no such model, or one with another backbone.
    """
    path = find_model(Path(path))
    tensors, _ = checkpoint.read(path)
    backbone = {k.removeprefix(BACKBONE): v for k, v in tensors.items() if k.startswith(BACKBONE)}
    if not backbone:
        raise UserError(f"training.init: {path} holds no backbone; give a model that pyro-vsm train wrote")
    checkpoint.load_into(model.encoder.backbone, backbone, f"training.init: {path}")
    for name in STATISTICS:
        own = model.encoder.get_buffer(name.removeprefix("encoder."))
        if name in tensors and tensors[name].shape == own.shape:
            own.copy_(tensors[name])
    model.to(device)
    if not model.encoder.feature_map.centre and type(model).start is FewShotModel.start:
        return
    mode = model.training
    model.eval()
    with torch.no_grad():
        encoder = model.encoder
        raw = (raw_features(encoder, data, device, view) for view in encoder.views)
        first = next(raw)
        encoder.feature_map.fit(encoder.feature_map.scaled(first))
        model.start(encoder.features(chain([first], raw)), data.labels.to(device))
    model.train(mode)
