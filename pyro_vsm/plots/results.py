"""Figures of evaluation results: calibration, accuracies, confusions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from pyro_vsm import metrics
from pyro_vsm.errors import UserError
from pyro_vsm.metrics import Interval
from pyro_vsm.plots.style import COLOURS, GREY, array, figure, labelled, look, matrix_axes, shown, styled
from pyro_vsm.results import EpisodeResults


@styled
def reliability_diagram(results: Mapping[str, EpisodeResults], bins: int = metrics.BINS) -> Figure:
    """Accuracy against confidence, with the share of queries in each bin below; the diagonal is perfect.

    Args:
        results: by the name of the system.
        bins: equal-width bins of the confidence.
    """
    if not results:
        raise UserError("a reliability diagram needs the results of at least one system, but there are none")
    fig = figure(4.2, 4.8 + 0.17 * len(results))
    top, bottom = fig.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    top.plot([0, 100], [0, 100], color=GREY, lw=1, label="perfect calibration")
    for i, (name, result) in enumerate(results.items()):
        curve = metrics.reliability_curve(result.confidence, result.correct, bins)
        filled = (curve.count > 0).numpy()
        label = f"{shown(name)} (ECE {100 * result.ece:.1f} %)"
        x, y = (100 * values.numpy()[filled] for values in (curve.confidence, curve.accuracy))
        style = look(i)
        top.plot(x, y, label=label, clip_on=False, **style)
        style.pop("marker")
        share = (100 * curve.count / curve.count.sum()).numpy()
        bottom.stairs(share, 100 * curve.edges.numpy(), lw=1.5, **style)
    top.set_ylabel("accuracy of the bin (%)")
    top.set(xlim=(0, 100), ylim=(0, 100))
    fig.legend(loc="outside upper left")
    bottom.set_xlabel("confidence (%)")
    bottom.set_ylabel("queries (%)")
    for ax in (top, bottom):
        ax.grid(True)
    return fig


@styled
def accuracy_by_system(intervals: Mapping[str, Interval]) -> Figure:
    """Accuracies of systems with their 95 % intervals, best on top.

    Args:
        intervals: accuracy as a fraction, by the name of the system.
    """
    if not intervals:
        raise UserError("the plot needs the accuracy of at least one system, but there is none")
    ranked = sorted(intervals.items(), key=lambda item: item[1].mean)
    names = labelled([name for name, _ in ranked], len(ranked), "system")
    mean = np.array([100 * interval.mean for _, interval in ranked])
    half = np.nan_to_num([100 * interval.half_width for _, interval in ranked])
    fig = figure(6.4, 0.9 + 0.3 * len(ranked))
    ax = fig.subplots()
    rows = np.arange(len(ranked))
    ax.errorbar(mean, rows, xerr=half, fmt="o", color=COLOURS[0], capsize=3)
    for row, (_, interval) in enumerate(ranked):
        spread = f" ± {half[row]:.2f}" if interval.n > 1 else ""
        ax.annotate(f"{mean[row]:.2f}{spread}", (1.02, row), xycoords=("axes fraction", "data"), va="center")
    ax.set_yticks(rows, names)
    ax.xaxis.set_major_locator(MaxNLocator(6))
    ax.set_ylim(-0.6, len(ranked) - 0.4)
    ax.set_xlabel("accuracy (%), mean and 95 % interval")
    ax.set_ylabel("system")
    ax.grid(True, axis="x")
    return fig


@styled
def accuracy_by_shot(results: Mapping[str, Mapping[int, Interval]]) -> Figure:
    """Accuracy against the number of support images of a class, with 95 % intervals.

    Args:
        results: accuracy as a fraction, by system and shot.
    """
    shots = sorted({shot for points in results.values() for shot in points})
    if not shots:
        raise UserError("the plot needs at least one accuracy of one system, but there is none")
    fig = figure(4.2, 3.2)
    ax = fig.subplots()
    for i, (name, points) in enumerate(results.items()):
        x = sorted(points)
        mean = [100 * points[shot].mean for shot in x]
        half = np.nan_to_num([100 * points[shot].half_width for shot in x])
        ax.errorbar(x, mean, yerr=half, label=shown(name), capsize=3, markersize=4, **look(i))
    ax.set_xscale("log", base=2)
    ax.set_xticks(shots, [str(shot) for shot in shots])
    ax.minorticks_off()
    ax.set_xlabel("shot (support images a class)")
    ax.set_ylabel("accuracy (%)")
    ax.grid(True)
    ax.legend()
    return fig


@styled
def confusion_matrix(counts: Tensor, names: Sequence[str] | None = None, most: int = 40) -> Figure:
    """How often queries of one class are taken for another, in percent of the true class.

    Of more than 12 classes the diagonal is left out, beside which confusions could not be seen.

    Args:
        counts: `[N, N]`, true classes in rows, predicted ones in columns.
        names: of the classes.
        most: of more classes, so many are shown: those that are confused most often.
    """
    values = array(counts, "counts [true, predicted]", 2)
    total = len(values)
    if values.shape != (total, total) or values.min() < 0:
        raise UserError(f"a confusion matrix is square and not negative, but got shape {list(counts.shape)}")
    labels = labelled(names, total, "class")
    share = 100 * values / np.maximum(values.sum(1, keepdims=True), 1)
    if total > most:
        wrong = share - np.diag(share.diagonal())
        chosen = np.sort(np.argsort(-(wrong.sum(0) + wrong.sum(1)), kind="stable")[:most])
        share, labels = share[np.ix_(chosen, chosen)], [labels[i] for i in chosen]
    n = len(share)
    size = 2.2 + 0.42 * min(n, 12) if n <= 12 else 3 + 0.17 * min(n, 40)
    fig = figure(size + 0.9, size)
    ax = fig.subplots()
    few = n <= 12
    if few:
        image = ax.imshow(share, cmap="cividis", vmin=0, vmax=100)
    else:
        ax.set_facecolor("0.85")
        image = ax.imshow(np.ma.masked_array(share, np.eye(n, dtype=bool)), cmap="cividis", vmin=0)
    if few:
        for (row, column), value in np.ndenumerate(share):
            colour = "black" if value > 60 else "white"
            ax.text(column, row, f"{value:.0f}", ha="center", va="center", color=colour, fontsize=8)
    matrix_axes(ax, labels, labels)
    ax.set_xlabel("predicted class")
    ax.set_ylabel("true class" if n == total else f"true class ({n} of {total}, the most confused)")
    what = "queries of the true class (%)" if few else "queries taken for another class (%)"
    fig.colorbar(image, ax=ax, label=what, shrink=0.8)
    return fig
