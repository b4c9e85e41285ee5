"""Charts of tables: systems under each other, with training seeds, published figures and paired differences."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pyro_vsm.errors import UserError
from pyro_vsm.metrics import Interval
from pyro_vsm.plots.style import COLOURS, GREY, figure, shown, styled


@dataclass(frozen=True)
class TablePoint:
    """A row of `table_chart`; accuracies are fractions.

    Attributes:
        label: of the system.
        accuracy: mean over training seeds with its 95 % interval over episodes.
        seeds: the accuracy with each training seed.
        paper: the published accuracy.
        difference: paired, to the reference, with its 95 % interval over seeds and episodes; None for the reference.
    """

    label: str
    accuracy: Interval
    seeds: Sequence[float] = field(default=())
    paper: float | None = None
    difference: Interval | None = None


@styled
def table_chart(panels: Mapping[str, Sequence[TablePoint]], reference: str = "the reference") -> Figure:
    """Accuracies of systems: means with intervals, training seeds as dots, published figures as open diamonds.

    Where there are paired differences they stand beside the accuracies: they decide, as they know that systems were
    tested on the same episodes, and that another training would have come out otherwise.

    Args:
        panels: the rows, first on top, by the name of the protocol; two panels stand side by side.
        reference: label of what the differences are to.
    """
    if not panels or not all(panels.values()):
        raise UserError("the chart needs at least one row in each panel, but there is none")
    most = max(len(rows) for rows in panels.values())
    wide = 0.065 * max(len(shown(p.label)) for rows in panels.values() for p in rows)
    paired = any(p.difference is not None for rows in panels.values() for p in rows)
    several = any(len(p.seeds) > 1 for rows in panels.values() for p in rows)
    beside = min(len(panels), 2)
    below = -(-len(panels) // beside)
    width = (2.9 + wide + 2.0 * paired) * beside + 0.4
    fig = figure(max(4.6, width), 0.8 + (0.45 + 0.2 * paired + 0.36 * most) * below)  # the legend needs 4.6
    columns = [2.5, 2.0] if paired else [1.0]
    grid = fig.subplots(below, len(columns) * beside, squeeze=False, width_ratios=columns * beside).flatten()
    legend: dict[str, Any] = {}
    for number, (name, rows) in enumerate(panels.items()):
        ax, *others = grid[number * len(columns) : (number + 1) * len(columns)]
        _accuracies(ax, rows, several, legend)
        ax.set_title(name, loc="left")
        if others:
            _differences(others[0], rows, reference, several, legend)
    for unused in grid[len(columns) * len(panels) :]:
        unused.remove()
    grid[0].set_ylabel("system")
    names = [n for n in _NAMES if n in legend]
    fig.legend([legend[n] for n in names], names, loc="outside lower left", ncols=beside, handlelength=2.0)
    return fig


_SEVERAL, _ONE = "mean of training seeds and 95 % interval over episodes", "mean and 95 % interval over episodes"
_SEEDS, _PAPER = "each training seed", "published"
_PAIRED, _PAIRED_ONE = "paired difference, 95 % interval over seeds and episodes", "paired difference, 95 % interval"
_NAMES = (_SEVERAL, _ONE, _SEEDS, _PAPER, _PAIRED, _PAIRED_ONE)


def _accuracies(ax: Axes, rows: Sequence[TablePoint], several: bool, legend: dict[str, Any]) -> None:
    for y, p in enumerate(rows):
        half = np.nan_to_num(100 * p.accuracy.half_width)
        bar = ax.errorbar(100 * p.accuracy.mean, y, xerr=half, fmt="o", color=COLOURS[0], capsize=3, zorder=3)
        legend[_SEVERAL if several else _ONE] = bar
        if len(p.seeds) > 1:
            legend[_SEEDS] = ax.scatter(
                [100 * v for v in p.seeds], [y + 0.24] * len(p.seeds), s=9, color=GREY, linewidths=0, zorder=2
            )
        if p.paper is not None:
            legend[_PAPER] = ax.scatter(
                100 * p.paper, y - 0.24, marker="D", s=22, facecolors="none", edgecolors=COLOURS[1], zorder=4
            )
    ax.set_yticks(range(len(rows)), [shown(p.label) for p in rows])
    _axis(ax, len(rows))
    ax.set_xlabel("accuracy (%)")


def _differences(ax: Axes, rows: Sequence[TablePoint], reference: str, several: bool, legend: dict[str, Any]) -> None:
    ax.axvline(0, color=GREY, linewidth=1, zorder=1)
    for y, p in enumerate(rows):
        if p.difference is not None:
            half = np.nan_to_num(100 * p.difference.half_width)
            legend[_PAIRED if several else _PAIRED_ONE] = ax.errorbar(
                100 * p.difference.mean, y, xerr=half, fmt="s", markersize=4, color=COLOURS[2], capsize=3, zorder=3
            )
    ax.set_yticks(range(len(rows)), [""] * len(rows))
    _axis(ax, len(rows))
    ax.set_xlabel("\n".join(textwrap.wrap(f"Δ to {shown(reference)} (points)", 26)))  # as wide as the axes


def _axis(ax: Axes, rows: int) -> None:
    ax.set_ylim(rows - 0.4, -0.6)
    ax.xaxis.set_major_locator(MaxNLocator(6))
    ax.grid(True, axis="x")
    ax.tick_params(axis="y", length=0)
