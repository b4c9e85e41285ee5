"""Loads a synthetic tieredImageNet of full size and reports memory and time: ``python -m tests.formats FOLDER``.

Writes the published pickles with 779 165 random images (about 13 GB), loads them through a cache in the same folder
(16.5 GB more) in a process of its own, loads them again from the cache and does what training asks of the data
(statistics of all training images, then episodes drawn and gathered), and removes all of it. The images lie in random
order, so that each is written to another place. Ends with status 1 if loading took 16 GiB or 10 minutes, or more.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from pyro_vsm.data.decode import cores
from pyro_vsm.data.tiered_imagenet import PUBLISHED

from . import Python2Pickler, png, python2_pickle

MOST_GIB, MOST_SECONDS = 16, 600
BATCHES = 500  # of 8 tasks with 5 classes of 16 images
SHORT = {"train": "train", "validation": "val", "test": "test"}


def write(root: Path, share: float) -> None:
    """The six pickles of the published layout; `share` below 1 for fewer images."""
    rng = np.random.default_rng(0)
    files = []
    for _ in range(500):  # noise, blurred a little: about as large as the PNG files of photographs
        noise = Image.fromarray(rng.integers(0, 256, (84, 84, 3), dtype=np.uint8)).filter(
            ImageFilter.GaussianBlur(0.8)
        )
        files.append(np.frombuffer(png(np.asarray(noise)), np.uint8).reshape(-1, 1))
    print(f"PNG files of {np.mean([len(f) for f in files]):.0f} bytes", flush=True)
    for part, (classes, images) in PUBLISHED.items():
        total = max(classes, int(images * share))
        labels = rng.permutation(np.concatenate([np.arange(classes), rng.integers(0, classes, total - classes)]))
        content = {
            "label_specific": labels.astype(np.int64),
            "label_specific_str": [f"{part} {c}" for c in range(classes)],
        }
        (root / f"{SHORT[part]}_labels.pkl").write_bytes(python2_pickle(content))
        pickler = Python2Pickler()
        with (root / f"{SHORT[part]}_images_png.pkl").open("wb") as file:
            file.write(b"\x80\x02")
            file.writelines(pickler.list(files[i % len(files)] for i in range(total)))
            file.write(b".")


def own_memory() -> int:
    """Bytes of resident memory that are not pages of mapped files, now (Linux only)."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines["RssAnon"].split()[0]) * 1024


def load(root: str, train: bool) -> None:
    """In a process of its own: loads, and prints seconds and the peak of resident memory."""
    from pyro_vsm.data import DataConfig
    from pyro_vsm.data import load as load_data
    from pyro_vsm.data.episodes import EpisodeSampler, gather

    def report(what: str, started: float, **further: object) -> None:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        found = {"what": what, "seconds": round(time.perf_counter() - started), "peak_gib": round(peak / 2**30, 2)}
        found["own_gib"] = round(own_memory() / 2**30, 2)
        busy = {
            "cpu_seconds": round(time.process_time()),
            "cores": cores(),
            "load_average": round(os.getloadavg()[0], 1),
        }
        print(json.dumps({**found, **busy, **further}), flush=True)

    started = time.perf_counter()
    splits = load_data(DataConfig("tiered-imagenet", root), lambda _: None)
    parts = {part: [data.n_classes, len(data.images)] for part, data in splits.parts.items()}
    report("loaded from the cache" if train else "loaded from the pickles", started, parts=parts)
    if not train:
        return
    started = time.perf_counter()
    splits.statistics()
    report("mean and deviation of the training images", started)
    started = time.perf_counter()
    sampler = EpisodeSampler(splits.train, way=5, shot=1, queries=15)
    for _ in range(BATCHES):
        gather(splits.train, sampler.sample(8))
    report(f"{BATCHES} training batches of 640 images", started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="with 30 GB free; a folder in it is made and removed")
    parser.add_argument("--share", type=float, default=1.0, help="of the images, for a quick look")
    parser.add_argument("--out", type=Path, help="JSON file for the measurements")
    parser.add_argument("--load", choices=["pickles", "cache"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.load:
        return load(args.folder, args.load == "cache")
    root = Path(args.folder) / "synthetic-tiered-imagenet"
    root.mkdir(parents=True)
    try:
        started = time.perf_counter()
        write(root, args.share)
        size = sum(path.stat().st_size for path in root.iterdir())
        print(f"wrote {size / 1e9:.1f} GB in {time.perf_counter() - started:.0f} s", flush=True)
        environment = {**os.environ, "PYRO_VSM_CACHE": str(root / "cache")}
        lines = []
        for what in ("pickles", "cache"):
            command = [sys.executable, "-m", "tests.formats", "--load", what, str(root)]
            done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
            print(done.stdout, end="", flush=True)
            lines += [json.loads(line) for line in done.stdout.splitlines()]
        if args.out:
            args.out.write_text(
                json.dumps({"share": args.share, "pickles_gb": round(size / 1e9, 1), "steps": lines}, indent=1)
            )
        if lines[0]["peak_gib"] >= MOST_GIB or lines[0]["seconds"] >= MOST_SECONDS:
            sys.exit(f"loading must take less than {MOST_GIB} GiB and {MOST_SECONDS} s")
    finally:
        shutil.rmtree(root)


if __name__ == "__main__":
    main()
