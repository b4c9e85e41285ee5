"""Running a few-shot model for evaluation: images to features, features to class probabilities.

The model, its memory and the random generators are left as they were.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from pyro_vsm import parallel
from pyro_vsm.errors import UserError
from pyro_vsm.precision import fast_products

if TYPE_CHECKING:
    from pyro_vsm.data.episodes import EpisodeIndex

BLOCK = 32
"""Episodes answered by one call of `predict`; each block draws its noise from a seed of its own."""

CACHED_PIXELS = 2**16
"""Pixels of the images encoded at a time on a CPU: 64 channels of so many take 16 MiB, and stay in its cache."""


class Evaluable(Protocol):
    """What can be evaluated: every `fewshot.FewShotModel`, and anything else with these two methods.

    T tasks, N ways, K shots, Q' queries a task, D features.
    """

    def encode(self, images: Tensor) -> Tensor:
        """Features `[B, D]` of uint8 images `[B, C, H, W]`."""

    def predict(self, support: Tensor, query: Tensor, samples: int) -> Tensor:
        """Class probabilities `[T, Q', N]`, averaged over `samples` posterior samples.

        Args:
            support: features `[T, N, K, D]`.
            query: features `[T, Q', D]`.
            samples: posterior samples; a deterministic model ignores it.
        """


@contextmanager
def _untouched(model: Evaluable, device: torch.device) -> Iterator[None]:
    """Evaluation mode inside; afterwards every module's mode and the random generators are as before."""
    modes = {m: m.training for m in model.modules()} if isinstance(model, nn.Module) else {}
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices, device_type="cuda"):
        try:
            if isinstance(model, nn.Module):
                model.eval()
            yield
        finally:
            for module, training in modes.items():
                module.training = training


def _seed(seed: int, first_episode: int, device: torch.device) -> None:
    """Seeds the generators of the CPU and of `device`, and no others, for the block that starts there."""
    value = int(np.random.SeedSequence((seed, first_episode)).generate_state(1, np.uint64)[0])
    torch.default_generator.manual_seed(value)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(value)


def batch_size(images: Tensor, device: torch.device) -> int:
    """Images `[I, C, H, W]` to encode at a time: 2048 on CUDA, on the CPU as many as have `CACHED_PIXELS`."""
    pixels = images.shape[-2:].numel()
    return 2048 if device.type == "cuda" else max(1, CACHED_PIXELS // max(1, pixels))


def encode_all(
    model: Evaluable,
    images: Tensor,
    *,
    batch: int | None = None,
    device: torch.device | str | None = None,
    amp: bool = False,
) -> Tensor:
    """Encodes every image once.

    Args:
        model: lies on `device`; its module modes are restored afterwards.
        images: uint8 `[I, C, H, W]`, anywhere.
        batch: images encoded at a time; None for 2048 on CUDA, on the CPU as many as have `CACHED_PIXELS`.
        device: where to compute and to keep the features; None takes the device of the images.
        amp: bfloat16 autocast. Faster on CUDA and on processors with matrix units for bfloat16 (AMX, say), many times
            slower on others.

    Returns:
        Features, float32 `[I, D]` on the device.

    Raises:
        UserError: if there are no images, or the features have another shape or are not finite.
    """
    device = torch.device(device) if device is not None else images.device
    if batch is None:
        batch = batch_size(images, device)
    if images.dtype != torch.uint8 or images.dim() != 4 or len(images) == 0 or batch < 1:
        raise UserError(
            "encoding needs uint8 images [images, channels, height, width] and a batch of at least 1, "
            f"not {images.dtype} {list(images.shape)} and {batch}"
        )
    features = torch.empty(0, device=device)
    mine = parallel.portion(len(images), batch)
    with _untouched(model, device):
        for start in range(mine.start, mine.stop, batch):
            part = images[start : min(start + batch, mine.stop)].to(device, non_blocking=True)
            with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=amp):
                encoded = model.encode(part)
            if encoded.dim() != 2 or len(encoded) != len(part):
                raise UserError(
                    f"{type(model).__name__}.encode must return [images, features], "
                    f"but {len(part)} images became {list(encoded.shape)}"
                )
            if start == mine.start:
                # made outside inference mode, so that a model may later fit a classifier to the features
                features = torch.empty(len(mine), encoded.shape[1], device=device)
            features[start - mine.start : start - mine.start + batch] = encoded
    features = parallel.gather_portions(features, len(images), batch)
    finite = features.isfinite().all(1)
    if not bool(finite.all()):
        raise UserError(
            f"{type(model).__name__}.encode gave NaN or infinity for image {int((~finite).nonzero()[0])}: "
            "check the weights, or switch mixed precision off"
        )
    return features


