"""The plots of a run folder, from its logs and results."""

from __future__ import annotations

from pathlib import Path

from pyro_vsm import plots
from pyro_vsm.errors import UserError
from pyro_vsm.results import EpisodeResults
from pyro_vsm.run import read_metrics


def draw_run(folder: Path | str) -> list[Path]:
    """Draw what a run folder holds into ``folder/plots``: learning curves, objective, reliability, accuracies.

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
    target = folder / "plots"
    written = []
    for path in logs:
        records = read_metrics(path)
        name = path.parent.name
        written.append(plots.save(plots.learning_curves(records), target / f"{name}-learning.png"))
        if any("train/kl_z" in r for r in records):
            written.append(plots.save(plots.objective_terms(records), target / f"{name}-objective.png"))
    if results:
        written.append(plots.save(plots.reliability_diagram(results), target / "reliability.png"))
        intervals = {name: r.interval("accuracy") for name, r in results.items()}
        written.append(plots.save(plots.accuracy_by_system(intervals), target / "accuracy.png"))
    return written
