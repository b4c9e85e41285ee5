"""A table of results by one command: train what is missing, evaluate on identical episodes, write and draw it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from pyro_vsm import data as data_sources
from pyro_vsm import parallel, report
from pyro_vsm.config import EvaluationConfig
from pyro_vsm.data import Splits
from pyro_vsm.errors import UserError
from pyro_vsm.jobs import Log
from pyro_vsm.tables.definition import read_table
from pyro_vsm.tables.devices import Key, share_out
from pyro_vsm.tables.lines import Found, command_line, lines_by_seed, remarks, summary
from pyro_vsm.tables.rows import Protocol, Row, Table
from pyro_vsm.tables.runs import TableRuns
from pyro_vsm.tables.scores import TableScores
from pyro_vsm.training import pick_device

COLUMNS = (
    "system", "protocol", "seeds", "accuracy", "accuracy_seed_sd", "paper", "accuracy_difference", "nll", "ece",
    "nll_tempered", "ece_tempered", "brier", "auroc", "training_seconds", "hardware",
)  # fmt: skip
"""Of the table for people; the files for programs hold more."""


def make_table(
    path: Path | str,
    out: Path | str,
    *,
    root: str | None = None,
    seeds: Sequence[int] | None = None,
    only: Sequence[str] = (),
    evaluation: Mapping[str, Any] | None = None,
    override: Mapping[str, Any] | None = None,
    device: str = "auto",
    force: bool = False,
    write: bool = True,
    log: Log = print,
) -> list[Path] | None:
    """Train, evaluate and write a table; what is there already is used again.

    Args:
        path: TABLE.yaml, see `definition`.
        out: folder of the tables; runs are kept in ``out/runs/ROW/seed-S``.
        root: folder of the data set.
        seeds: of the trainings, instead of the table's.
        only: rows to train and show, with what they need; others are shown if they have been evaluated before.
        evaluation: changes of `config.EvaluationConfig`: split, episodes, samples, seed.
        override: dotted settings laid over those of every row.
        device: where to compute.
        force: use runs of other settings or data.
        write: whether to write the table, or only to train and evaluate what it needs.
        log: receives what a user should read.

    Returns:
        The files written; None if a training was interrupted (the same command goes on).

    Raises:
        UserError: what is wrong with the definition, the data or what lies in ``out``.
    """
    table = read_table(path, seeds=seeds, override=_changes(root, device, override))
    wanted = _wanted(table, only)
    protocol, where = _protocol(table, evaluation), _device(table)
    if table.folds and protocol.split != "validation":
        raise UserError(
            f"{path}: a table with folds is for choosing and is evaluated on the classes left out, not on test "
            "classes; set evaluation.split to validation"
        )
    data = _load(table, log)
    runs = TableRuns(table, Path(out), data, force=force, log=log)
    scoring = TableScores(table, runs.data(table.seeds[0]), protocol, where)
    runs.check(wanted)
    for seed in table.seeds:  # a whole table of the first seed is there before the second begins
        for row in _needed(table, wanted, only, runs, seed):
            if not runs.train(row, seed):
                log("Go on with the same command.")
                return None

    found: Found = {r.name: {} for r in table.rows if r.shown and (r in wanted or (write and _trained(runs, r, log)))}
    for seed in table.seeds:
        if table.folds:
            scoring = TableScores(table, runs.data(seed), protocol, where)
        for row in [r for r in table.rows if r.name in found]:
            if row in wanted:
                log(f"{row.name}, seed {seed}: evaluating")
                found[row.name][seed] = scoring.of(runs.model(row, seed), row.protocols)
                continue
            kept = scoring.kept(runs.model(row, seed), row.protocols)
            if len(kept) == len(row.protocols):
                found[row.name][seed] = kept
            else:
                log(f"Left out: {row.name} is trained, but not evaluated like this; name it in --only, too")
                del found[row.name]
    if not write:
        return []
    shown = [r for r in table.rows if r.name in found]
    if not shown:
        log(f"No row to show: {', '.join(r.name for r in wanted)} are not shown.")
        return []
    given = command_line(path, root, seeds, only, evaluation or {}, override or {})
    return _write(table, shown, found, runs, data, protocol, where, given, log)


def make_side_by_side(
    path: Path | str,
    out: Path | str,
    devices: Sequence[str],
    command: Sequence[str],
    *,
    root: str | None = None,
    seeds: Sequence[int] | None = None,
    only: Sequence[str] = (),
    override: Mapping[str, Any] | None = None,
    evaluation: Mapping[str, Any] | None = None,
    force: bool = False,
    log: Log = print,
    **rest: Any,
) -> list[Path] | None:
    """As :func:`make_table`, rows and seeds each in a process of its own on one of several devices.

    Args:
        path, out, root, seeds, only, override, evaluation, force, log, rest: see :func:`make_table`.
        devices: where to compute; a device that stands there twice takes two at a time.
        command: the words of ``pyro-vsm table`` that say the same to a process, without rows, seeds and device.

    Returns:
        See :func:`make_table`.

    Raises:
        UserError: see :func:`make_table` and :func:`~pyro_vsm.tables.devices.share_out`.
    """
    table = read_table(path, seeds=seeds, override=_changes(root, devices[0], override))
    wanted = _wanted(table, only)
    # the images are decoded here, so that the processes find them in the cache
    runs = TableRuns(table, Path(out), _load(table, log), force=force, log=log)
    done = _done(runs, wanted, only, _protocol(table, evaluation), _device(table))
    del runs  # and the images it holds
    if not share_out(wanted, table.seeds, command, devices, Path(out) / "logs", done, log):
        return None
    same: dict[str, Any] = {"root": root, "seeds": seeds, "only": only, "override": override, "force": force}
    return make_table(path, out, evaluation=evaluation, device=devices[0], log=log, **same, **rest)


def _done(
    runs: TableRuns, rows: list[Row], only: Sequence[str], e: EvaluationConfig, device: torch.device
) -> set[Key]:
    """Which trainings are over, and evaluated if their row is shown, or needed by none that is not."""
    table, found = runs.table, set()
    scoring = None
    for seed in table.seeds:
        scoring = None if table.folds else scoring
        needed = _needed(table, rows, only, runs, seed)
        found |= {(row.name, seed) for row in rows if row not in needed}
        for row in needed:
            if not _over(runs, row, seed):
                continue
            if row.shown:
                if scoring is None:
                    scoring = TableScores(table, runs.data(seed), e, device)
                if len(scoring.kept(runs.model(row, seed), row.protocols)) < len(row.protocols):
                    continue
            found.add((row.name, seed))
    runs.forced.clear()
    return found


def _over(runs: TableRuns, row: Row, seed: int) -> bool:
    """Whether a training is finished; of one that differs its own process says so."""
    try:
        return runs.finished(row, seed)
    except UserError:
        return False


def _protocol(table: Table, evaluation: Mapping[str, Any] | None) -> EvaluationConfig:
    """Of all rows, with what a command changes."""
    first = next(r for r in table.rows if r.shown)
    return replace(first.config(table.seeds[0], Path).evaluation, **(evaluation or {}))


def _device(table: Table) -> torch.device:
    return pick_device(table.rows[0].config(table.seeds[0], Path).training.device)


def _load(table: Table, log: Log) -> Splits:
    """The images of a table, all folds of them."""
    config = table.rows[0].config(table.seeds[0], Path).data
    return data_sources.load(replace(config, fold=None) if table.folds else config, log)


def _changes(root: str | None, device: str, override: Mapping[str, Any] | None) -> dict[str, Any]:
    """Settings that a command lays over those of every row."""
    changes = dict(override or {})
    changes |= {"data.root": root} if root else {}
    return changes | ({"training.device": device} if device != "auto" else {})


def _trained(runs: TableRuns, row: Row, log: Log) -> bool:
    """Whether a row that was not asked for has been trained with every seed."""
    try:
        return all(runs.finished(row, seed) for seed in runs.table.seeds)
    except UserError as error:
        log(f"Left out: {error}")
        return False


def _asked(table: Table, only: Sequence[str]) -> set[str]:
    """Names of the rows asked for: those shown, where none is named."""
    return {table.row(name).name for name in only} or {r.name for r in table.rows if r.shown}


def _wanted(table: Table, only: Sequence[str]) -> list[Row]:
    """The rows to train: those asked for and, before them, what they need."""
    names = _asked(table, only)
    for row in reversed(table.rows):  # rows need only what stands above them
        if row.name in names:
            names |= set(row.needs)
    return [r for r in table.rows if r.name in names]


def _needed(table: Table, wanted: list[Row], only: Sequence[str], runs: TableRuns, seed: int) -> list[Row]:
    """Of the rows to train those asked for, and what they need as long as they are not finished without it."""
    names = _asked(table, only)
    for row in reversed(wanted):
        if row.name in names and not parallel.shared(_over(runs, row, seed)):
            names |= set(row.needs)
    return [r for r in wanted if r.name in names]


def _write(
    table: Table,
    shown: list[Row],
    found: Found,
    runs: TableRuns,
    data: Splits,
    e: EvaluationConfig,
    device: torch.device,
    command: str,
    log: Log,
) -> list[Path]:
    from pyro_vsm import plots  # Matplotlib is loaded for those who draw

    part, ending = ("left-out", "-folds") if table.folds else (e.split, "" if e.split == "test" else f"-{e.split}")
    stem = table.path.stem + ending
    records = {(row.name, s): runs.record(row, s) or {} for row in shown for s in table.seeds}
    rows = [
        summary(row, p, found, table, [records[row.name, s] for s in table.seeds], several=len(table.protocols) > 1)
        for p in table.protocols
        for row in shown
        if p in row.protocols
    ]
    notes = remarks(table, shown, runs, data, e, device, records, command)
    title = f"{table.title}: {e.episodes} {part} episodes of {e.queries} queries a class"
    written = report.write_report(rows, runs.out, stem, title, notes, COLUMNS)
    written += report.write_report(
        lines_by_seed(shown, found, records), runs.out, f"{stem}-seeds", f"{title}, by seed"
    )
    points: dict[str, list[plots.TablePoint]] = {}
    for line in rows:
        p = Protocol(line["way"], line["shot"])
        seeds = [float(found[line["row"]][s][p].accuracy.mean()) for s in table.seeds]
        point = plots.TablePoint(
            line["system"], line["accuracy"], seeds, line["paper"], line.get("accuracy_difference")
        )
        points.setdefault(str(p), []).append(point)
    figure = plots.table_chart(points, table.row(table.reference).label)
    written.append(plots.save(figure, runs.out / f"{stem}.png"))
    log("\n".join(["", title, "", report.to_text(report.narrowed(rows, COLUMNS)), "", *notes, ""]))
    log(f"Written: {', '.join(map(str, written))}")
    return written
