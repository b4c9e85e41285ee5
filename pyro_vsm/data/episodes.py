"""Episodes: which classes and which images make up a few-shot task.

Two ways to draw them. `fixed_episodes` draws the list that every model is evaluated on, the same on every
machine. `EpisodeSampler` draws fresh ones for training, on the device that holds the images.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyro_vsm.data.images import ClassImages
from pyro_vsm.errors import UserError

_CHUNK = 1000  # episodes drawn at once by fixed_episodes


@dataclass(frozen=True, eq=False)
class EpisodeIndex:
    """E episodes of N ways, K shots and Q queries a class, as indices into `ClassImages`.

    Attributes:
        classes: int64 `[E, N]`, class indices, distinct within an episode.
        support: int64 `[E, N, K]`, image indices.
        query: int64 `[E, N, Q]`, image indices, none of them in `support`.
    """

    classes: Tensor
    support: Tensor
    query: Tensor

    def __post_init__(self) -> None:
        shapes = [tuple(t.shape) for t in (self.classes, self.support, self.query)]
        if [len(s) for s in shapes] != [2, 3, 3] or not shapes[0] == shapes[1][:2] == shapes[2][:2]:
            raise UserError(f"episodes must be shaped [E, N], [E, N, K], [E, N, Q], but got {shapes}")

    def __len__(self) -> int:
        return self.classes.shape[0]

    def __getitem__(self, episodes: slice) -> EpisodeIndex:
        """A slice of the episodes."""
        return EpisodeIndex(self.classes[episodes], self.support[episodes], self.query[episodes])

    @property
    def way(self) -> int:
        """Classes in an episode, N."""
        return self.classes.shape[1]

    @property
    def shot(self) -> int:
        """Support images of a class, K."""
        return self.support.shape[2]

    @property
    def queries(self) -> int:
        """Query images of a class, Q."""
        return self.query.shape[2]

    def to(self, device: torch.device | str) -> EpisodeIndex:
        """The same episodes on `device`."""
        return EpisodeIndex(self.classes.to(device), self.support.to(device), self.query.to(device))


def _eligible(data: ClassImages, way: int, shot: int, queries: int) -> list[int]:
    """Classes with at least `shot + queries` images, or a UserError if fewer than `way` have that many."""
    for what, value in (("way", way), ("shot", shot), ("queries", queries)):
        if value < 1:
            raise UserError(f"{what} is {value}: it must be at least 1")
    if data.n_classes < way:
        raise UserError(f"{way}-way episodes need {way} classes, but the split has {data.n_classes}: lower way")
    need = shot + queries
    counts = data.counts.tolist()
    fit = [c for c, count in enumerate(counts) if count >= need]
    if len(fit) < way:
        c = min(range(len(counts)), key=counts.__getitem__)
        raise UserError(
            f"{shot} shot(s) and {queries} queries need {need} images a class, but class {data.names[c]!r} "
            f"has {counts[c]} and only {len(fit)} of {len(counts)} classes have enough for {way} ways: "
            "lower shot or queries, or add images"
        )
    return fit


def _pools(data: ClassImages, fit: list[int], way: int) -> list[list[int]]:
    """The classes that an episode may draw from: all of `fit`, or those of one group that is large enough."""
    if data.groups is None:
        return [fit]
    pools: dict[int, list[int]] = {}
    for c in fit:
        pools.setdefault(data.groups[c], []).append(c)
    large = [pool for pool in pools.values() if len(pool) >= way]
    if not large:
        raise UserError(
            f"{way}-way episodes need a group of {way} classes with enough images, but the largest of {len(pools)} "
            f"groups has {max(map(len, pools.values()))}: lower way, or set grouped to false"
        )
    return large


class _Stream:
    """Uniform integers from PCG64's raw stream, which NumPy keeps the same across versions and machines."""

    def __init__(self, seed: int) -> None:
        self.bits = np.random.PCG64(seed)

    def raw(self, *shape: int) -> NDArray[np.uint64]:
        """Random 64-bit keys."""
        return self.bits.random_raw(int(np.prod(shape))).reshape(shape)

    def below(self, bound: NDArray[np.int64]) -> NDArray[np.int64]:
        """Integers uniform in [0, bound), one for each entry of `bound` (bias below bound / 2^53)."""
        unit = (self.raw(*bound.shape) >> np.uint64(11)).astype(np.float64) * 2.0**-53
        return (unit * bound).astype(np.int64)

    def distinct(self, n: NDArray[np.int64], k: int) -> NDArray[np.int64]:
        """For each row, `k` distinct integers in [0, n) in random order: `[rows]` -> `[rows, k]`.

        Floyd's algorithm (Bentley & Floyd, "A sample of brilliance", 1987), all rows at once: the cost does
        not depend on n, and rows may have different n.
        """
        chosen = np.empty((len(n), k), dtype=np.int64)
        for i in range(k):
            last = n - k + i
            draw = self.below(last + 1)
            taken = (chosen[:, :i] == draw[:, None]).any(1)
            chosen[:, i] = np.where(taken, last, draw)
        order = np.argsort(self.raw(len(n), k), axis=1, kind="stable")
        return np.take_along_axis(chosen, order, axis=1)


