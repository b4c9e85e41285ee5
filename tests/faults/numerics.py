"""Numerical faults: what is not finite, constant, equal or alone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image
from safetensors.torch import load_file

from . import Scene, Tally

SYSTEMS = ("vsm", "vpn", "pn", "maml", "maml_first_order", "gp", "versa", "rfs", "classifier")


def _finite(run: Path) -> bool:
    return all(
        bool(value.isfinite().all())
        for path in run.rglob("*.safetensors")
        for value in load_file(path).values()
        if value.is_floating_point()
    )


def diverging(scene: Scene, tries: int) -> Tally:
    """Learning rates and weights that no training survives."""
    tally = Tally(
        "settings under which training diverges (learning rate 10^20 to 10^38, KL weights 10^38)",
        "ends finite, or with a diagnosis of the factor and the step; every checkpoint finite",
    )
    settings = [
        ["--training.lr", "1e20"], ["--training.lr", "1e38"],
        ["--training.lr", "1e30", "--training.optimizer", "sgd"],
        ["--training.head_lr", "1e38"], ["--training.head_lr", "1e38", "--training.optimizer", "sgd"],
        ["--training.lr", "1e38", "--training.clip", "0"], ["--model.beta_z", "1e38", "--model.warmup", "0"],
        ["--model.beta_m", "1e38", "--model.warmup", "0", "--training.clip", "0"],
    ]  # fmt: skip
    few = ["--training.bad_steps", "2", "--training.steps", "12", "--training.log_every", "2"]
    for further in settings[:tries]:
        run = scene.new("diverging")
        ended = scene.train(run, *few, "--systems", '["vsm"]', *further)
        told = ended.status == 2 and "not finite: " in ended.sentence and "from step " in ended.sentence
        told = told or (ended.status == 2 and "stopped being finite by step" in ended.sentence)
        tally.add(ended, (ended.status == 0 or told) and _finite(run), " ".join(further))
        shutil.rmtree(run)
    return tally


def _degenerate(scene: Scene) -> Iterator[tuple[str, Path, list[str]]]:
    """What it is, the images, settings."""
    constant, equal = scene.new("constant"), scene.new("equal")
    for root in (constant, equal):
        shutil.copytree(scene.data, root)
    for path in constant.rglob("*.png"):  # no two pixels, images or classes differ
        Image.new("RGB", (16, 16), (128, 128, 128)).save(path)
    for folder in equal.glob("*/*"):  # all images of a class are one
        pixels = np.random.default_rng(len(folder.name)).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        for path in folder.iterdir():
            Image.fromarray(pixels).save(path)
    shots = ["--episodes.shot", "2", "--episodes.queries", "2"]
    yield "constant images", constant, []
    yield "constant images, 2 shots", constant, shots
    yield "all images of a class equal", equal, shots
    yield "one class a task", scene.data, ["--episodes.way", "1"]


def degenerate(scene: Scene, tries: int) -> Tally:
    """Every system on images and tasks that hold no information."""
    tally = Tally(
        "constant images, equal support sets, tasks of one class: train and evaluate every system",
        "no step skipped, finite losses, probabilities and checkpoints",
    )
    for what, root, further in list(_degenerate(scene))[:tries]:
        run = scene.new("degenerate")
        systems = json.dumps(list(SYSTEMS))
        ended = scene.train(run, "--data.root", str(root), "--systems", systems, "--classifier.batch", "8", *further)
        lines = "".join(p.read_text() for p in run.rglob("metrics.jsonl"))
        fine = ended.status == 0 and _finite(run) and "NaN" not in lines and "skipped" not in lines
        tally.add(ended, fine, what)
        shutil.rmtree(run)
    return tally


FAULTS = {diverging: (99, 1), degenerate: (99, 1)}
