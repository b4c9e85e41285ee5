"""Data sets too large for memory: decoded images go straight into the file that later starts map.

The file is the same as `cache.cached_splits` writes. Where it cannot be written the images stay in memory.
"""

from __future__ import annotations

import errno
import json
import logging
import math
import os
import shutil
import struct
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray

from pyro_vsm.data.cache import cache_path, read_splits, stored_identity
from pyro_vsm.data.images import ClassImages, Splits
from pyro_vsm.errors import UserError

log = logging.getLogger("pyro_vsm.data")


@dataclass(frozen=True)
class Layout:
    """What one split will hold.

    Attributes:
        names: of the classes.
        counts: images of each class, at least one.
    """

    names: tuple[str, ...]
    counts: tuple[int, ...]


class Store(ABC):
    """Where the images of all splits go."""

    @abstractmethod
    def put(self, part: str, positions: NDArray[np.int64], images: NDArray[np.uint8]) -> None:
        """Keeps images `[n, C, H, W]` of split `part` at their positions `[n]` in the order by class."""


Fill = Callable[[Store], list[str]]
"""Puts every image of every split, and returns lines worth a warning."""


def streamed_splits(
    name: str,
    key: dict[str, Any],
    image_shape: tuple[int, int, int],
    layouts: Mapping[str, Layout],
    fill: Fill,
    *,
    use: bool = True,
) -> Splits:
    """Reads splits from the cache, or has them written there image by image; logs what there is to note.

    Args:
        name: of the data set, and start of the file's name.
        key: everything the result depends on, as JSON values.
        image_shape: channels, height and width.
        layouts: of train, validation and test.
        fill: makes the images; may be called a second time if the first could not be written.
        use: False keeps everything in memory.

    Returns:
        The splits, memory-mapped unless they had to stay in memory.
    """
    path, text = cache_path(name, key)
    found = read_splits(path, text) if use else None
    if use and found is None:
        try:
            _write(path, text, name, image_shape, layouts, fill)
            found = read_splits(path, text)
        except OSError as error:
            size = math.prod(image_shape) * sum(sum(each.counts) for each in layouts.values()) / 1e9
            reason = error.strerror or error
            log.warning(
                "%s: the cache cannot be written (%s), so all images stay in memory (%.1f GB)", name, reason, size
            )
    if found is None:
        found = _in_memory(name, image_shape, layouts, fill)
    splits, notes = found
    for note in notes:
        log.warning("%s: %s", name, note)
    return splits


class _Memory(Store):
    def __init__(self, image_shape: tuple[int, int, int], layouts: Mapping[str, Layout]) -> None:
        self.images = {p: np.zeros((sum(each.counts), *image_shape), np.uint8) for p, each in layouts.items()}

    def put(self, part: str, positions: NDArray[np.int64], images: NDArray[np.uint8]) -> None:
        self.images[part][positions] = images


def _in_memory(
    name: str, image_shape: tuple[int, int, int], layouts: Mapping[str, Layout], fill: Fill
) -> tuple[Splits, list[str]]:
    store = _Memory(image_shape, layouts)
    notes = fill(store)
    parts = {p: _class_images(torch.from_numpy(store.images[p]), each) for p, each in layouts.items()}
    return Splits(name, parts["train"], parts["validation"], parts["test"]), notes


def _class_images(images: torch.Tensor, layout: Layout) -> ClassImages:
    return ClassImages(images, torch.tensor(layout.counts, dtype=torch.int64), layout.names)


class _File(Store):
    """Writes into the regions of the splits; not mapped, so that what is written is no memory of this process."""

    def __init__(self, file: BinaryIO, starts: Mapping[str, int], image_shape: tuple[int, int, int]) -> None:
        self._file, self._starts, self._size = file, starts, math.prod(image_shape)

    def put(self, part: str, positions: NDArray[np.int64], images: NDArray[np.uint8]) -> None:
        images = np.ascontiguousarray(images)
        cuts = np.flatnonzero(np.diff(positions) != 1) + 1
        for run in np.split(np.arange(len(positions)), cuts):
            self._file.seek(self._starts[part] + self._size * int(positions[run[0]]))
            self._file.write(images[run[0] : run[-1] + 1].data)


def _write(
    path: Path,
    text: str,
    name: str,
    image_shape: tuple[int, int, int],
    layouts: Mapping[str, Layout],
    fill: Fill,
) -> None:
    """The whole file or none: under another name until it is complete and its hashes are in it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.stem, suffix=".tmp")
    try:
        with os.fdopen(handle, "r+b") as file:
            notes: list[str] = []
            meta = {"key": text, "name": name, "notes": json.dumps(notes)}
            for part, layout in layouts.items():
                meta |= {f"{part}.names": json.dumps(layout.names), f"{part}.sha256": "0" * 64}
            # room for the notes, which are known at the end
            room = len(_header(meta, image_shape, layouts)[0]) + (1 << 16)
            header, starts = _header(meta, image_shape, layouts, room)
            size = max(starts[f"{p}.images"] + math.prod(image_shape) * sum(layouts[p].counts) for p in layouts)
            free = shutil.disk_usage(path.parent).free
            if free < size:  # said now, not after minutes of decoding
                raise OSError(
                    errno.ENOSPC, f"{path.parent} has {free / 1e9:.1f} GB free, {size / 1e9:.1f} are needed"
                )
            file.write(header)
            for part, layout in layouts.items():
                file.seek(starts[f"{part}.counts"])
                file.write(np.array(layout.counts, dtype="<i8").tobytes())
            file.truncate(size)
            notes = fill(_File(file, {p: starts[f"{p}.images"] for p in layouts}, image_shape))
            file.flush()
            os.fsync(file.fileno())
            for part, layout in layouts.items():
                # an empty tensor expanded: only its shape is looked at
                shape = torch.empty(1, dtype=torch.uint8).expand(sum(layout.counts), *image_shape)
                meta[f"{part}.sha256"] = stored_identity(Path(temporary), part, _class_images(shape, layout)).sha256
            meta["notes"] = json.dumps(notes[:50])
            file.seek(0)
            file.write(_header(meta, image_shape, layouts, room)[0])
        os.replace(temporary, path)
    finally:
        if os.path.exists(temporary):
            os.unlink(temporary)


def _header(
    meta: dict[str, str], image_shape: tuple[int, int, int], layouts: Mapping[str, Layout], room: int = 0
) -> tuple[bytes, dict[str, int]]:
    """The head of a safetensors file, filled with spaces to `room` bytes, and where each tensor starts."""
    entries: dict[str, Any] = {"__metadata__": meta}
    place, offsets = 0, {}
    sizes = {f"{p}.counts": ("I64", [len(each.counts)], 8 * len(each.counts)) for p, each in layouts.items()}
    for part, each in layouts.items():  # after the counts, which must be aligned
        shape = [sum(each.counts), *image_shape]
        sizes[f"{part}.images"] = ("U8", shape, math.prod(shape))
    for tensor, (dtype, shape, size) in sizes.items():
        entries[tensor] = {"dtype": dtype, "shape": shape, "data_offsets": [place, place + size]}
        offsets[tensor] = place
        place += size
    content = json.dumps(entries).encode()
    length = max(len(content), room - 8)
    length += -length % 8
    if room and length > room + 8:
        raise UserError("the notes on a data set are too long for its cache: set data.cache to false")
    return struct.pack("<Q", length) + content.ljust(length), {t: 8 + length + start for t, start in offsets.items()}