def _block_size(episodes: EpisodeIndex, queries: int, features: int, samples: int, max_elements: int) -> int:
    """`BLOCK`, halved until the largest tensor of a block has at most `max_elements` elements."""
    n, k = episodes.way, episodes.shot
    largest = max(samples * n * features, samples * queries * n, (n * k + queries) * features)
    block = BLOCK
    while block > 1 and block * largest > max_elements:
        block //= 2
    if block * largest > max_elements:
        raise UserError(
            f"one episode with {samples} samples needs tensors of {largest} elements, more than "
            f"max_elements = {max_elements}: lower samples or raise max_elements"
        )
    return block


def answer(
    model: Evaluable,
    features: Tensor,
    episodes: EpisodeIndex,
    score: Callable[[Tensor], tuple[Tensor, ...]],
    *,
    samples: int,
    seed: int,
    max_elements: int,
    progress: bool = False,
    known: int | None = None,
) -> tuple[list[Tensor], int]:
    """Answers all episodes block by block; nothing synchronises the device before the end.

    Args:
        model: see `Evaluable`.
        features: `[I, D]`.
        episodes: E episodes of indices into the features.
        score: makes of the probabilities `[T, Q', N]` of a block the tensors `[T, ...]` to keep.
        samples: posterior samples.
        seed: of the posterior samples, from 0 on.
        max_elements: see `evaluation.evaluate`.
        progress: show a bar.
        known: support only the first so many classes of each episode; the probabilities are of those.

    Returns:
        What `score` made, joined to `[E, ...]` on the CPU, and the number of episodes in a block.

    Raises:
        UserError: see `evaluation.evaluate`.
    """
    if features.dim() != 2 or not features.is_floating_point():
        raise UserError(f"features must be floating-point [images, features], not {list(features.shape)}")
    if len(episodes) == 0 or samples < 1 or seed < 0:
        raise UserError(
            f"got {len(episodes)} episodes, {samples} samples and seed {seed}: "
            "give at least one episode, one sample and a seed from 0 on"
        )
    low = min(int(episodes.support.min()), int(episodes.query.min()))
    high = max(int(episodes.support.max()), int(episodes.query.max()))
    if low < 0 or high >= len(features):
        raise UserError(
            f"the episodes point at images {low} to {high}, but there are features of {len(features)}: "
            "evaluate on the split that the episodes were drawn from"
        )
    device, name = features.device, type(model).__name__
    index = episodes.to(device)
    queries = index.way * index.queries
    block = _block_size(index, queries, features.shape[1], samples, max_elements)
    parts: list[tuple[Tensor, ...]] = []
    # no_grad, not inference_mode: a model may enable gradients inside, to fit a classifier to the support set
    with torch.no_grad(), fast_products(), _untouched(model, device):
        mine = parallel.portion(len(index), block)
        for start in tqdm(range(mine.start, mine.stop, block), unit="block", leave=False, disable=not progress):
            rows = index[start : min(start + block, mine.stop)]
            _seed(seed, start, device)
            support = features[rows.support[:, :known]]
            probs = model.predict(support, features[rows.query].flatten(1, 2), samples)
            shape = (len(rows), queries, support.shape[1])
            if probs.shape != shape:
                raise UserError(f"{name}.predict must return {list(shape)}, but returned {list(probs.shape)}")
            off = torch.maximum((probs.float().sum(-1) - 1).abs().amax(-1), -probs.float().amin((-1, -2)))
            parts.append((off, *score(probs)))
    whole = (parallel.gather_portions(torch.cat(column).cpu(), len(index), block) for column in zip(*parts))
    off, *joined = whole
    wrong = (~(off <= 0.01)).nonzero()  # NaN is wrong too; 0.01 leaves room for half precision
    if len(wrong):
        episode = int(wrong[0])
        what = "NaN" if bool(off[episode].isnan()) else "values that are no probabilities (logits?)"
        raise UserError(
            f"{name} returned {what} in {len(wrong)} of {len(index)} episodes, first in episode {episode}: "
            "check its weights and that predict returns class probabilities"
        )
    return joined, block
