"""What a table says: a line a system, a line a training seed, and the remarks below."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from pyro_vsm.config import EvaluationConfig
from pyro_vsm.data import Splits
from pyro_vsm.jobs import hardware
from pyro_vsm.replicates import over_both, over_episodes, spread
from pyro_vsm.tables.rows import Protocol, Row, Table
from pyro_vsm.tables.runs import TableRuns, source_digest
from pyro_vsm.tables.scores import Scores

Found = dict[str, dict[int, dict[Protocol, Scores]]]
"""Scores by row, seed and protocol."""

Records = Mapping[tuple[str, int], Mapping[str, Any]]
"""Of the trainings, by row and seed."""


def stack(found: Found, row: Row, p: Protocol, metric: str) -> torch.Tensor:
    """A metric of a row, `[S, E]`, seeds by episodes."""
    return torch.stack([getattr(by[p], metric) for by in found[row.name].values()])


def summary(
    row: Row, p: Protocol, found: Found, table: Table, records: Sequence[Mapping[str, Any]], *, several: bool
) -> dict[str, Any]:
    """One line of the table.

    ``accuracy``, ``nll``, ``brier``, ``auroc`` and ``nll_tempered`` have the interval `replicates.over_episodes`,
    ``accuracy_both`` and the paired differences to the reference, seed by seed, have `replicates.over_both`;
    ``ece``, ``ece_tempered`` and ``temperature`` are means over the seeds.

    Args:
        row, p: what the line is of.
        found: the scores.
        table: its definition.
        records: of the row's trainings.
        several: whether the table has several protocols.
    """
    scores = [by[p] for by in found[row.name].values()]
    by_seed = spread([float(s.accuracy.mean()) for s in scores])
    line: dict[str, Any] = {"system": row.label, "row": row.name}
    if several:
        line["protocol"] = str(p)
    line |= {"way": p.way, "shot": p.shot, "seeds": len(scores)}
    line["accuracy"] = over_episodes(stack(found, row, p, "accuracy"))
    line["accuracy_both"] = over_both(stack(found, row, p, "accuracy"))
    line["accuracy_seed_sd"] = by_seed.sd if by_seed.n > 1 else None
    line |= {"accuracy_seed_min": by_seed.low, "accuracy_seed_max": by_seed.high}
    line["paper"] = row.paper[p.shot] / 100 if p.shot in row.paper else None
    reference = table.row(table.reference)
    paired = row is not reference and reference.name in found and p in reference.protocols
    for metric in ("accuracy", "nll", "brier", "auroc", "nll_tempered"):
        if getattr(scores[0], metric) is None:
            continue
        mine = stack(found, row, p, metric)
        if metric != "accuracy":
            line[metric] = over_episodes(mine)
        difference = over_both(mine - stack(found, reference, p, metric)) if paired else None
        line[f"{metric}_difference"] = difference
    for name in ("ece", "ece_tempered", "temperature"):
        values = [getattr(s, name) for s in scores]
        if None not in values:
            line[name] = spread(values).mean
            line[f"{name}_seed_sd"] = spread(values).sd if len(values) > 1 else None
    seconds = [r["seconds"] for r in records if "seconds" in r]
    line["training_seconds"] = math.fsum(seconds) / len(seconds) if seconds else None
    line["hardware"] = "; ".join(sorted({str(r["hardware"]) for r in records if "hardware" in r}))
    line["note"] = row.note
    return line


def lines_by_seed(shown: list[Row], found: Found, records: Records) -> list[dict[str, Any]]:
    lines = []
    for row in shown:
        for seed, by in found[row.name].items():
            record = records[row.name, seed]
            for p, s in by.items():
                lines.append({
                    "row": row.name, "seed": seed, "protocol": str(p), "accuracy": over_episodes(s.accuracy[None]),
                    "nll": over_episodes(s.nll[None]), "brier": over_episodes(s.brier[None]), "ece": s.ece,
                    "temperature": s.temperature, "ece_tempered": s.ece_tempered,
                    "auroc": None if s.auroc is None else over_episodes(s.auroc[None]),
                    "validation_accuracy": record.get("validation_accuracy"), "best_step": record.get("best_step"),
                    "steps": record.get("steps"), "training_seconds": record.get("seconds"),
                    "hardware": record.get("hardware"), "source": " ".join(c[:12] for c in record.get("code", [])),
                })  # fmt: skip
    return lines


def remarks(
    table: Table,
    shown: list[Row],
    runs: TableRuns,
    data: Splits,
    e: EvaluationConfig,
    device: torch.device,
    records: Records,
    command: str,
) -> list[str]:
    """How the numbers came about, for the foot of the table."""
    count = len(table.seeds)
    notes = [*table.notes, f"Made by `{command}`."]
    if table.folds:
        notes.append(
            f"Cross-validation over classes: seed s trains without fold s mod {table.folds} of the training classes "
            f"({data.train.identity()}) and answers {e.episodes} episodes (seed {e.seed}) of that fold, the same for "
            f"every row; {e.samples} posterior samples where a system samples."
        )
    else:
        notes.append(
            f"Data: {getattr(data, e.split).identity()}. The same {e.episodes} episodes (seed {e.seed}) for every "
            f"row and training seed; {e.samples} posterior samples where a system samples."
        )
        notes += runs.config(shown[0], table.seeds[0]).data.remarks
    notes.append(
        f"Mean over {count} training seed{'s' * (count > 1)} ({', '.join(map(str, table.seeds))}). ± beside a mean: "
        "95 % interval over episodes of the seeds' average, 1.96 sd_e(mean_s y) / √E. The classes are held fixed"
        + (
            "; another seed's are others, so what Δ covers of the seeds holds for other classes, too."
            if table.folds
            else "."
        )
    )
    paired = (
        f"Δ: paired difference to {table.row(table.reference).label}, seed by seed on the same episodes; its 95 % "
        "interval covers "
    )
    notes.append(
        paired
        + (
            f"seeds and episodes: half² = t²({count - 1}) v_s/S + t²(E−1) v_e/E with v_s the variance over seeds of "
            "the mean over episodes (no less than what seed and episode make together) and v_e that of the episodes' "
            "effect (two-way analysis of variance)."
            if count > 1
            else "the episodes only, as there is one training seed: another training may differ by more."
        )
    )
    notes.append("ECE over 15 bins of the confidence, all queries of a trained model pooled; mean over seeds.")
    if table.temperature_episodes:
        also = " (here of the very classes that are tested)" if e.split == "validation" else ""
        notes.append(
            f"Tempered: each trained model's probabilities at the temperature with the least NLL on "
            f"{table.temperature_episodes} episodes of validation classes{also}."
        )
    if table.unknown:
        notes.append(
            "AUROC: queries of as many classes from outside the task told from those of the task by one minus the "
            "largest class probability; chance is 50 %."
        )
    if any(row.paper for row in shown):
        notes.append("Paper: as published there, under other recipes and on other episodes; no part of Δ.")
    notes += [f"{row.label}: {row.note}" for row in shown if row.note]
    for name in sorted({name for row in shown for name in row.needs}):
        starts = [runs.record(table.row(name), s) or {} for s in table.seeds]
        seconds = [r["seconds"] for r in starts if "seconds" in r]
        if seconds:
            notes.append(
                f"Training times are without that of {table.row(name).label!r}, which "
                f"{', '.join(row.label for row in shown if name in row.needs)} start from: "
                f"{math.fsum(seconds) / len(seconds):.0f} s a seed."
            )
    own = [records[row.name, s] for row in shown for s in table.seeds]
    trained = sorted({str(r["hardware"]) for r in own if "hardware" in r})
    notes.append(f"Trained on {'; '.join(trained) or 'unknown hardware'}; evaluated on {hardware(device)}.")
    versions = sorted({c[:12] for r in own for c in r.get("code", [])})
    notes.append(f"Source digests: trained with {', '.join(versions)}; evaluated with {source_digest()[:12]}.")
    notes += [f"Used although it differs from the definition (--force): {what}." for what in sorted(set(runs.forced))]
    return notes


def command_line(
    path: Path | str,
    root: str | None,
    seeds: Sequence[int] | None,
    only: Sequence[str],
    evaluation: Mapping[str, Any],
    override: Mapping[str, Any],
) -> str:
    """The command that makes the table again; places of this machine are left out of it."""
    words = ["pyro-vsm", "table", Path(path).name if Path(path).is_absolute() else Path(path).as_posix()]
    words += ["--data.root", "ROOT"] if root else []
    words += ["--seeds", *map(str, seeds)] if seeds else []
    words += ["--only", *only] if only else []
    words += settings_words(evaluation, [f"{name}={value}" for name, value in override.items()])
    return shlex.join(words)


def settings_words(evaluation: Mapping[str, Any], override: Sequence[str]) -> list[str]:
    """Words of ``pyro-vsm table`` that change the evaluation and lay ``NAME=VALUE`` over all rows."""
    words = [word for name, value in evaluation.items() for word in (f"--evaluation.{name}", str(value))]
    return [*words, "--override", *override] if override else words
