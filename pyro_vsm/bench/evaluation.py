"""The whole evaluation of test episodes from images: encoding, answering, seconds and episodes a second."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from pyro_vsm.answering import encode_all
from pyro_vsm.bench.step import StepConfig, as_trained, random_splits
from pyro_vsm.bench.timing import peak_megabytes, reset_memory
from pyro_vsm.config import ModelConfig
from pyro_vsm.data.episodes import fixed_episodes
from pyro_vsm.evaluation import evaluate
from pyro_vsm.systems import ImageSpec, build_model
from pyro_vsm.training import pick_device


@dataclass
class EvaluationBenchConfig:
    """What is timed.

    Args:
        systems: which.
        episodes: test episodes.
        way: classes in an episode.
        shot: support images of a class.
        queries: query images of a class.
        samples: posterior samples.
        image_size: of the random images, in pixels.
        classes: test classes.
        images: of each class.
        model: the parts of the systems.
        device: auto, cpu, cuda or cuda:N.
        repeats: evaluations of each system; the fastest and the median are given.
        amp: encode in bfloat16, see :class:`~pyro_vsm.config.EvaluationConfig`.
    """

    systems: list[str] = field(default_factory=lambda: ["pn", "vsm"])
    episodes: int = 1000
    way: int = 5
    shot: int = 1
    queries: int = 15
    samples: int = 100
    image_size: int = 84
    classes: int = 20
    images: int = 600
    model: ModelConfig = field(default_factory=lambda: ModelConfig(particles=10))
    device: str = "auto"
    repeats: int = 3
    amp: bool = False


def run(c: EvaluationBenchConfig, log: Callable[[str], None] = print) -> list[dict[str, Any]]:
    """A row for each system: an untrained one with a full memory, which costs what a trained one does."""
    device = pick_device(c.device)
    steps = StepConfig(
        way=c.way, shot=c.shot, queries=c.queries, image_size=c.image_size, classes=c.classes, images=c.images,
        model=c.model, device=c.device,
    )  # fmt: skip
    data = random_splits(steps, device).train
    episodes = fixed_episodes(data, way=c.way, shot=c.shot, queries=c.queries, episodes=c.episodes, seed=0)
    rows = []
    for system in c.systems:
        torch.manual_seed(0)
        images = ImageSpec(3, c.image_size, [0.5] * 3, [0.29] * 3, 64)
        model = build_model(system, steps.config(), images).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        model.start(torch.randn(640, model.dim, device=device), torch.arange(640, device=device) % 64)
        reset_memory(device)
        encoding, answering = [], []
        with as_trained():
            evaluate(model, encode_all(model, data.images[:256], amp=c.amp), _few(episodes, 256), samples=c.samples)
            for _ in range(c.repeats):
                started = _now(device)
                features = encode_all(model, data.images, amp=c.amp)
                encoded = _now(device)
                evaluate(model, features, episodes, samples=c.samples)
                encoding.append(encoded - started)
                answering.append(_now(device) - encoded)
        total = sorted(a + b for a, b in zip(encoding, answering))
        rows.append(
            {
                "system": system,
                "images": len(data.images),
                "episodes": c.episodes,
                "samples": c.samples,
                "encoding_s": round(sorted(encoding)[c.repeats // 2], 3),
                "answering_s": round(sorted(answering)[c.repeats // 2], 3),
                "total_s": round(total[c.repeats // 2], 3),
                "fastest_s": round(total[0], 3),
                "episodes_per_s": round(c.episodes / total[c.repeats // 2], 1),
                "peak_MB": round(peak_megabytes(device), 1),
            }
        )
        log(", ".join(f"{k} {v}" for k, v in rows[-1].items()))
    return rows


def _few(episodes, images: int):
    """Two blocks of the same shapes, pointing at the first images only, to warm up on."""
    first = episodes[:64]
    return type(first)(first.classes, first.support % images, first.query % images)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
