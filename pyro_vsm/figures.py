"""The plots of a folder of results: from its logs and tables, and from its trained models on its data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyro_vsm import plots
from pyro_vsm.errors import UserError
from pyro_vsm.metrics import Interval
from pyro_vsm.results import EpisodeResults
from pyro_vsm.run import read_metrics


def draw_run(folder: Path | str, out: Path | None = None, kind: str = "png") -> list[Path]:
    """Draw what a folder of results holds: learning curves, objective, calibration, accuracies, benchmarks.

    Args:
        folder: of a run, of results of evaluate or compare, of published results (``table.json`` and
            ``SYSTEM-metrics.jsonl``), or of measurements of bench.
        out: where to; by default ``folder/plots``.
        kind: png, pdf or svg.

    Returns:
        The files written.

    Raises:
        UserError: the folder holds none of these, or a damaged file.
    """
    folder = Path(folder)
    logs = {p.parent.name: p for p in sorted(folder.glob("*/metrics.jsonl"))}
    logs |= {p.name.removesuffix("-metrics.jsonl"): p for p in sorted(folder.glob("*-metrics.jsonl"))}
    results = {
        p.stem.removeprefix("episodes-"): EpisodeResults.load(p)
        for p in sorted(folder.glob("episodes-*.safetensors"))
    }
    figures: dict[str, Any] = {}
    for name, path in logs.items():
        records = read_metrics(path)
        figures[f"{name}-learning"] = plots.learning_curves(records)
        if any("train/kl_z" in r for r in records):
            figures[f"{name}-objective"] = plots.objective_terms(records)
    intervals = {name: r.interval("accuracy") for name, r in results.items()} or _table_accuracies(folder)
    if results:
        figures["reliability"] = plots.reliability_diagram(results)
        figures["rejection"] = plots.rejection_curve(results)
    if intervals:
        figures["accuracy"] = plots.accuracy_by_system(intervals)
    figures |= _benchmarks(folder)
    if not figures:
        raise UserError(f"{folder} holds no run; give a folder made by pyro-vsm train, evaluate, compare or bench")
    target = out or folder / "plots"
    return [plots.save(figure, target / f"{name}.{kind}") for name, figure in figures.items()]


def _rows(path: Path) -> list[dict[str, Any]]:
    """Of a table written as JSON; none if there is no such file."""
    if not path.is_file():
        return []
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
        return [dict(row) for row in rows]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is no table of pyro-vsm ({error}); make it again") from error


def _table_accuracies(folder: Path) -> dict[str, Interval]:
    try:
        return {str(row["system"]): Interval(**row["accuracy"]) for row in _rows(folder / "table.json")}
    except (KeyError, TypeError) as error:
        raise UserError(f"{folder / 'table.json'} has rows without system and accuracy ({error})") from error


def _benchmarks(folder: Path) -> dict[str, Any]:
    from pyro_vsm.bench.charts import memory_chart, step_chart

    figures: dict[str, Any] = {}
    try:
        if steps := _rows(folder / "step.json"):
            parts: dict[str, dict[str, float]] = {}
            for row in _rows(folder / "parts.json"):
                name = row.pop("part, ms")
                for system, ms in row.items():
                    if ms is not None:
                        parts.setdefault(system, {})[name] = ms
            figures["step"] = step_chart(steps, parts)
        if rows := _rows(folder / "memory.json"):
            figures["memory"] = memory_chart(rows)
    except (KeyError, TypeError) as error:
        raise UserError(f"a table in {folder} is no measurement of pyro-vsm bench: {error} is missing") from error
    return figures


def draw_models(
    folder: Path | str,
    out: Path | None = None,
    kind: str = "png",
    *,
    shots: list[int] | None = None,
    episodes: int = 200,
    root: str | None = None,
    device: str = "auto",
) -> list[Path]:
    """Draw what the trained models of a run do on its test classes.

    Accuracy by shot of all systems; for each system confusions among the test classes; for VSM the first test episode
    as a map of prototypes and what the memory recalls in it.

    Args:
        folder: of the run.
        out: where to; by default ``folder/plots``.
        kind: png, pdf or svg.
        shots: of the accuracies by shot.
        episodes: behind accuracies and confusions.
        root: where the data set lies now.
        device: where to compute.

    Raises:
        UserError: no run, missing data, or too few images for a number of shots.
    """
    from pyro_vsm import data as data_sources
    from pyro_vsm.data.episodes import fixed_episodes
    from pyro_vsm.evaluation import evaluate, split_features
    from pyro_vsm.loading import load, read_config
    from pyro_vsm.vsm import VSM

    folder = Path(folder)
    target = out or folder / "plots"
    config = read_config(folder)
    config.data.root = root or config.data.root
    found = [name for name in config.systems if (folder / name / "model.safetensors").is_file()]
    if not found or episodes < 2:
        raise UserError(f"{folder} holds no trained model, or episodes={episodes} is below 2; train first")
    data = data_sources.load(config.data, lambda _: None)
    e = config.evaluation
    split = getattr(data, e.split)
    way, queries = e.way or config.episodes.way, e.queries
    by_shot: dict[str, dict] = {}
    written = []
    for name in found:
        model = load(folder / name, device=device)
        features = split_features(model, split, device=next(model.parameters()).device)
        by_shot[name] = {}
        for shot in sorted(set(shots or [1, 2, 5])):
            drawn = fixed_episodes(split, way=way, shot=shot, queries=queries, episodes=episodes, seed=e.seed)
            result = evaluate(model, features, drawn, samples=e.samples, seed=e.seed)
            by_shot[name][shot] = result.interval("accuracy")
        drawn = fixed_episodes(
            split, way=way, shot=config.episodes.shot, queries=queries, episodes=episodes, seed=e.seed
        )
        counts = confusions(model, features, drawn, split.n_classes, samples=e.samples, seed=e.seed)
        written.append(plots.save(plots.confusion_matrix(counts, split.names), target / f"{name}-confusion.{kind}"))
        if isinstance(model, VSM):
            written += _draw_episode(model, name, data, split, drawn[:1], features, target, kind)
    written.append(plots.save(plots.accuracy_by_shot(by_shot), target / f"accuracy-by-shot.{kind}"))
    return written


def confusions(model, features: Tensor, episodes, classes: int, *, samples: int = 50, seed: int = 0) -> Tensor:
    """How often queries of a class were taken for another when both were in the episode, ``[classes, classes]``.

    Args:
        model: in evaluation mode.
        features: of all images of the split.
        episodes: of the split.
        classes: of the split.
        samples, seed: of the posterior.
    """
    from pyro_vsm.evaluation import predict_probabilities

    p, labels = predict_probabilities(model, features, episodes, samples=samples, seed=seed)
    true = episodes.classes.cpu()[:, labels]
    taken = episodes.classes.cpu().gather(1, p.argmax(-1))
    flat = (true * classes + taken).flatten()
    return torch.bincount(flat, minlength=classes**2).view(classes, classes)


def draw_pretrained(
    source: str,
    out: Path | None = None,
    kind: str = "png",
    *,
    pictures: str | None = None,
    root: str | None = None,
    device: str = "auto",
) -> list[Path]:
    """Draw what a trained model makes of one episode: prototypes, and what the memory recalls.

    The episode comes from somebody's pictures; or from the test classes of the model's own data set, where it is
    rendered or its folder is given; or else from the colour-glyphs, which need no files.

    Args:
        source: name of a pretrained model, or a checkpoint.
        out: where to; by default ``plots/source``.
        kind: png, pdf or svg.
        pictures: folder with a folder of pictures for each class.
        root: folder of the model's own data set.
        device: where to compute.

    Raises:
        UserError: no such model, one without posterior, or pictures that make no episode.
    """
    from pyro_vsm import data as data_sources
    from pyro_vsm.config import Config
    from pyro_vsm.cross_domain import fitted
    from pyro_vsm.data import DataConfig
    from pyro_vsm.data.episodes import fixed_episodes
    from pyro_vsm.data.folder import read_class_folders
    from pyro_vsm.evaluation import encode_all
    from pyro_vsm.loading import load_model
    from pyro_vsm.vsm import VSM

    model, meta = load_model(source, device=device)
    if not isinstance(model, VSM):
        raise UserError(f"{source} has no posterior to draw (system {meta['system']!r}); give a vsm or vpn")
    config = Config.from_dict(meta["config"])
    data, what = None, ""
    if pictures is not None:
        backbone = model.encoder.backbone
        images, what = read_class_folders(pictures, backbone.image_size, backbone.channels), pictures
    elif root is not None or config.data.name in ("glyphs", "colour-glyphs"):
        config.data.root = root or config.data.root
        data = data_sources.load(config.data, lambda _: None)
        images, what = data.test, f"test classes of {data.name}"
    else:
        images = fitted(data_sources.load(DataConfig("colour-glyphs"), lambda _: None).test, model)
        what = f"test classes of colour-glyphs ({config.data.name} needs its folder: --data.root)"
    print(f"{source} on {what}")
    most = int(images.counts.sort(descending=True).values[: config.episodes.way][-1])
    if images.n_classes < 2 or most < 2:
        raise UserError(f"{what}: an episode needs two classes of two images each, one to learn from and one to ask")
    shot = min(config.episodes.shot, most - 1)
    queries = min(8, most - shot)
    way = min(config.episodes.way, int((images.counts >= shot + queries).sum()), 7)
    episodes = fixed_episodes(images, way=way, shot=shot, queries=queries, episodes=3, seed=3)[2:3]
    used = torch.cat([episodes.support[0].flatten(), episodes.query[0].flatten()])
    features = images.images.new_zeros(len(images.images), model.dim, dtype=torch.float32)
    device_of = next(model.parameters()).device
    features[used] = encode_all(model, images.images[used], device=device_of).cpu()
    target = out or Path("plots") / Path(source).name
    return _draw_episode(model, Path(source).name, data, images, episodes, features.to(device_of), target, kind)


def _draw_episode(model, name: str, data, split, episode, features: Tensor, target: Path, kind: str) -> list[Path]:
    """Prototypes and recall of one episode; of the memory's classes pictures and names where their data is there."""
    support, query = features[episode.support[0].to(features.device)], features[episode.query[0].to(features.device)]
    torch.manual_seed(0)
    belief = model.infer(support, query.flatten(0, 1), samples=500)
    labels = torch.arange(episode.way).repeat_interleave(episode.queries)
    names = [split.names[i] for i in episode.classes[0].tolist()]
    figure = plots.prototype_map(belief.support, belief.query, labels, belief.z, names)
    written = [plots.save(figure, target / f"{name}-prototypes.{kind}")]
    filled = model.memory.filled.cpu()
    if filled.any() and belief.addressing.sum() > 0.5:  # there is a memory, and it is read
        classes = model.memory.classes[: model.memory.capacity].cpu()[filled]
        weights = belief.addressing.cpu()[:, filled]
        rows = split.images[episode.support[0, :, 0].cpu()]
        known = data is not None and int(classes.max()) < data.train.n_classes
        columns = [data.train.names[i] if known else f"class {i}" for i in classes.tolist()]
        entries = data.train.images[data.train.offsets.cpu()[classes]] if known else None
        figure = plots.addressing_heatmap(weights, names, columns, rows, entries)
        written.append(plots.save(figure, target / f"{name}-recall.{kind}"))
        if entries is not None:
            figure = plots.recalled_entries(weights, rows, entries, names, columns)
            written.append(plots.save(figure, target / f"{name}-recalled.{kind}"))
    return written
