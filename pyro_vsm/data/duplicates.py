"""Images that stand in more than one split: a model would be tested on what it was trained on."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor

from pyro_vsm.data.decode import cores
from pyro_vsm.data.images import ClassImages, Splits

_SHOWN = 3
_CHUNK = 1024  # images a thread takes at once


def across_splits(splits: Splits) -> list[str]:
    """A line on the images whose pixels are the same in two splits; none if there is no such image.

    Args:
        splits: on the CPU. About a second a gigabyte and core.
    """
    first: dict[bytes, tuple[str, int]] = {}  # where an image was seen first
    pairs: list[tuple[tuple[str, int], tuple[str, int]]] = []
    for part, data in splits.parts.items():
        for i, digest in enumerate(_digests(data)):
            seen = first.setdefault(digest, (part, i))
            if seen[0] != part:
                pairs.append((seen, (part, i)))
    if not pairs:
        return []
    shown = "; ".join(f"{_name(splits, *a)} and {_name(splits, *b)}" for a, b in pairs[:_SHOWN])
    more = "" if len(pairs) <= _SHOWN else f", and {len(pairs) - _SHOWN} more"
    return [f"{len(pairs)} image(s) of one split stand in another one, too: {shown}{more}; remove one of each pair"]


def _digests(data: ClassImages) -> list[bytes]:
    images = data.images.contiguous().numpy()

    def work(start: int) -> list[bytes]:
        return [hashlib.blake2b(image.data, digest_size=16).digest() for image in images[start : start + _CHUNK]]

    with ThreadPoolExecutor(cores()) as pool:  # hashlib releases the interpreter lock
        return [digest for part in pool.map(work, range(0, len(images), _CHUNK)) for digest in part]


def _name(splits: Splits, part: str, image: int) -> str:
    data = splits.parts[part]
    c = int(data.labels[image])
    return f"image {image - int(data.offsets[c]) + 1} of class {data.names[c]!r} ({part})"
