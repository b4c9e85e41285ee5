"""Figures of a training run, from its metrics log."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pyro_vsm.errors import UserError
from pyro_vsm.plots.style import figure, look, shown, styled

Record = Mapping[str, Any]


def _series(records: Sequence[Record], key: str) -> tuple[list[float], list[float]]:
    """Steps and values of the records that hold `key`."""
    chosen = [(i, record) for i, record in enumerate(records) if record.get(key) is not None]
    for i, record in chosen:
        if not isinstance(record.get("step"), (int, float)) or not isinstance(record[key], (int, float)):
            raise UserError(f"metrics record {i} has no number as its step or as its {key}: log both as numbers")
    return [record["step"] for _, record in chosen], [record[key] for _, record in chosen]


def _curve(ax: Axes, i: int, steps: Sequence[float], values: Sequence[float], label: str) -> None:
    ax.plot(steps, values, label=label, markevery=max(1, len(steps) // 8), **look(i))


def _by_step(ax: Axes, ylabel: str) -> None:
    ax.set_xlabel("training step")
    ax.set_ylabel(ylabel)
    ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    ax.grid(True)


@styled
def learning_curves(
    records: Sequence[Record],
    quantities: Mapping[str, str] | None = None,
    splits: Sequence[str] = ("train", "validation"),
) -> Figure:
    """Loss and accuracy over the training steps, one panel a quantity, one curve a split.

    Args:
        records: lines of the metrics log: `step` and any of `train/loss`, `validation/accuracy`, ...; a record
            may hold some keys only. A band is drawn where `<key>_95` holds the half width of an interval.
        quantities: axis label by name; accuracies are fractions in the log and shown in percent.
        splits: what comes before the slash.

    Raises:
        UserError: if no record holds any of the quantities.
    """
    quantities = quantities or {"loss": "loss (nats a query)", "accuracy": "accuracy (%)"}
    shown = {
        quantity: {split: f"{split}/{quantity}" for split in splits if _series(records, f"{split}/{quantity}")[0]}
        for quantity in quantities
    }
    shown = {quantity: keys for quantity, keys in shown.items() if keys}
    if not shown:
        raise UserError(
            f"none of {len(records)} metrics records holds {', '.join(f'{splits[0]}/{q}' for q in quantities)}: "
            "give the log of a training run"
        )
    fig = figure(3.4 * len(shown), 2.7)
    for ax, (quantity, keys) in zip(fig.subplots(1, len(shown), squeeze=False)[0], shown.items()):
        factor = 100.0 if "accuracy" in quantity else 1.0
        for split, key in keys.items():
            i = list(splits).index(split)
            steps, values = _series(records, key)
            _curve(ax, i, steps, [factor * v for v in values], split)
            sure = [r for r in records if r.get(key) is not None and r.get(f"{key}_95") is not None]
            steps, mean = _series(sure, key)
            middle, half = factor * np.array(mean), factor * np.array(_series(sure, f"{key}_95")[1])
            if sure:
                ax.fill_between(steps, middle - half, middle + half, color=look(i)["color"], alpha=0.2, lw=0)
        _by_step(ax, quantities[quantity])
        ax.legend()
    return fig


@styled
def objective_terms(records: Sequence[Record], prefix: str = "train") -> Figure:
    """The parts of the objective over the training steps: log-likelihood above, KL divergences below.

    Args:
        records: lines of the metrics log with `step`, `<prefix>/log_likelihood` (nats a query) and any of
            `<prefix>/kl_z`, `<prefix>/kl_m`, ... (nats a class).
        prefix: what comes before the slash.

    Raises:
        UserError: if no record holds the log-likelihood or none a divergence.
    """
    keys = {key for record in records for key in record if key.startswith(f"{prefix}/kl_")}
    names = sorted((key for key in keys if _series(records, key)[0]), reverse=True)  # z before m
    steps, values = _series(records, f"{prefix}/log_likelihood")
    if not steps or not names:
        raise UserError(
            f"none of {len(records)} metrics records holds {prefix}/log_likelihood and {prefix}/kl_z or "
            f"{prefix}/kl_m: give the log of a variational model's training run"
        )
    fig = figure(4.6, 4.2)
    top, bottom = fig.subplots(2, 1, sharex=True)
    _curve(top, 0, steps, values, "log-likelihood")
    _by_step(top, "log-likelihood\n(nats a query)")
    top.set_xlabel("")
    everything: list[float] = []
    for i, name in enumerate(names):
        steps, values = _series(records, name)
        _curve(bottom, i + 1, steps, values, f"KL of {name.removeprefix(f'{prefix}/kl_')}")
        everything += values
    if min(everything) > 0 and max(everything) > 100 * min(everything):
        bottom.set_yscale("log")
    _by_step(bottom, "KL divergence\n(nats a class)")
    bottom.legend()
    return fig


@styled
def objective_by_run(runs: Mapping[str, Sequence[Record]], prefix: str = "train") -> Figure:
    """The parts of the objective of several runs over the training steps: one panel a part, one curve a run.

    Args:
        runs: lines of the metrics logs by the name of the run, as for :func:`objective_terms`.
        prefix: what comes before the slash.

    Raises:
        UserError: if no record of any run holds a part.
    """
    parts = {"log_likelihood": "log-likelihood (nats a query)", "kl_z": "KL of z (nats a class)",
             "kl_m": "KL of m (nats a class)"}  # fmt: skip
    found = {key: {name: _series(records, f"{prefix}/{key}") for name, records in runs.items()} for key in parts}
    found = {key: curves for key, curves in found.items() if any(steps for steps, _ in curves.values())}
    if not found:
        raise UserError(
            f"none of {len(runs)} runs has logged {prefix}/log_likelihood, {prefix}/kl_z or {prefix}/kl_m"
        )
    fig = figure(3.0 * len(found), 3.1)
    axes = fig.subplots(1, len(found), squeeze=False)[0]
    for ax, (key, curves) in zip(axes, found.items()):
        for i, (name, (steps, values)) in enumerate(curves.items()):
            if steps:
                _curve(ax, i, steps, values, shown(name))
        values = [v for _, vs in curves.values() for v in vs]
        if min(values) > 0 and max(values) > 100 * min(values):
            ax.set_yscale("log")
        _by_step(ax, parts[key])
    handles, labels = axes[0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside upper left", ncols=len(runs))
    return fig