def fixed_episodes(data: ClassImages, *, way: int, shot: int, queries: int, episodes: int, seed: int) -> EpisodeIndex:
    """Draws the episodes of an evaluation: the same list for every model, on every machine.

    It depends on the class counts, the groups and the arguments only, not on pixels, devices, threads or
    versions. The first n of a longer list are the list of n.
    Classes with fewer than `shot + queries` images are left out as long as `way` classes remain. Where the classes
    have groups, each episode draws its classes from one group of `way` or more, all groups alike.

    Args:
        data: the split to draw from.
        way: classes in an episode, N.
        shot: support images of a class, K.
        queries: query images of a class, Q.
        episodes: how many, E.
        seed: a non-negative integer.

    Returns:
        E episodes on the CPU.

    Raises:
        UserError: if too few classes, or too few classes with enough images, are there.
    """
    if episodes < 1 or seed < 0:
        raise UserError(f"got {episodes} episodes and seed {seed}: give at least one episode and a seed from 0 on")
    pools = _pools(data, _eligible(data, way, shot, queries), way)
    sizes = np.array([len(pool) for pool in pools], dtype=np.int64)
    table = np.zeros((len(pools), sizes.max()), dtype=np.int64)
    for row, pool in zip(table, pools):
        row[: len(pool)] = pool
    counts = data.counts.cpu().numpy()
    offsets = data.offsets.cpu().numpy()
    stream = _Stream(seed)
    classes = np.empty((episodes, way), dtype=np.int64)
    images = np.empty((episodes, way, shot + queries), dtype=np.int64)
    for start in range(0, episodes, _CHUNK):
        # a whole chunk even where less is kept: fewer episodes are then the first of more
        group = np.zeros(_CHUNK, dtype=np.int64)
        if len(pools) > 1:
            group = stream.below(np.full(_CHUNK, len(pools)))
        c = table[group[:, None], stream.distinct(sizes[group], way)]
        within = stream.distinct(counts[c].reshape(-1), shot + queries).reshape(_CHUNK, way, -1)
        kept = min(_CHUNK, episodes - start)
        classes[start : start + kept] = c[:kept]
        images[start : start + kept] = (within + offsets[c][..., None])[:kept]
    drawn = torch.from_numpy(images)
    return EpisodeIndex(torch.from_numpy(classes), drawn[..., :shot].contiguous(), drawn[..., shot:].contiguous())


class EpisodeSampler:
    """Draws training episodes on the device of the images, without synchronising it.

    Every operation has a fixed shape, so a call can be captured in a CUDA graph. Classes with fewer than
    `shot + queries` images are left out as long as `way` classes remain. Groups as in `fixed_episodes`.

    Args:
        data: the split to draw from, already on its device.
        way: classes in an episode, N.
        shot: support images of a class, K.
        queries: query images of a class, Q.
        generator: source of randomness on that device; None takes the device's default generator.

    Raises:
        UserError: if too few classes, or too few classes with enough images, are there.
    """

    def __init__(
        self,
        data: ClassImages,
        *,
        way: int,
        shot: int,
        queries: int,
        generator: torch.Generator | None = None,
    ) -> None:
        self.way, self.shot, self.queries = way, shot, queries
        self.generator = generator
        self.device = data.images.device
        pools = _pools(data, _eligible(data, way, shot, queries), way)
        fit = torch.tensor([c for pool in pools for c in pool], device=self.device)
        counts = data.counts[fit]
        self._classes = fit
        self._offsets = data.offsets[fit]
        self._most = int(counts.max())
        # positions beyond a class's last image, [fitting classes, most]; None when all classes are equal
        beyond = torch.arange(self._most, device=self.device) >= counts[:, None]
        self._beyond = beyond if bool(beyond.any()) else None
        sizes = torch.tensor([len(pool) for pool in pools], device=self.device)
        # classes outside each group, [groups, fitting classes]; None without groups
        pool_of = torch.arange(len(pools), device=self.device).repeat_interleave(sizes, output_size=len(fit))
        self._outside = torch.arange(len(pools), device=self.device)[:, None] != pool_of if len(pools) > 1 else None

    def sample(self, tasks: int) -> EpisodeIndex:
        """Draws `tasks` episodes: `[tasks, N]`, `[tasks, N, K]` and `[tasks, N, Q]` on the device."""
        class_keys = self._rand(tasks, len(self._classes))
        if self._outside is not None:
            groups = len(self._outside)
            group = (self._rand(tasks) * groups).long().clamp_max(groups - 1)
            class_keys = class_keys.masked_fill(self._outside[group], -1.0)
        drawn = class_keys.topk(self.way).indices
        keys = self._rand(tasks, self.way, self._most)
        if self._beyond is not None:
            keys = keys.masked_fill(self._beyond[drawn], -1.0)
        images = keys.topk(self.shot + self.queries).indices + self._offsets[drawn].unsqueeze(-1)
        return EpisodeIndex(self._classes[drawn], images[..., : self.shot], images[..., self.shot :])

    def _rand(self, *shape: int) -> Tensor:
        return torch.rand(shape, device=self.device, generator=self.generator)


def gather(data: ClassImages, index: EpisodeIndex) -> tuple[Tensor, Tensor]:
    """Fetches the images of episodes.

    Args:
        data: the split that `index` points into.
        index: T episodes; moved to the device of the images if it lies elsewhere.

    Returns:
        Support images uint8 `[T, N, K, C, H, W]` and query images uint8 `[T, N, Q, C, H, W]`.
    """

    def take(positions: Tensor) -> Tensor:
        flat = data.images.index_select(0, positions.to(data.images.device).reshape(-1))
        return flat.view(*positions.shape, *data.image_shape)

    return take(index.support), take(index.query)
