"""The one form in which every data set reaches the rest: uint8 images in memory, sorted by class."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from pyro_vsm.errors import UserError

_CHUNK = 256  # images per step when statistics are computed


@dataclass(frozen=True)
class Identity:
    """What a set of class images is, wherever its files lie: equal identities mean the same names and pixels.

    Attributes:
        classes: number of classes.
        images: number of images.
        size: channels, height and width of an image.
        sha256: hash over class names, counts and pixels, in class order.
    """

    classes: int
    images: int
    size: tuple[int, int, int]
    sha256: str

    def __str__(self) -> str:
        size = "x".join(str(n) for n in self.size)
        return f"{self.classes} classes, {self.images} images of {size}, sha256 {self.sha256[:12]}"

    def to_dict(self) -> dict[str, Any]:
        """The four attributes as plain values, ready for JSON."""
        return {**asdict(self), "size": list(self.size)}


@dataclass(frozen=True, eq=False)
class ClassImages:
    """Images of one split, sorted by class.

    Attributes:
        images: uint8 `[I, C, H, W]`; the images of class 0 first, then those of class 1, and so on.
        counts: int64 `[classes]`, images of each class, at least one.
        names: one distinct name a class.
        groups: number of the group of each class, if all classes of an episode are to come from one group. Not part
            of the identity.

    Raises:
        UserError: if types, shapes, counts or names do not fit together.
    """

    images: Tensor
    counts: Tensor
    names: tuple[str, ...]
    groups: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        images, counts = self.images, self.counts
        if images.dtype != torch.uint8 or images.dim() != 4:
            raise UserError(
                f"class images must be a uint8 tensor [images, channels, height, width], "
                f"but got {images.dtype} of shape {list(images.shape)}: convert them first"
            )
        if counts.dtype != torch.int64 or counts.dim() != 1:
            raise UserError(
                f"class counts must be an int64 tensor [classes], "
                f"but got {counts.dtype} of shape {list(counts.shape)}: convert them first"
            )
        if images.device != counts.device:
            raise UserError(f"images lie on {images.device} but counts on {counts.device}: move both to one device")
        if len(counts) != len(self.names) or not self.names:
            raise UserError(
                f"{len(counts)} class counts were given for {len(self.names)} class names: "
                "give one of each for every class, and at least one class"
            )
        values = counts.tolist()
        if min(values) < 1:
            empty = self.names[values.index(min(values))]
            raise UserError(f"class {empty!r} holds {min(values)} images: leave it out or give it at least one image")
        if sum(values) != len(images):
            raise UserError(f"the class counts add up to {sum(values)}, but there are {len(images)} images")
        if len(set(self.names)) != len(self.names):
            twice = next(name for i, name in enumerate(self.names) if name in self.names[:i])
            raise UserError(f"class name {twice!r} is given twice: give every class a name of its own")
        if self.groups is not None and len(self.groups) != len(self.names):
            raise UserError(f"{len(self.groups)} groups were given for {len(self.names)} classes: give one for each")

    @property
    def n_classes(self) -> int:
        """Number of classes."""
        return len(self.names)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    @cached_property
    def offsets(self) -> Tensor:
        """First image of each class, int64 `[classes]`."""
        return self.counts.cumsum(0) - self.counts

    @cached_property
    def labels(self) -> Tensor:
        """Class index of each image, int64 `[I]`."""
        classes = torch.arange(self.n_classes, device=self.counts.device)
        return classes.repeat_interleave(self.counts, output_size=len(self.images))

    def to(self, device: torch.device | str) -> ClassImages:
        """The same images on `device`; itself if they lie there already."""
        images, counts = self.images.to(device), self.counts.to(device)
        if images is self.images and counts is self.counts:
            return self
        moved = ClassImages(images, counts, self.names, self.groups)
        if "_identity" in self.__dict__:  # a copy holds the same pixels
            moved.__dict__["_identity"] = self._identity
        return moved

    def subset(self, classes: Sequence[int]) -> ClassImages:
        """The given classes (indices from 0), in the given order.

        Raises:
            UserError: if there is no such class, or one is named twice, or none is given.
        """
        wrong = [c for c in classes if not 0 <= c < self.n_classes]
        if wrong:
            raise UserError(f"there is no class {wrong[0]}: give indices from 0 to {self.n_classes - 1}")
        if not classes:
            raise UserError("a subset needs at least one class index, but none was given")
        starts, counts = self.offsets.tolist(), self.counts.tolist()
        images = torch.cat([self.images[starts[c] : starts[c] + counts[c]] for c in classes])
        return ClassImages(
            images,
            self.counts[torch.tensor(classes, device=self.counts.device)],
            tuple(self.names[c] for c in classes),
            self.groups and tuple(self.groups[c] for c in classes),
        )

    def by_group(self) -> ClassImages:
        """The same images, with classes of one group where their names agree up to the last "/".

        Raises:
            UserError: if every class is a group of its own.
        """
        heads = [name.rpartition("/")[0] for name in self.names]
        numbers = {head: i for i, head in enumerate(dict.fromkeys(heads))}
        if not any(numbers):
            raise UserError("class names hold no '/', so there are no groups of classes: set grouped to false")
        grouped = ClassImages(self.images, self.counts, self.names, tuple(numbers[head] for head in heads))
        if "_identity" in self.__dict__:
            grouped.__dict__["_identity"] = self._identity
        return grouped

    def identity(self) -> Identity:
        """Content hash and sizes; computed once."""
        return self._identity

    @cached_property
    def _identity(self) -> Identity:
        images = self.images.cpu().contiguous().numpy()
        starts, counts = self.offsets.tolist(), self.counts.tolist()

        def digest(c: int) -> bytes:
            return hashlib.sha256(images[starts[c] : starts[c] + counts[c]].data).digest()

        with ThreadPoolExecutor() as pool:  # hashlib releases the interpreter lock
            digests = list(pool.map(digest, range(self.n_classes)))
        return identity_of(self.names, counts, self.image_shape, digests)


def identity_of(
    names: Sequence[str], counts: Sequence[int], image_shape: tuple[int, int, int], digests: Sequence[bytes]
) -> Identity:
    """The identity of images of which only hashes are at hand.

    Args:
        names: of the classes.
        counts: images of each class.
        image_shape: channels, height and width.
        digests: SHA-256 of each class's pixels.
    """
    total = hashlib.sha256(repr(image_shape).encode())
    for name, count, pixels in zip(names, counts, digests):
        encoded = name.encode("utf-8", "surrogateescape")
        total.update(f"{len(encoded)}:".encode() + encoded + f":{count}:".encode() + pixels)
    return Identity(len(names), sum(counts), image_shape, total.hexdigest())


@dataclass(frozen=True, eq=False)
class Splits:
    """A data set: training, validation and test classes that share no class.

    Raises:
        UserError: if a class name stands in two splits or the image shapes differ.
    """

    name: str
    train: ClassImages
    validation: ClassImages
    test: ClassImages

    def __post_init__(self) -> None:
        parts = list(self.parts.items())
        for i, (first, a) in enumerate(parts):
            for second, b in parts[i + 1 :]:
                shared = sorted(set(a.names) & set(b.names))
                if shared:
                    shown = ", ".join(repr(name) for name in shared[:3]) + (", ..." if len(shared) > 3 else "")
                    raise UserError(
                        f"{self.name}: {len(shared)} class(es) stand in both {first} and {second} ({shown}): "
                        "few-shot evaluation needs classes never seen before, so keep each class in one split"
                    )
                if a.image_shape != b.image_shape:
                    raise UserError(
                        f"{self.name}: images are {a.image_shape} in {first} but {b.image_shape} in "
                        f"{second}: load all splits with one image size"
                    )

    @property
    def parts(self) -> dict[str, ClassImages]:
        """The three splits by name."""
        return {"train": self.train, "validation": self.validation, "test": self.test}

    @property
    def identity(self) -> dict[str, Identity]:
        """Identity of each split."""
        return {split: data.identity() for split, data in self.parts.items()}

    def by_group(self) -> Splits:
        """The same data set, whose episodes draw all their classes from one group; see `ClassImages.by_group`."""
        return Splits(self.name, self.train.by_group(), self.validation.by_group(), self.test.by_group())

    def together(self) -> ClassImages:
        """The classes of all three splits, for a model that was trained on another data set."""
        parts = list(self.parts.values())
        groups: tuple[int, ...] | None = None
        if all(part.groups is not None for part in parts):
            groups, first = (), 0
            for part in parts:
                groups += tuple(first + g for g in part.groups or ())
                first = 1 + max(groups)
        return ClassImages(
            torch.cat([part.images for part in parts]),
            torch.cat([part.counts for part in parts]),
            tuple(name for part in parts for name in part.names),
            groups,
        )

    def describe(self) -> str:
        """Name and one line a split, for a log."""
        lines = [f"data {self.name}"]
        for split, data in self.parts.items():
            counts = data.counts.tolist()
            each = f"{min(counts)}" if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"
            lines.append(f"  {split:<10} {data.identity()} ({each} images a class)")
        return "\n".join(lines)

    def statistics(self) -> tuple[list[float], list[float]]:
        """Mean and standard deviation of each channel of the training images, in [0, 1].

        The standard deviation is at least 1/255, so that dividing by it is safe.
        """
        mean, std = self._statistics
        return list(mean), list(std)

    @cached_property
    def _statistics(self) -> tuple[list[float], list[float]]:
        images = self.train.images
        channels, height, width = self.train.image_shape
        total = torch.zeros(channels, dtype=torch.float64, device=images.device)
        squares = torch.zeros_like(total)
        for chunk in images.split(_CHUNK):
            values = chunk.float()
            total += values.sum((2, 3)).double().sum(0)
            squares += values.square_().sum((2, 3)).double().sum(0)
        pixels = len(images) * height * width
        mean = total / pixels
        std = (squares / pixels - mean.square()).clamp_min(0).sqrt().clamp_min(1.0)
        return (mean / 255).tolist(), (std / 255).tolist()
