"""The same prototypical network trained and evaluated with easyfsl, learn2learn and pyro_vsm: same images, same run.

Installs nothing: ``pip install easyfsl`` first; learn2learn is measured where it can be imported.
``python experiments/benchmarks/peers.py`` makes up JPEG files; ``--images ROOT`` takes a folder with ``train``,
``val`` and ``test``, each with a folder a class, as ``pyro-vsm train --data.name folder`` does. Seconds count from
the files: easyfsl decodes an image whenever a task shows it, in worker processes, as its tutorials do; its faster
evaluation, from features that were computed once, is timed as well. learn2learn takes tasks from images that lie in
memory as floats, without augmentation, as its example of prototypical networks does.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset, Sampler
from torchvision import transforms
from torchvision.datasets import ImageFolder

from pyro_vsm import data as data_sources
from pyro_vsm import report
from pyro_vsm.answering import encode_all
from pyro_vsm.backbones import Conv4
from pyro_vsm.bench.step import StepConfig, as_trained, make_trainer
from pyro_vsm.bench.timing import machine, rounds
from pyro_vsm.data import DataConfig
from pyro_vsm.data.episodes import fixed_episodes
from pyro_vsm.evaluation import evaluate
from pyro_vsm.training import pick_device

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def make_images(root: Path, classes: int, images: int, size: int) -> None:
    """JPEG files of smooth random pictures: their size and cost of decoding are those of photographs, roughly."""
    generator = np.random.default_rng(0)
    for split, number in (("train", classes), ("val", 5), ("test", classes)):
        for c in range(number):
            folder = root / split / f"{split}{c}"
            folder.mkdir(parents=True)
            for i in range(images):
                small = generator.integers(0, 256, (12, 12, 3), dtype=np.uint8)
                noise = generator.normal(0, 6, (size, size, 3))
                pixels = np.asarray(Image.fromarray(small).resize((size, size), Image.Resampling.BICUBIC)) + noise
                Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{i}.jpg", quality=90)


def now(device: torch.device) -> float:
    """Seconds, once the device has done what it was asked."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def peer_set(folder: Path, size: int, training: bool) -> ImageFolder:
    """Images from files at every access, as in easyfsl's tutorials, with the augmentation of our recipe."""
    plain = [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    jitter = transforms.ColorJitter(0.2, 0.2, 0.2)
    random_ones = [transforms.RandomCrop(size, padding=8), transforms.RandomHorizontalFlip(), jitter]
    images = ImageFolder(str(folder), transforms.Compose([*(random_ones if training else []), *plain]))
    images.get_labels = lambda: [label for _, label in images.samples]  # type: ignore[attr-defined]
    return images


def peer(a: argparse.Namespace, root: Path, device: torch.device) -> dict[str, float]:
    """Seconds an episode of easyfsl: a training step (one episode), evaluation from images, and from features."""
    from easyfsl.datasets import FeaturesDataset
    from easyfsl.methods import PrototypicalNetworks
    from easyfsl.samplers import TaskSampler
    from easyfsl.utils import evaluate as peer_evaluate
    from easyfsl.utils import predict_embeddings

    # easyfsl 1.5 hands an argument to torch's Sampler that newer versions of PyTorch no longer take
    Sampler.__init__ = lambda self, data_source=None: None  # type: ignore[method-assign]
    random.seed(0)
    torch.manual_seed(0)

    def loader(images: Any, tasks: int, workers: int) -> DataLoader:
        sampler = TaskSampler(images, n_way=a.way, n_shot=a.shot, n_query=a.queries, n_tasks=tasks)
        return DataLoader(
            images, batch_sampler=sampler, num_workers=workers, pin_memory=device.type == "cuda",
            collate_fn=sampler.episodic_collate_fn,
        )  # fmt: skip

    network = PrototypicalNetworks(Conv4(3, a.size)).to(device)
    optimiser = torch.optim.Adam(network.parameters(), 1e-3)
    criterion = nn.CrossEntropyLoss()
    network.train()
    warm = min(10, a.steps // 2)
    started = 0.0
    for number, batch in enumerate(loader(peer_set(root / "train", a.size, True), a.steps + warm, a.workers)):
        if number == warm:
            started = now(device)
        support, support_labels, query, query_labels, _ = (
            t.to(device) if isinstance(t, torch.Tensor) else t for t in batch
        )
        optimiser.zero_grad()
        network.process_support_set(support, support_labels)
        loss = criterion(network(query), query_labels)
        loss.backward()
        optimiser.step()
        loss.item()  # as the tutorials do, for the progress bar
    found = {"train": (now(device) - started) / a.steps}

    test = peer_set(root / "test", a.size, False)
    started = now(device)
    peer_evaluate(network, loader(test, a.episodes, a.workers), device=str(device), use_tqdm=False)
    found["evaluate"] = (now(device) - started) / a.episodes

    started = now(device)
    plain = DataLoader(test, batch_size=256, num_workers=a.workers)
    table = predict_embeddings(plain, network.backbone, device=str(device))
    features = FeaturesDataset.from_dataframe(table)
    encoded = now(device)
    on_features = PrototypicalNetworks(nn.Identity())
    peer_evaluate(on_features, loader(features, a.episodes, 0), device="cpu", use_tqdm=False)
    found["evaluate from features"] = (now(device) - encoded) / a.episodes
    found["encode, all"] = encoded - started
    return found


class InMemory(Dataset):
    """Images and labels of a data set, read once."""

    def __init__(self, images: Dataset):
        self.pairs = list(images)

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.pairs[index]


def second_peer(a: argparse.Namespace, root: Path, device: torch.device) -> dict[str, float]:
    """Seconds an episode of learn2learn: a training step (one episode) and evaluation, images in memory.

    Its data sets and transforms, as in its example of prototypical networks on miniImageNet; the loss is written out
    there, too. Empty if it is not installed.
    """
    try:
        import learn2learn as l2l
        from learn2learn.data.transforms import KShots, LoadData, NWays, RemapLabels
    except ImportError:
        return {}
    torch.manual_seed(0)

    def loader(split: str, tasks: int) -> DataLoader:
        plain = transforms.Compose([transforms.ToTensor(), transforms.Normalize(MEAN, STD)])
        dataset = l2l.data.MetaDataset(InMemory(ImageFolder(str(root / split), plain)))
        steps = [NWays(dataset, a.way), KShots(dataset, a.shot + a.queries), LoadData(dataset), RemapLabels(dataset)]
        tasksets = l2l.data.Taskset(dataset, task_transforms=steps, num_tasks=tasks)
        return DataLoader(tasksets, pin_memory=device.type == "cuda", shuffle=True)

    network = Conv4(3, a.size).to(device)
    optimiser = torch.optim.Adam(network.parameters(), 1e-3)

    def adapt(batch: list[torch.Tensor]) -> torch.Tensor:
        images, labels = (t.to(device)[0] for t in batch)
        order = labels.argsort(stable=True)
        h = network(images[order]).unflatten(0, (a.way, a.shot + a.queries))
        prototypes, query = h[:, : a.shot].mean(1), h[:, a.shot :].flatten(0, 1)
        logits = -(query.unsqueeze(1) - prototypes).square().sum(2)
        targets = torch.arange(a.way, device=device).repeat_interleave(a.queries)
        (logits.argmax(1) == targets).float().mean().item()
        return nn.functional.cross_entropy(logits, targets)

    found = {}
    warm, started = min(10, a.steps // 2), 0.0
    network.train()
    for number, batch in enumerate(loader("train", a.steps + warm)):
        if number == warm:
            started = now(device)
        loss = adapt(batch)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    found["train"] = (now(device) - started) / a.steps
    network.eval()
    test = loader("test", a.episodes)
    started = now(device)
    with torch.no_grad():
        for batch in test:
            adapt(batch)
    found["evaluate"] = (now(device) - started) / a.episodes
    return found


def ours(a: argparse.Namespace, root: Path, device: torch.device) -> dict[str, float]:
    """Seconds an episode of pyro_vsm: training with 1 and with 8 episodes a step, evaluation; decoding by itself."""
    started = time.perf_counter()
    data = data_sources.load(DataConfig("folder", str(root), a.size, cache=False), lambda _: None)
    found = {"decode, all": time.perf_counter() - started}
    cuda = device.type == "cuda"
    with as_trained():
        for tasks in (1, 8):
            c = StepConfig(
                systems=["pn"], tasks=tasks, way=a.way, shot=a.shot, queries=a.queries, image_size=a.size,
                classes=data.train.n_classes, amp=cuda, compile=cuda, cuda_graph=cuda, device=str(device),
            )  # fmt: skip
            trainer = make_trainer(c, "pn", data)
            for _ in range(8 if cuda else 2):
                trainer._advance()
            found[f"train, {tasks} a step"] = rounds(trainer._advance, device, a.seconds, 5).ms / 1e3 / tasks
        episodes = fixed_episodes(
            data.test, way=a.way, shot=a.shot, queries=a.queries, episodes=a.our_episodes, seed=0
        )
        encode_all(trainer.model, data.test.images[:64], device=device)
        started = now(device)
        features = encode_all(trainer.model, data.test.images, device=device)
        encoded = now(device)
        evaluate(trainer.model, features, episodes, samples=1)
        found["evaluate from features"] = (now(device) - encoded) / a.our_episodes
        found["encode, all"] = encoded - started
    return found


def table(
    a: argparse.Namespace, them: dict[str, float], others: dict[str, float], us: dict[str, float]
) -> list[dict[str, Any]]:
    """Milliseconds an episode and ratios. Evaluating E episodes costs decoding and encoding once, and E answers."""
    E = a.our_episodes
    loaded = us["encode, all"] + E * us["evaluate from features"]
    whole = us["decode, all"] + loaded
    featured = them["encode, all"] + E * them["evaluate from features"]
    train, evaluation = others.get("train"), others.get("evaluate")

    def lines() -> Iterator[tuple[str, float, float | None, float]]:
        yield "training, 1 episode a step", them["train"], train, us["train, 1 a step"]
        yield "training, 8 episodes a step (the others: 1)", them["train"], train, us["train, 8 a step"]
        yield f"{E} test episodes from image files", them["evaluate"], None, whole / E
        yield f"{E} test episodes, our images loaded before", them["evaluate"], evaluation, loaded / E
        yield f"{E} test episodes, features computed once", featured / E, None, whole / E
        yield "answering from features alone", them["evaluate from features"], None, us["evaluate from features"]

    return [
        {
            "what": what,
            "easyfsl_ms_per_episode": round(1e3 * theirs, 4),
            "learn2learn_ms_per_episode": round(1e3 * second, 4) if second else None,
            "pyro_vsm_ms_per_episode": round(1e3 * mine, 4),
            "times_faster_than_easyfsl": round(theirs / mine, 2),
            "times_faster_than_learn2learn": round(second / mine, 2) if second else None,
        }
        for what, theirs, second, mine in lines()
    ]


def main(log: Callable[[str], None] = print) -> int:
    """Measure, print, and with ``--out`` keep the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, help="folder with train, val and test; made up without it")
    parser.add_argument("--classes", type=int, default=20, help="made-up classes of training and of test")
    parser.add_argument("--per-class", type=int, default=100, help="made-up images of each")
    parser.add_argument("--size", type=int, default=84)
    parser.add_argument("--way", type=int, default=5)
    parser.add_argument("--shot", type=int, default=1)
    parser.add_argument("--queries", type=int, default=15)
    parser.add_argument("--steps", type=int, default=150, help="training steps of the others")
    parser.add_argument("--episodes", type=int, default=150, help="test episodes of the others")
    parser.add_argument("--our-episodes", type=int, default=10_000, help="test episodes of pyro_vsm")
    parser.add_argument("--workers", type=int, default=min(8, os.cpu_count() or 1), help="of easyfsl's loaders")
    parser.add_argument("--seconds", type=float, default=2.0, help="about how long our steps are timed")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path)
    a = parser.parse_args()
    try:
        import easyfsl  # noqa: F401
    except ImportError:
        print("peers.py needs easyfsl: pip install easyfsl", file=sys.stderr)
        return 2
    device = pick_device(a.device)
    with tempfile.TemporaryDirectory() as folder:
        root = a.images
        if root is None:
            root = Path(folder)
            make_images(root, a.classes, a.per_class, a.size)
        us = ours(a, root, device)
        log("pyro_vsm: " + ", ".join(f"{k} {v:.5f} s" for k, v in us.items()))
        them = peer(a, root, device)
        log("easyfsl: " + ", ".join(f"{k} {v:.5f} s" for k, v in them.items()))
        others = second_peer(a, root, device)
        log("learn2learn: " + (", ".join(f"{k} {v:.5f} s" for k, v in others.items()) or "not installed"))
    rows = table(a, them, others, us)
    notes = [
        f"{machine(device)}; easyfsl with {a.workers} worker processes.",
        f"{a.way}-way {a.shot}-shot, {a.queries} queries, {a.size}x{a.size} pixels, Conv-4. easyfsl: float32, one "
        "episode a step (its way), images decoded when shown. learn2learn: likewise, images in memory as floats, not "
        "augmented. pyro_vsm: images resident on the device"
        + (", bfloat16, compiled, captured." if device.type == "cuda" else "."),
        f"Once, not counted in training: decoding all images {us['decode, all']:.2f} s. Evaluation counts decoding "
        "(of all splits; where images were loaded before, none) and encoding.",
    ]
    title = "The same prototypical network with easyfsl, learn2learn and pyro_vsm"
    log("\n".join(["", title, "", report.to_text(rows), "", *notes]))
    if a.out:
        report.write_report(rows, a.out, "peers", title, notes)
    return 0


if __name__ == "__main__":
    sys.exit(main())
