"""Decoded data sets kept between runs: one safetensors file each, in the user's cache folder.

The cache is a convenience, never a condition: a folder that cannot be written, a full disk or a broken file
costs time, not the run. Content is verified by its identity hash, so a damaged file is noticed and rebuilt.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import struct
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from pyro_vsm.data.decode import cores
from pyro_vsm.data.duplicates import across_splits
from pyro_vsm.data.images import ClassImages, Identity, Splits, identity_of
from pyro_vsm.errors import UserError

log = logging.getLogger("pyro_vsm.data")

_PARTS = ("train", "validation", "test")
_ABANDONED = 24 * 3600  # seconds after which an unfinished file is taken for a dead process's


def cache_folder() -> Path:
    """Where caches lie: `$PYRO_VSM_CACHE`, else `pyro_vsm` in the platform's user cache folder."""
    chosen = os.environ.get("PYRO_VSM_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or "~/AppData/Local"
    elif sys.platform == "darwin":
        base = "~/Library/Caches"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "pyro_vsm"


def cached_splits(
    prefix: str, key: dict[str, Any], build: Callable[[], tuple[Splits, list[str]]], *, use: bool = True
) -> Splits:
    """Reads splits from the cache, or builds and stores them; logs what there is to note about them.

    Args:
        prefix: start of the file's name, for people who look into the folder.
        key: everything the result depends on, as JSON values; any change asks for another file.
        build: makes the splits, and lines worth a warning (a file skipped, say), logged at every start.
        use: False builds without reading or writing a cache.

    Returns:
        The splits; from the cache they are memory-mapped.
    """
    path, text = cache_path(prefix, key)
    found = read_splits(path, text) if use else None
    if found is None:
        splits, notes = build()
        notes = [*notes, *across_splits(splits)]
        if use:
            _write(path, text, splits, notes)
    else:
        splits, notes = found
    for note in notes:
        log.warning("%s: %s", splits.name, note)
    return splits


def cache_path(prefix: str, key: dict[str, Any]) -> tuple[Path, str]:
    """The file for what depends on `key`, and the text by which it is known inside the file."""
    text = json.dumps(key, sort_keys=True)
    return cache_folder() / f"{prefix}-{hashlib.sha256(text.encode()).hexdigest()[:20]}.safetensors", text


def read_splits(path: Path, key: str) -> tuple[Splits, list[str]] | None:
    """The splits and notes stored at `path`, or None if they are missing, broken or not those of `key`."""
    try:
        with safe_open(path, framework="pt") as stored:
            meta = stored.metadata() or {}
            if meta.get("key") != key:
                return None
            parts = {}
            for part in _PARTS:
                images, counts = stored.get_tensor(f"{part}.images"), stored.get_tensor(f"{part}.counts")
                parts[part] = ClassImages(images, counts, tuple(json.loads(meta[f"{part}.names"])))
                identity = stored_identity(path, part, parts[part])
                if identity.sha256 != meta[f"{part}.sha256"]:
                    return None
                parts[part].__dict__["_identity"] = identity
            splits = Splits(meta["name"], parts["train"], parts["validation"], parts["test"])
            return splits, [str(note) for note in json.loads(meta["notes"])]
    except (OSError, SafetensorError, KeyError, ValueError, TypeError, RecursionError, UserError):
        return None


def stored_identity(path: Path, part: str, data: ClassImages) -> Identity:
    """The identity of the images of `part` as they lie in the file.

    The file is read rather than mapped: pages of a mapping would count as memory of this process, 16 GB of them for
    tieredImageNet.
    """
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        begin, end = json.loads(file.read(length))[f"{part}.images"]["data_offsets"]
    counts = data.counts.tolist()
    size = math.prod(data.image_shape)
    if end - begin != size * sum(counts):
        raise ValueError("a file of another size")
    starts = [8 + length + begin + size * start for start in data.offsets.tolist()]

    def digest(c: int) -> bytes:
        total = hashlib.sha256()
        left = size * counts[c]
        with path.open("rb", buffering=0) as file:
            file.seek(starts[c])
            while left:
                chunk = file.read(min(left, 1 << 22))
                if not chunk:
                    raise ValueError("a file cut short")
                total.update(chunk)
                left -= len(chunk)
        return total.digest()

    with ThreadPoolExecutor(cores()) as pool:  # hashlib releases the interpreter lock
        return identity_of(data.names, counts, data.image_shape, list(pool.map(digest, range(data.n_classes))))


def _write(path: Path, key: str, splits: Splits, notes: list[str]) -> None:
    """Stores splits and notes at `path`, whole or not at all; does nothing where that is not possible."""
    tensors: dict[str, torch.Tensor] = {}
    meta = {"key": key, "name": splits.name, "notes": json.dumps(notes)}
    for part, data in splits.parts.items():
        tensors[f"{part}.images"] = data.images.contiguous()
        tensors[f"{part}.counts"] = data.counts.contiguous()
        meta[f"{part}.names"] = json.dumps(data.names)
        meta[f"{part}.sha256"] = data.identity().sha256
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.stem, suffix=".tmp")
        os.close(handle)
        save_file(tensors, temporary, meta)
        os.replace(temporary, path)
    except (OSError, SafetensorError):
        if temporary is not None and os.path.exists(temporary):
            os.unlink(temporary)


def _sweep(path: Path) -> None:
    """Removes what a process that was killed while writing `path` left; one that is written now is younger."""
    for old in path.parent.glob(f"{path.stem}*.tmp"):
        if time.time() - old.stat().st_mtime > _ABANDONED:
            old.unlink(missing_ok=True)
