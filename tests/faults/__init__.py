"""Faults that are really made: processes killed, disks full, files damaged, images hostile.

``python -m tests.faults`` makes all of them in full number (about half an hour on 2 cores) and writes the table of
``docs/faults.md``; the ordinary test run makes a few of each.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image
from safetensors.torch import load_file


@dataclass
class Ended:
    """How a ``pyro-vsm`` process ended."""

    status: int
    out: str
    err: str
    seconds: float

    @property
    def traceback(self) -> bool:
        """Whether it ended in one, or crashed."""
        return "Traceback" in self.err or self.status in (70, -6, -7, -8, -11)

    @property
    def sentence(self) -> str:
        """The last line of the error stream, if it is an answer to the user."""
        lines = self.err.strip().splitlines()
        return lines[-1] if lines and lines[-1].startswith("pyro-vsm: ") else ""


@dataclass
class Tally:
    """What became of one kind of fault.

    Attributes:
        what: the fault.
        wanted: what should happen.
        tried: how often.
        lost: how often data were lost, or something else happened than wanted.
        tracebacks: how often a process ended in one.
        remarks: on the failures, and on what could not be tried.
    """

    what: str
    wanted: str
    tried: int = 0
    lost: int = 0
    tracebacks: int = 0
    remarks: list[str] = field(default_factory=list)

    def add(self, ended: Ended | None, kept: bool, about: str = "") -> None:
        """Count one try: the process that met the fault, and whether everything is as it should be."""
        self.tried += 1
        broken = ended is not None and ended.traceback
        self.lost += not kept
        self.tracebacks += broken
        if broken or not kept:
            tail = "" if ended is None else f": status {ended.status}, {ended.err.strip()[-600:]}"
            self.remarks.append(f"{about}{tail}")

    @property
    def sound(self) -> bool:
        """Whether nothing went wrong."""
        return self.lost == 0 and self.tracebacks == 0


class Zygote:
    """Starts ``pyro-vsm`` processes (see ``zygote.py``)."""

    def __init__(self, folder: Path):
        self.folder = folder
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg", "PYTHONWARNINGS": "default"}
        environment["PYRO_VSM_CACHE"] = str(folder / "cache")
        program = [sys.executable, str(Path(__file__).parent / "zygote.py")]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(program, stdin=pipe, stdout=pipe, text=True, env=environment)
        self._read()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the zygote has died")
        return json.loads(line)

    def run(self, argv: list[str], meanwhile: Callable[[int], None] = lambda pid: None, **faults: Any) -> Ended:
        """One process.

        Args:
            argv: of ``pyro-vsm``.
            meanwhile: called with the process's number while it runs.
            faults: see ``zygote.py``.
        """
        out, err = self.folder / "out.txt", self.folder / "err.txt"
        for path in (out, err):
            path.unlink(missing_ok=True)
        started = time.perf_counter()
        assert self._process.stdin is not None
        request = {"argv": argv, "out": str(out), "err": str(err), **faults}
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        meanwhile(self._read()["pid"])
        status = self._read()["status"]
        texts = [path.read_text(errors="replace") if path.exists() else "" for path in (out, err)]
        return Ended(status, *texts, time.perf_counter() - started)

    def close(self) -> None:
        """End it."""
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()
        self._process.wait()


class Scene:
    """A small data set, settings of a run of a few seconds, and the run that met no fault.

    Args:
        folder: where to.
        zygote: starts the processes.
    """

    def __init__(self, folder: Path, zygote: Zygote):
        self.folder, self.zygote = folder, zygote
        self.data = write_images(folder / "images")
        self.settings = folder / "settings.yaml"
        self.settings.write_text(yaml.safe_dump(settings(self.data)))
        self.whole = folder / "whole"
        ended = self.train(self.whole)
        if ended.status != 0:
            raise RuntimeError(f"the run without a fault failed: {ended.err}")
        self.seconds = ended.seconds
        self._count = 0

    def new(self, name: str = "try") -> Path:
        """A path where nothing lies yet."""
        self._count += 1
        return self.folder / f"{name}{self._count}"

    def train(self, run: Path, *further: str, **faults: Any) -> Ended:
        """Start the training, or resume it where there is something to resume."""
        if (run / "config.yaml").exists():
            return self.zygote.run(["train", "--resume", str(run), *further], **faults)
        argv = ["train", "--config", str(self.settings), "--out", str(run), *further]
        return self.zygote.run(argv, **faults)

    def same(self, run: Path) -> str:
        """How a finished run differs from the one that met no fault; empty if in no bit."""
        for system in SYSTEMS:
            for name in ("model.safetensors", "state.safetensors"):
                a, b = (load_file(folder / system / name) for folder in (run, self.whole))
                other = sorted(a.keys() ^ b.keys()) or [k for k in a if not bool((a[k] == b[k]).all())]
                if other:
                    return f"{system}/{name}: {other[0]}"
            a, b = ((folder / system / "metrics.jsonl").read_bytes() for folder in (run, self.whole))
            if a != b:
                return f"{system}/metrics.jsonl"
        rows = [json.loads((folder / "table.json").read_text())["rows"] for folder in (run, self.whole)]
        for row in rows[0] + rows[1]:
            del row["training_seconds"]
        left = [p.name for p in run.rglob("*.tmp")]
        return "table.json" if rows[0] != rows[1] else f"{left[0]} is left" if left else ""

    def finishes(self, run: Path) -> str:
        """Resume without a fault; what is wrong with the outcome, empty if nothing."""
        ended = self.train(run)
        if ended.status != 0:
            return f"cannot be resumed: {ended.err.strip()[-600:]}"
        try:
            return self.same(run)
        except (OSError, ValueError, KeyError) as error:
            return f"{type(error).__name__}: {error}"
        finally:
            shutil.rmtree(run)


SYSTEMS = ("vsm", "pn")


def settings(root: Path) -> dict[str, Any]:
    """Of a run that writes often."""
    small = {"init_args": {"hidden": 8}}
    return {
        "systems": list(SYSTEMS),
        "data": {"name": "folder", "root": str(root), "image_size": 16, "cache": False, "threads": 2},
        "episodes": {"way": 3, "shot": 1, "queries": 2, "tasks": 2},
        "model": {
            "backbone": {"class_path": "conv4", "init_args": {"width": 4}},
            "prior_m": {"class_path": "mixture", **small},
            "prior_z": {"class_path": "memory", **small},
            "posterior_m": {"class_path": "mixture", **small},
            "posterior_z": {"class_path": "amortised", **small},
            "address_dim": 4,
            "particles": 2,
        },
        "training": {
            "steps": 8, "log_every": 3, "validate_every": 2, "checkpoint_every": 1, "validation_episodes": 3,
            "device": "cpu",
        },
        "evaluation": {"episodes": 4, "queries": 2, "samples": 3},
    }  # fmt: skip


def write_images(root: Path, images: int = 5, classes: tuple[int, int, int] = (6, 4, 4)) -> Path:
    """Class folders in ``train/``, ``val/`` and ``test/``; a class is a pattern of stripes."""
    random = np.random.default_rng(0)
    for split, number in zip(("train", "val", "test"), classes):
        for c in range(number):
            (root / split / f"{split} {c}").mkdir(parents=True)
            for i in range(images):
                y, x = np.mgrid[:16, :16]
                wave = np.sin(x * (c + 1) / 3 + y * len(split) / 5 + i)[..., None] * random.uniform(0.4, 1, 3)
                pixels = (128 + 100 * wave + random.normal(0, 8, (16, 16, 3))).clip(0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(root / split / f"{split} {c}" / f"{i}.png")
    return root


@contextmanager
def stage(folder: Path) -> Iterator[Scene]:
    """A scene whose processes end with it."""
    folder.mkdir(parents=True, exist_ok=True)
    zygote = Zygote(folder)
    try:
        yield Scene(folder, zygote)
    finally:
        zygote.close()
