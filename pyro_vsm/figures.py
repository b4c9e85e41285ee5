"""The plots of a run folder: from its logs and results, and from its trained models on its data."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from pyro_vsm import plots
from pyro_vsm.errors import UserError
from pyro_vsm.results import EpisodeResults
from pyro_vsm.run import read_metrics


def draw_run(folder: Path | str, out: Path | None = None, kind: str = "png") -> list[Path]:
    """Draw what a run folder holds: learning curves, objective, reliability, rejection, accuracies.

    Args:
        folder: of a run, or of results.
        out: where to; by default ``folder/plots``.
        kind: png, pdf or svg.

    Returns:
        The files written.

    Raises:
        UserError: the folder holds no run.
    """
    folder = Path(folder)
    logs = sorted(folder.glob("*/metrics.jsonl"))
    results = {
        p.stem.removeprefix("episodes-"): EpisodeResults.load(p)
        for p in sorted(folder.glob("episodes-*.safetensors"))
    }
    if not logs and not results:
        raise UserError(f"{folder} holds no run; give a folder made by pyro-vsm train")
    target = out or folder / "plots"
    written = []
    for path in logs:
        records = read_metrics(path)
        name = path.parent.name
        written.append(plots.save(plots.learning_curves(records), target / f"{name}-learning.{kind}"))
        if any("train/kl_z" in r for r in records):
            written.append(plots.save(plots.objective_terms(records), target / f"{name}-objective.{kind}"))
    if results:
        written.append(plots.save(plots.reliability_diagram(results), target / f"reliability.{kind}"))
        written.append(plots.save(plots.rejection_curve(results), target / f"rejection.{kind}"))
        intervals = {name: r.interval("accuracy") for name, r in results.items()}
        written.append(plots.save(plots.accuracy_by_system(intervals), target / f"accuracy.{kind}"))
    return written


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


def _draw_episode(model, name: str, data, split, episode, features: Tensor, target: Path, kind: str) -> list[Path]:
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
        columns = [data.train.names[i] if i < data.train.n_classes else f"class {i}" for i in classes.tolist()]
        weights = belief.addressing.cpu()[:, filled]
        figure = plots.addressing_heatmap(weights, names, columns)
        written.append(plots.save(figure, target / f"{name}-recall.{kind}"))
        first = data.train.offsets.cpu()[classes.clamp_max(data.train.n_classes - 1)]
        figure = plots.recalled_entries(
            weights, split.images[episode.support[0, :, 0].cpu()], data.train.images[first], names, columns
        )
        written.append(plots.save(figure, target / f"{name}-recalled.{kind}"))
    return written
