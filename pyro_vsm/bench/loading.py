"""From image files to the tensor in memory: decoding for the first time, and mapping the cache afterwards."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pyro_vsm import data as data_sources
from pyro_vsm.bench.timing import peak_megabytes
from pyro_vsm.data import DataConfig
from pyro_vsm.training import pick_device


def run(c: DataConfig, device: str = "auto", log: Callable[[str], None] = print) -> list[dict[str, Any]]:
    """Seconds of three starts with an empty cache folder of its own: decode, read the cache, read it again.

    The files themselves may lie in the system's file cache from before.
    """
    where = pick_device(device)
    rows = []
    before = os.environ.get("PYRO_VSM_CACHE")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["PYRO_VSM_CACHE"] = folder
        try:
            for what in ("decoded", "from the cache", "from the cache again"):
                started = time.perf_counter()
                splits = data_sources.load(c, lambda _: None)
                loaded = time.perf_counter()
                parts = [part.to(where) for part in splits.parts.values()]
                moved = time.perf_counter()
                images = sum(len(p.images) for p in parts)
                rows.append(
                    {
                        "start": what,
                        "images": images,
                        "load_s": round(loaded - started, 3),
                        "to_device_s": round(moved - loaded, 3),
                        "images_per_s": round(images / (moved - started), 0),
                        "cache_MB": round(sum(f.stat().st_size for f in Path(folder).glob("*")) / 2**20, 1),
                        "peak_MB": round(peak_megabytes(where), 1),
                    }
                )
                log(", ".join(f"{k} {v}" for k, v in rows[-1].items()))
                del splits, parts
        finally:
            if before is None:
                del os.environ["PYRO_VSM_CACHE"]
            else:
                os.environ["PYRO_VSM_CACHE"] = before
    return rows
