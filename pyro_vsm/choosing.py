"""Which of the pretrained models suits somebody's pictures: tried on the examples themselves."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pyro_vsm import pretrained
from pyro_vsm.data.images import ClassImages
from pyro_vsm.errors import UserError
from pyro_vsm.loading import load_model

AUTO = "auto"
"""In place of a checkpoint: choose."""

PREFERRED = ("mini-imagenet-resnet12", "mini-imagenet-conv4", "colour-glyphs-conv4", "glyphs-conv4")
"""Kinds of models, the most general first: where the examples do not tell, an earlier one is taken."""

_TRIED = 8  # examples of a class that are tried


def candidates(shots: int) -> list[str]:
    """One VSM of each kind that there is: of the numbers of shots trained for, the nearest to ``shots``."""
    found = []
    for kind in PREFERRED:
        names = {n: n.removeprefix(f"{kind}-vsm-").removesuffix("shot") for n in pretrained.names()}
        fit = {name: int(shot) for name, shot in names.items() if shot.isdigit()}
        if fit:
            found.append(min(fit, key=lambda name: abs(fit[name] - shots)))
    return found


def choose(examples_for: Callable[[int, int], ClassImages], *, device: str = "auto") -> tuple[str, str]:
    """The pretrained model whose features tell the examples apart best, and a sentence that says why.

    Each example is left out in turn (:func:`leave_one_out`) and given to the class with the nearest mean; the model
    with the most right is taken. That is decided by the examples alone; images to be classified play no part.

    Args:
        examples_for: gives the examples for an image size and a number of channels.
        device: where to compute.

    Raises:
        UserError: no pretrained model is there, or the examples cannot be read.
    """
    counts = examples_for(32, 3).counts
    names = candidates(int(counts.float().median()))
    if not names:
        raise UserError("no pretrained model is installed; give --checkpoint, a run of pyro-vsm train")
    if counts.max() < 2 or len(counts) < 2:
        return names[0], f"Model: {names[0]} (a single example a class does not tell which is best)."
    scores: dict[str, float] = {}
    for name in names:
        model, _ = load_model(name, device=device)
        backbone = model.encoder.backbone
        images = examples_for(backbone.image_size, backbone.channels)
        parts = [part[:_TRIED] for part in images.images.split(images.counts.tolist())]
        where = next(model.parameters()).device
        with torch.no_grad():
            features = [model.encode(part.to(where)) for part in parts]
        scores[name] = leave_one_out(features)
    best = max(scores, key=scores.__getitem__)  # of equals the first
    tried = ", ".join(f"{name} {100 * score:.1f} %" for name, score in scores.items())
    return best, f"Model: {best} (examples left out one by one and recognised: {tried})."


def leave_one_out(features: list[Tensor]) -> float:
    """Share of the examples that lie nearest to the mean of the others of their class.

    One example is left out of each of the other classes, too: a mean of fewer lies farther from everything, so that
    in many dimensions the own class would hardly ever be the nearest.

    Args:
        features: ``[K_n, D]`` of each class; classes with one example are not asked, but may be taken for others.

    Returns:
        In [0, 1].
    """
    others = [(f.sum(0) - f) / (len(f) - 1) if len(f) > 1 else f for f in features]
    right, asked = 0, 0
    for n, own in enumerate(features):
        if len(own) < 2:
            continue
        for i, example in enumerate(own):
            means = torch.stack([o[i % len(o)] for o in others])
            right += int((means - example).norm(dim=-1).argmin()) == n
        asked += len(own)
    return right / max(asked, 1)
