"""Charts of tables: systems under each other, with training seeds and published figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
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
        accuracy: mean over training seeds with its 95 % interval.
        seeds: the accuracy with each training seed.
        paper: the published accuracy.
    """

    label: str
    accuracy: Interval
    seeds: Sequence[float] = field(default=())
    paper: float | None = None


@styled
def table_chart(panels: Mapping[str, Sequence[TablePoint]]) -> Figure:
    """Accuracies of systems: means with intervals, training seeds as dots, published figures as open diamonds.

    Args:
        panels: the rows, first on top, by the name of the protocol; panels stand side by side.
    """
    if not panels or not all(panels.values()):
        raise UserError("the chart needs at least one row in each panel, but there is none")
    most = max(len(rows) for rows in panels.values())
    wide = max(len(shown(p.label)) for rows in panels.values() for p in rows)
    fig = figure(max(4.6, (2.9 + 0.065 * wide) * len(panels) + 0.4), 1.25 + 0.36 * most)  # the legend needs 4.6
    axes = fig.subplots(1, len(panels), squeeze=False)[0]
    several = any(len(p.seeds) > 1 for rows in panels.values() for p in rows)
    for ax, (name, rows) in zip(axes, panels.items()):
        for y, p in enumerate(rows):
            half = np.nan_to_num(100 * p.accuracy.half_width)
            bar = ax.errorbar(100 * p.accuracy.mean, y, xerr=half, fmt="o", color=COLOURS[0], capsize=3, zorder=3)
            if len(p.seeds) > 1:
                dots = ax.scatter(
                    [100 * v for v in p.seeds], [y + 0.24] * len(p.seeds), s=9, color=GREY, linewidths=0, zorder=2
                )
            if p.paper is not None:
                paper = ax.scatter(
                    100 * p.paper, y - 0.24, marker="D", s=22, facecolors="none", edgecolors=COLOURS[1], zorder=4
                )
        ax.set_yticks(range(len(rows)), [shown(p.label) for p in rows])
        ax.set_ylim(len(rows) - 0.4, -0.6)
        ax.xaxis.set_major_locator(MaxNLocator(6))
        ax.set_xlabel("accuracy (%)")
        ax.set_title(name, loc="left")
        ax.grid(True, axis="x")
        ax.tick_params(axis="y", length=0)
    axes[0].set_ylabel("system")
    handles, names = [bar], [f"{'mean of training seeds' if several else 'mean'} and 95 % interval over episodes"]
    if several:
        handles.append(dots)
        names.append("each training seed")
    if any(p.paper is not None for rows in panels.values() for p in rows):
        handles.append(paper)
        names.append("published")
    fig.legend(handles, names, loc="outside lower left", ncols=1 if len(panels) == 1 else 3, handlelength=2.0)
    return fig
