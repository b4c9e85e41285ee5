"""Figures of what the model believes of one episode."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Ellipse
from numpy.typing import NDArray
from torch import Tensor

from pyro_vsm.errors import UserError
from pyro_vsm.plots.style import COLOURS, LINES, MARKERS, array, figure, labelled, matrix_axes, styled

_MOST_ENTRIES = 40  # columns of a heat map whose labels can be read


@styled
def addressing_heatmap(
    weights: Tensor, rows: Sequence[str] | None = None, columns: Sequence[str] | None = None
) -> Figure:
    """Which memory entries each class of an episode recalls.

    Args:
        weights: `[N, C]`, in [0, 1]. Of more than 40 entries those with the largest weights are shown.
        rows: names of the episode's classes.
        columns: names of the memory's entries.
    """
    values = array(weights, "weights [classes, entries]", 2)
    n, c = values.shape
    row_labels, column_labels = labelled(rows, n, "class"), labelled(columns, c, "entry")
    chosen = np.sort(np.argsort(-values.max(0), kind="stable")[:_MOST_ENTRIES])
    values = values[:, chosen]
    fig = figure(2.6 + 0.17 * max(len(chosen), 12), 1.9 + 0.28 * n)
    ax = fig.subplots()
    image = ax.imshow(values, cmap="cividis", vmin=0, aspect="auto")
    matrix_axes(ax, row_labels, [column_labels[i] for i in chosen])
    ax.set_xlabel("memory entry" if c == len(chosen) else f"memory entry ({len(chosen)} of {c}, largest weights)")
    ax.set_ylabel("class of the episode")
    fig.colorbar(image, ax=ax, label="weight")
    return fig


@styled
def prototype_map(
    support: Tensor, query: Tensor, labels: Tensor, samples: Tensor, names: Sequence[str] | None = None
) -> Figure:
    """An episode in two dimensions: support and query features, and posterior samples of the prototypes.

    The two leading principal components of support, queries and sample means. Ellipses hold 95 % of a Gaussian
    with the samples' covariance in the plane.

    Args:
        support: features `[N, K, D]`.
        query: features `[Q', D]`.
        labels: int `[Q']`, the class of each query.
        samples: prototypes z `[S, N, D]`.
        names: of the classes.
    """
    s, q, z = (
        array(support, "support [N, K, D]", 3),
        array(query, "query [Q', D]", 2),
        array(samples, "samples [S, N, D]", 3),
    )
    y = array(labels, "labels [Q']", 1)
    n, _, d = s.shape
    if q.shape[1] != d or z.shape[1:] != (n, d) or len(y) != len(q) or d < 2:
        raise UserError(
            f"support {list(s.shape)}, query {list(q.shape)}, labels {list(y.shape)} and samples {list(z.shape)} do "
            "not belong to one episode with at least two features: give [N, K, D], [Q', D], [Q'] and [S, N, D]"
        )
    if y.min() < 0 or y.max() >= n:
        raise UserError(f"query labels run from {y.min():.0f} to {y.max():.0f}, but there are {n} classes, from 0")
    class_names = labelled(names, n, "class")
    cloud = np.concatenate([s.reshape(-1, d), q, z.mean(0)])
    centre = cloud.mean(0)
    _, singular, axes = np.linalg.svd(cloud - centre, full_matrices=False)
    plane = axes[:2].T
    share = 100 * singular[:2] ** 2 / max((singular**2).sum(), 1e-30)
    fig = figure(6.0, max(4.4, 1.2 + 0.19 * n))
    ax = fig.subplots()
    for i, name in enumerate(class_names):
        colour, marker = COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]
        points, asked, drawn = ((v - centre) @ plane for v in (s[i], q[y == i], z[:, i]))
        ax.scatter(drawn[:200, 0], drawn[:200, 1], s=3, color=colour, alpha=0.25, lw=0)
        ax.scatter(asked[:, 0], asked[:, 1], s=22, marker=marker, facecolors="none", edgecolors=colour, lw=0.9)
        ax.scatter(
            points[:, 0],
            points[:, 1],
            s=70,
            marker=marker,
            color=colour,
            edgecolors="black",
            lw=0.9,
            zorder=3,
            label=name,
        )
        if len(drawn) > 2:
            ax.add_patch(_ellipse(drawn, colour, LINES[i % len(LINES)]))
    ax.set_xlabel(f"first principal component ({share[0]:.0f} % of variance)")
    ax.set_ylabel(f"second principal component ({share[1]:.0f} %)")
    ax.set_aspect("equal", adjustable="datalim")
    ax.grid(True)
    fig.legend(loc="outside right upper", handlelength=1.5, title="support images", alignment="left")
    others = [
        Line2D([], [], marker="o", ms=5, mfc="none", ls="", label="query", color="black"),
        Line2D([], [], marker="o", ms=1.5, ls="", label="sample of z", color="0.4"),
        Line2D([], [], label="95 % of z", color="black", lw=1.2),
    ]
    fig.legend(handles=others, loc="outside right lower", handlelength=1.5)
    return fig


def _ellipse(points: NDArray[np.float64], colour: str, line: Any) -> Ellipse:
    """The 95 % ellipse of a Gaussian with the mean and covariance of points `[S, 2]`."""
    values, vectors = np.linalg.eigh(np.cov(points.T))
    # squared radius: the 0.95 quantile of chi-squared with two degrees of freedom, -2 log 0.05
    width, height = 2 * np.sqrt(-2 * math.log(0.05) * np.maximum(values, 0))
    angle = math.degrees(math.atan2(vectors[1, 0], vectors[0, 0]))
    x, y = points.mean(0)
    return Ellipse((x, y), width, height, angle=angle, fill=False, edgecolor=colour, linestyle=line, lw=1.5)
