"""Trained models on data sets that they were not trained on: one table for all models and data sets.

python experiments/cross_domain/measure.py MODEL ... --target NAME[:VARIANT][=ROOT] ... --out FOLDER

A MODEL is a run folder, a system's folder, a model file or the name of a pretrained model, with `LABEL=` before it
where its system is not name enough. Models that share label, training data and shots are training seeds of one row.
Each is tested with the shots it was trained with, on the same episodes as all others, from a target's test classes;
of the target `folder`, from all. Differences are paired with the row PN of the same training data and shots.

Of each target, the nearest mean of raw pixels is a row as well: what is not above it has not carried over.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from pyro_vsm import plots, report
from pyro_vsm.config import Config
from pyro_vsm.cross_domain import DataChoice, evaluation_images, fitted
from pyro_vsm.data.episodes import EpisodeIndex, fixed_episodes
from pyro_vsm.data.images import ClassImages
from pyro_vsm.data.sources import SOURCES
from pyro_vsm.errors import UserError
from pyro_vsm.evaluation import evaluate_model
from pyro_vsm.jobs import hardware
from pyro_vsm.loading import load_model
from pyro_vsm.replicates import over_both, over_episodes, spread
from pyro_vsm.results import EpisodeResults
from pyro_vsm.training import pick_device

REFERENCE = "PN"
RAW = "raw pixels, nearest mean"


@dataclass
class Group:
    """Training seeds of one system.

    Attributes:
        label: of the system.
        trained: name of the training data.
        shot: images a class in training episodes.
        paths: models by training seed.
        results: by training seed, on the present target.
    """

    label: str
    trained: str
    shot: int
    paths: dict[int, str] = field(default_factory=dict)
    results: dict[int, EpisodeResults] = field(default_factory=dict)


class RawPixels:
    """Features are the pixels themselves; the probabilities are good for a ranking only."""

    def encode(self, images: Tensor) -> Tensor:
        """Pixels in [0, 1], ``[B, C * H * W]``."""
        return images.flatten(1).float() / 255

    def predict(self, support: Tensor, query: Tensor, samples: int) -> Tensor:
        """Softmax of negative squared distances to the mean examples, ``[T, Q, N]``."""
        return (-torch.cdist(query, support.mean(2)).square()).softmax(-1)


def read_models(words: Sequence[str]) -> tuple[list[Group], list[str], list[dict[str, Any]]]:
    """The models by row, their paths, and what each says of itself."""
    groups: dict[tuple[str, str, int], Group] = {}
    paths, metas = [], []
    for word in words:
        label, equals, path = word.rpartition("=")
        meta = load_model(path)[1]
        config = Config.from_dict(meta["config"])
        key = (label if equals else str(meta["system"]).upper(), config.data.name, config.episodes.shot)
        group = groups.setdefault(key, Group(*key))
        seed = config.training.seed
        if seed in group.paths:
            raise UserError(
                f"{path} and {group.paths[seed]} are both {' '.join(map(str, key))}-shot with training seed {seed}: "
                "give one of them another label, LABEL=MODEL"
            )
        group.paths[seed] = path
        paths.append(path)
        metas.append(meta)
    return list(groups.values()), paths, metas


def read_target(word: str) -> DataChoice:
    """``NAME[:VARIANT][=ROOT]``."""
    name, _, root = word.partition("=")
    name, _, variant = name.partition(":")
    if name not in SOURCES:
        raise UserError(f"--target {word}: there is no data set {name!r}; known are {', '.join(sorted(SOURCES))}")
    return DataChoice(name=name, root=root or None, variant=variant or None, all_classes=name == "folder")


def measure(
    groups: Sequence[Group], data: ClassImages, args: argparse.Namespace, target: str
) -> list[dict[str, Any]]:
    """The lines of one target, by shots."""
    device = pick_device(args.device)
    episodes: dict[int, EpisodeIndex] = {}
    for shot in sorted({g.shot for g in groups}):
        settings = {"way": args.way, "queries": args.queries, "episodes": args.episodes, "seed": 0}
        episodes[shot] = fixed_episodes(data, shot=shot, **settings)
    work = [(g, seed) for g in groups for seed in g.paths]
    for group, seed in tqdm(work, desc=target, unit="model", disable=None, leave=False):
        model = load_model(group.paths[seed])[0].to(device)
        images, index = fitted(data, model), episodes[group.shot]
        group.results[seed] = evaluate_model(model, images, index, samples=args.samples, device=device)
    lines: list[dict[str, Any]] = []
    for shot, index in episodes.items():
        raw = evaluate_model(RawPixels(), data, index, samples=1, device=device)
        line = {"target": target, "trained_on": None, "system": RAW, "way": args.way, "shot": shot, "seeds": None}
        lines.append({**line, "accuracy": raw.interval("accuracy")})
        lines += [summary(g, groups, line) for g in groups if g.shot == shot]
    return lines


def summary(group: Group, groups: Sequence[Group], line: dict[str, Any]) -> dict[str, Any]:
    """One row of the table."""

    def stack(g: Group, metric: str) -> Tensor:
        return torch.stack([getattr(g.results[seed], metric) for seed in sorted(g.paths)])

    fit = {g.label: g for g in groups if (g.trained, g.shot) == (group.trained, group.shot)}
    other = fit.get(REFERENCE)
    paired = other is not None and other is not group and set(other.paths) == set(group.paths)
    by_seed = spread([float(r.accuracy.mean()) for r in group.results.values()])
    found: dict[str, Any] = {**line, "trained_on": group.trained, "system": group.label, "seeds": len(group.paths)}
    found["accuracy"] = over_episodes(stack(group, "accuracy"))
    found["accuracy_seed_sd"] = by_seed.sd if len(group.paths) > 1 else None
    found["accuracy_by_seed"] = " ".join(
        f"{float(group.results[s].accuracy.mean()):.4f}" for s in sorted(group.paths)
    )
    for metric in ("accuracy", "nll"):
        difference = over_both(stack(group, metric) - stack(other, metric)) if paired and other else None
        found[f"{metric}_difference"] = difference
    found["nll"] = over_episodes(stack(group, "nll"))
    found["ece"] = spread([r.ece for r in group.results.values()]).mean
    return found


COLUMNS = (
    "target", "trained_on", "system", "shot", "seeds", "accuracy", "accuracy_seed_sd", "accuracy_difference", "nll",
    "nll_difference", "ece",
)  # fmt: skip


def chart(rows: Sequence[dict[str, Any]], shot: int) -> Any:
    """Accuracies, a panel a target."""
    panels: dict[str, list[plots.TablePoint]] = {}
    several = len({row["trained_on"] for row in rows if row["trained_on"]}) > 1
    for row in rows:
        if row["shot"] == shot:
            label = f"{row['system']} ({row['trained_on']})" if several and row["trained_on"] else row["system"]
            seeds = [float(v) for v in (row.get("accuracy_by_seed") or "").split()]
            panels.setdefault(row["target"], []).append(plots.TablePoint(label, row["accuracy"], seeds))
    return plots.table_chart(panels)


def main(argv: Sequence[str] | None = None) -> int:
    """Make the table; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="MODEL")
    parser.add_argument("--target", action="append", required=True, metavar="NAME[:VARIANT][=ROOT]")
    parser.add_argument("--way", type=int, default=5, help="classes in an episode")
    parser.add_argument("--queries", type=int, default=15, help="queries a class")
    parser.add_argument("--episodes", type=int, default=2000, help="how many")
    parser.add_argument("--samples", type=int, default=100, help="posterior samples")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--out", default="cross_domain", help="folder of the table")
    args = parser.parse_args(argv)
    try:
        run(args)
    except UserError as error:
        print(f"measure.py: {error}", file=sys.stderr)
        return 2
    return 0


