"""``pyro-vsm bench``."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace

HELP = """Measure what training, evaluation, the memory and loading cost on this machine.

Each measurement stands beside the floor measured in the same run. Examples:
  pyro-vsm bench step                       PN, VPN and VSM against the backbone alone, on random images
  pyro-vsm bench step --amp true --amp_heads true --compile true --compile_heads true --cuda_graph true
  pyro-vsm bench evaluation --episodes 1000
  pyro-vsm bench memory --entries [64,1000,10000]
  pyro-vsm bench loading --data.name mini-imagenet --data.root MINI_IMAGENET
  torchrun --nproc-per-node 2 -m pyro_vsm.cli bench parallel"""


def arguments(parser: ArgumentParser) -> None:
    """One mode each."""
    from pyro_vsm.bench.evaluation import EvaluationBenchConfig
    from pyro_vsm.bench.memory import MemoryConfig
    from pyro_vsm.bench.processes import ParallelConfig
    from pyro_vsm.bench.step import StepConfig
    from pyro_vsm.data import DataConfig

    modes = parser.add_subcommands(dest="mode", required=True)
    for name, config, text in (
        ("step", StepConfig, "A training step and its parts against the backbone's forward and backward."),
        ("evaluation", EvaluationBenchConfig, "Encoding a test split and answering its episodes."),
        ("memory", MemoryConfig, "Recall and consolidation against the number of entries."),
        ("parallel", ParallelConfig, "Several processes (torchrun) against one."),
    ):
        sub = ArgumentParser(description=text)
        modes.add_subcommand(name, sub, help=text)
        sub.add_class_arguments(config, None)
        _common(sub)
    sub = ArgumentParser(description="Decoding image files, and reading the cache afterwards.")
    modes.add_subcommand("loading", sub, help="Decoding image files, and reading the cache afterwards.")
    sub.add_class_arguments(DataConfig, "data")
    sub.add_argument("--device", type=str, default="auto", help="auto, cpu or cuda.")
    _common(sub)


def _common(parser: ArgumentParser) -> None:
    parser.add_argument("--out", type=str | None, help="Folder for tables (Markdown, JSON, CSV) and charts.")


def run(args: Namespace) -> None:
    """Measure and keep the results."""
    from pyro_vsm.bench import evaluation, loading, memory, processes, step
    from pyro_vsm.bench.charts import memory_chart, step_chart

    mode = args.mode
    given = args[mode]
    settings = {k: v for k, v in vars(given).items() if k not in ("out", "config", "data")}
    if mode == "step":
        rows, parts = step.run(step.StepConfig(**settings))
        _keep(given.out, "step", "A training step against the backbone alone", rows, settings)
        if parts:
            table = [{"part, ms": name, **{s: round(p[name], 3) if name in p else None for s, p in parts.items()}}
                     for name in max(parts.values(), key=len)]  # fmt: skip
            _keep(given.out, "parts", "Parts of a step, each timed alone (ms)", table, settings)
        _draw(given.out, "step", step_chart(rows, parts))
    elif mode == "evaluation":
        rows = evaluation.run(evaluation.EvaluationBenchConfig(**settings))
        _keep(given.out, mode, "Evaluation from images", rows, settings)
    elif mode == "memory":
        rows = memory.run(memory.MemoryConfig(**settings))
        _keep(given.out, mode, "Recall and consolidation against the number of entries", rows, settings)
        _draw(given.out, mode, memory_chart(rows))
    elif mode == "parallel":
        rows = processes.run(processes.ParallelConfig(**settings))
        _keep(given.out, mode, "Several processes against one", rows, settings)
    else:
        from pyro_vsm.data import DataConfig

        rows = loading.run(DataConfig(**vars(given.data)), given.device)
        _keep(given.out, mode, "Loading images", rows, settings)


def _keep(out: str | None, stem: str, title: str, rows: list[dict[str, Any]], settings: dict[str, Any]) -> None:
    """Print the table; with ``--out``, write it with what it was measured on."""
    from pyro_vsm import report
    from pyro_vsm.bench.timing import machine
    from pyro_vsm.training import pick_device

    device = pick_device(settings.get("device", "auto"))
    words = sys.argv[1:]
    if "--out" in words:  # says nothing of the measurement
        at = words.index("--out")
        words = words[:at] + words[at + 2 :]
    notes = [f"{machine(device)}.", f"Command: pyro-vsm {shlex.join(words)}"]
    print("\n".join(["", title, "", report.to_text(rows), "", *notes]))
    if out:
        report.write_report(rows, Path(out), stem, title, notes)


def _draw(out: str | None, stem: str, chart: Any) -> None:
    from pyro_vsm.plots import save

    if out:
        save(chart, Path(out) / f"{stem}.png", dpi=150)
