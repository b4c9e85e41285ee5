"""A training step of each system against the floor: the backbone alone on as many images, on the same device."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import pyro
import torch
from torch import Tensor

from pyro_vsm import parallel
from pyro_vsm.bench.timing import Timing, peak_megabytes, reset_memory, rounds, timed
from pyro_vsm.config import Config, ModelConfig
from pyro_vsm.data import Splits
from pyro_vsm.data.augment import AugmentConfig
from pyro_vsm.data.episodes import EpisodeIndex
from pyro_vsm.data.images import ClassImages
from pyro_vsm.feeds import EpisodeFeed
from pyro_vsm.fused import fused
from pyro_vsm.systems import ImageSpec, build_model
from pyro_vsm.training import Trainer, pick_device

Row = dict[str, Any]


@dataclass
class StepConfig:
    """What is timed.

    Args:
        systems: whose steps.
        tasks: episodes in a step.
        way: classes in an episode.
        shot: support images of a class.
        queries: query images of a class.
        image_size: of the random images, in pixels.
        classes: training classes.
        images: of each class.
        model: the parts of the systems.
        amp: backbone in bfloat16 (CUDA only).
        amp_heads: networks of the heads in bfloat16 (CUDA only).
        compile: backbone and augmentation through torch.compile.
        compile_heads: the loss, too.
        cuda_graph: capture the step (CUDA only).
        augment: pad 8, flip and colour jitter of 0.2, as in experiments/mini_imagenet; or nothing.
        device: auto, cpu, cuda or cuda:N.
        seconds: about how long each thing is timed.
        breakdown: time the parts of a step, too.
        long_steps: steps after which the peak of the memory is compared with that after 100; 0 for none.
    """

    systems: list[str] = field(default_factory=lambda: ["pn", "vpn", "vsm"])
    tasks: int = 8
    way: int = 5
    shot: int = 1
    queries: int = 15
    image_size: int = 84
    classes: int = 64
    images: int = 600
    model: ModelConfig = field(default_factory=lambda: ModelConfig(particles=10))
    amp: bool = False
    amp_heads: bool = False
    compile: bool = False
    compile_heads: bool = False
    cuda_graph: bool = False
    augment: bool = True
    device: str = "auto"
    seconds: float = 1.0
    breakdown: bool = True
    long_steps: int = 0

    @property
    def batch(self) -> int:
        """Images in a step of all processes."""
        return self.tasks * self.way * (self.shot + self.queries)

    def config(self) -> Config:
        """The settings of a run with these steps."""
        jitter = AugmentConfig(pad=8, flip=True, brightness=0.2, contrast=0.2, saturation=0.2)
        switches = ("amp", "amp_heads", "compile", "compile_heads", "cuda_graph")
        config = Config(systems=self.systems, model=self.model, augment=jitter if self.augment else AugmentConfig())
        e = config.episodes
        e.tasks, e.way, e.shot, e.queries = self.tasks, self.way, self.shot, self.queries
        config.evaluation.queries = 1
        t = config.training
        t.steps, t.device, t.ema = 10**9, self.device, 0.999
        for name in switches:
            setattr(t, name, getattr(self, name))
        return config


class _Nowhere:
    """A run that keeps nothing."""

    folder = "nowhere"


def random_splits(c: StepConfig, device: torch.device) -> Splits:
    """Random pixels: what is timed does not depend on them."""
    generator = torch.Generator(device).manual_seed(0)

    def split(name: str, classes: int, images: int) -> ClassImages:
        shape = (classes * images, 3, c.image_size, c.image_size)
        pixels = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator, device=device)
        counts = torch.full((classes,), images, device=device)
        return ClassImages(pixels, counts, tuple(f"{name} {i}" for i in range(classes)))

    few = c.shot + 1
    return Splits("random", split("a", c.classes, c.images), split("b", c.way, few), split("c", c.way, few))


def make_trainer(c: StepConfig, system: str, data: Splits, optimizer: Literal["adamw", "sgd"] = "adamw") -> Trainer:
    """A trainer that writes nothing."""
    config = c.config()
    config.training.optimizer = optimizer
    pyro.set_rng_seed(0)
    t = config.training
    images = ImageSpec(3, c.image_size, [0.5] * 3, [0.29] * 3, c.classes)
    model = build_model(system, config, images, amp=t.amp, compiled=t.compile)
    trainer = Trainer(model, data, config, _Nowhere(), system)  # type: ignore[arg-type]
    trainer.model.train()
    return trainer


def floor(c: StepConfig, trainer: Trainer) -> Timing:
    """Forward and backward of the backbone alone, on normalised float32 images that lie ready (a process's share)."""
    encoder, device = trainer.model.encoder, trainer.device
    number = c.batch // parallel.size()
    x = torch.randn(number, 3, c.image_size, c.image_size, device=device).contiguous(
        memory_format=torch.channels_last
    )
    network = fused(encoder.backbone) if c.compile else encoder.backbone
    gradient = torch.randn(number, encoder.backbone.dim, device=device)
    parameters = list(encoder.backbone.parameters())

    def run() -> tuple[Tensor, ...]:
        with torch.autocast(
            device.type, torch.bfloat16, enabled=c.amp and device.type == "cuda", cache_enabled=False
        ):
            h = network(x)
        return torch.autograd.grad(h.float(), parameters, gradient)

    return timed(run, device, graph=c.cuda_graph, seconds=c.seconds, warmup=5)


def breakdown(c: StepConfig, trainer: Trainer) -> dict[str, float]:
    """Milliseconds of the parts of a step, each timed alone (what overlaps or fuses in a step adds up to less)."""
    model, device, feed = trainer.model, trainer.device, trainer.feed
    assert isinstance(feed, EpisodeFeed)
    index = feed.sampler.sample(c.tasks)
    images = feed.images(index)
    features = torch.randn(c.tasks, c.way, c.shot + c.queries, model.dim, device=device, requires_grad=True)
    progress = torch.full((), 0.5, device=device)
    encoder = list(model.encoder.parameters())
    gradient = torch.randn(images.shape[:3].numel(), model.dim, device=device)

    def sample() -> EpisodeIndex:
        return feed.sampler.sample(c.tasks)

    def encode() -> tuple[Tensor, ...]:
        h = model.encode(images.flatten(0, 2))
        return torch.autograd.grad(h, encoder, gradient)

    def heads() -> Tensor:
        features.grad = None
        trainer.optimizer.zero_grad(set_to_none=True)
        low = model.heads_in_bfloat16 and features.is_cuda
        with torch.autocast(device.type, torch.bfloat16, enabled=low, cache_enabled=False):
            loss, _ = model.loss(features, c.shot, index.classes, progress)
        loss.backward()
        return loss

    def optimise() -> None:
        for p, g in zip(trainer.parameters, gradients):
            p.grad = g
        trainer._clip()
        trainer.optimizer.step()
        trainer.average.update()

    gradients = [torch.zeros_like(p) for p in trainer.parameters]
    parts: dict[str, Callable[[], object]] = {
        "sampling": sample,
        "augmentation": lambda: feed.images(index),
        "backbone": encode,
        "heads and objective": heads,
    }
    memory = getattr(model, "memory", None)
    if memory is not None:
        support = features[:, :, : c.shot].mean(2).detach()
        batch = features.detach()

        def consolidate() -> None:
            memory.store(memory.consolidate(batch, index.classes))

        parts["of which recall (forward)"] = lambda: memory(support, index.classes).log_address
        parts["of which consolidation (forward, store)"] = torch.no_grad()(consolidate)
    parts["optimiser, clipping, averaging"] = optimise
    found = {name: timed(run, device, graph=c.cuda_graph, seconds=c.seconds / 2).ms for name, run in parts.items()}
    trainer.optimizer.zero_grad(set_to_none=True)
    return found


@contextmanager
def as_trained() -> Iterator[None]:
    """Pyro's validation off, as the trainer has it."""
    with pyro.validation_enabled(False):
        yield


def run(c: StepConfig, log: Callable[[str], None] = print) -> tuple[list[Row], dict[str, dict[str, float]]]:
    """The rows of the table (the floor first), and the parts of each system's step in milliseconds."""
    device = pick_device(c.device)
    data = random_splits(c, device)
    rows: list[Row] = []
    parts: dict[str, dict[str, float]] = {}
    with as_trained():
        for system in c.systems:
            reset_memory(device)
            started = time.perf_counter()
            trainer = make_trainer(c, system, data)
            if not rows:
                lowest = floor(c, trainer)
                rows.append(_row("backbone alone", lowest, lowest, c))
                started = time.perf_counter()
            for _ in range(8):
                trainer._advance()
            if device.type == "cuda":
                torch.cuda.synchronize()
            warm = time.perf_counter() - started
            timing = rounds(trainer._advance, device, c.seconds)
            row = _row(system, timing, lowest, c)
            while trainer.step < 100 and c.long_steps:
                trainer._advance()
            row["peak_MB"] = round(peak_megabytes(device), 1)
            if c.long_steps:
                while trainer.step < c.long_steps:
                    trainer._advance()
                row[f"peak_MB_after_{c.long_steps}"] = round(peak_megabytes(device), 1)
            row["start_s"] = round(warm, 1)
            rows.append(row)
            log(f"{system}: {timing.ms:.2f} ms, {row['ratio']:.3f} times the floor of {lowest.ms:.2f} ms")
            if c.breakdown and parallel.size() == 1:
                trainer._graph = None
                parts[system] = breakdown(c, trainer)
            del trainer
    return rows, parts


def _row(name: str, timing: Timing, lowest: Timing, c: StepConfig) -> Row:
    return {
        "step": name,
        "ms": round(timing.ms, 3),
        "least_ms": round(timing.least, 3),
        "most_ms": round(timing.most, 3),
        "ratio": round(timing.ms / lowest.ms, 4),
        "images_per_s": round(1e3 * c.batch / timing.ms, 1),
        "episodes_per_s": round(1e3 * c.tasks / timing.ms, 2),
    }