def run(args: argparse.Namespace) -> None:
    """Evaluate, print and write."""
    started = time.perf_counter()
    groups, paths, metas = read_models(args.models)
    rows, notes = [], []
    choices = [(word, read_target(word)) for word in args.target]

    def log(line: str) -> None:
        if not line.startswith("Note:"):  # that a model was trained on other images is the point
            print(line)

    for word, choice in choices:
        data, _ = evaluation_images(paths, metas, "test", choice, log)
        name = str(choice.name)
        if sum(other.name == name for _, other in choices) > 1:
            name += f" {Path(choice.root or '').name or choice.variant}"
        rows += measure(groups, data, args, name)
        which = "all classes" if choice.all_classes else "test classes"
        notes.append(f"{word.partition('=')[0]}: {which}, {data.identity()}.")
    shapes = sorted({f"{m['images']['channels']}x{m['images']['size']}x{m['images']['size']}" for m in metas})
    hidden = " ".join(f"--target {word.partition('=')[0]}" + "=ROOT" * ("=" in word) for word in args.target)
    notes = [
        f"Made by `python experiments/cross_domain/measure.py MODEL ... {hidden} --episodes {args.episodes} "
        f"--samples {args.samples}`.",
        *notes,
        f"Each model is given the images as it was trained on: {', '.join(shapes)}.",
        f"{args.way}-way, {args.episodes} episodes (seed 0) of {args.queries} queries a class, the same for every "
        f"row of a target and number of shots; {args.samples} posterior samples where a system samples.",
        "± beside a mean: 95 % interval over episodes of the training seeds' average. Δ: paired difference to PN of "
        "the same training data and shots; its interval covers seeds and episodes, with one seed the episodes only.",
        f"Hardware: {hardware(pick_device(args.device))}; {time.perf_counter() - started:.0f} s.",
    ]
    title = "Trained on one data set, tested on others"
    written = report.write_report(rows, args.out, "table", title, notes, COLUMNS)
    for shot in sorted({row["shot"] for row in rows}):
        written.append(plots.save(chart(rows, shot), Path(args.out) / f"{args.way}way_{shot}shot.png"))
    print("\n".join([report.to_text(report.narrowed(rows, COLUMNS)), "", *notes, ""]))
    print(f"Written: {', '.join(map(str, written))}")


if __name__ == "__main__":
    sys.exit(main())
