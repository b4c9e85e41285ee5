"""Maps of an episode: features and posterior samples of the prototypes in two dimensions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Ellipse
from numpy.typing import NDArray
from torch import Tensor

from pyro_vsm.errors import UserError
from pyro_vsm.plots.style import COLOURS, LINES, MARKERS, array, figure, labelled, shown, styled

_QUANTILE = -2 * math.log(0.05)
"""0.95 quantile of chi-squared with two degrees of freedom: the squared radius of the ellipses."""

_DOTS = 200  # samples drawn of a class

Floats = NDArray[np.float64]
Panel = tuple[Floats, Floats, Floats]  # support [N, K, D], query [Q', D], samples [S, N, D]


@styled
def prototype_map(
    support: Tensor,
    query: Tensor,
    labels: Tensor,
    samples: Tensor,
    names: Sequence[str] | None = None,
    what: str = "z",
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
        what: the samples are called in the legend.

    Raises:
        UserError: if the tensors do not belong to one episode.
    """
    panel, y, class_names = _checked(support, query, labels, samples, names)
    centre, plane, share = _plane([panel])
    drawn = _projected(panel, centre, plane)
    low, high = _limits([drawn])
    ratio = (high[1] - low[1]) / (high[0] - low[0])
    wide = 4.0 if ratio < 1 else 4.0 / ratio
    fig = figure(wide + 0.9 + 0.6 + 0.085 * max(map(len, class_names)), max(4.0 * min(ratio, 1), 2.6) + 0.7)
    ax = fig.subplots()
    _draw(ax, drawn, y, class_names)
    _frame(ax, low, high, share)
    handles = [*ax.get_legend_handles_labels()[0], *_key(what)]
    fig.legend(handles=handles, loc="outside right upper", handlelength=1.5, title="support images", alignment="left")
    # One unit is as long upwards as sideways. Matplotlib's fixed aspects leave the place that the layout gives them.
    for _ in range(2):  # limits change the labels' width, and with it the place, a little
        fig.draw_without_rendering()
        box = ax.get_window_extent()
        unit = max((high[0] - low[0]) / box.width, (high[1] - low[1]) / box.height)
        middle, half = (low + high) / 2, unit * np.array([box.width, box.height]) / 2
        (left, bottom), (right, top) = middle - half, middle + half
        ax.set(xlim=(left, right), ylim=(bottom, top))
    return fig


@styled
def prototype_panels(
    panels: Mapping[str, tuple[Tensor, Tensor, Tensor]],
    labels: Tensor,
    names: Sequence[str] | None = None,
    *,
    shared: bool = True,
    what: str = "z",
) -> Figure:
    """Several beliefs of the same classes beside each other, as by :func:`prototype_map`.

    Args:
        panels: support `[N, K, D]`, query `[Q', D]` and samples `[S, N, D]`, by title; K and S may differ.
        labels: int `[Q']`, the class of each query.
        names: of the classes.
        shared: one plane and one scale for all panels. Of different models, whose features have nothing to do with
            each other, give each panel a plane of its own.
        what: the samples are called in the legend.

    Raises:
        UserError: if the tensors of a panel do not belong to one episode, or there is no panel.
    """
    if not panels:
        raise UserError("the plot needs at least one panel, but got none")
    checked = [_checked(s, q, labels, z, names) for s, q, z in panels.values()]
    y, class_names = checked[0][1:]
    parts = [panel for panel, _, _ in checked]
    if shared and len({p[1].shape[1] for p in parts}) > 1:
        raise UserError("panels of different numbers of features cannot share a plane; set shared=False")
    planes = [_plane(parts)] * len(parts) if shared else [_plane([p]) for p in parts]
    drawn = [_projected(p, centre, plane) for p, (centre, plane, _) in zip(parts, planes)]
    limits = [_limits(drawn)] * len(parts) if shared else [_square(*_limits([d])) for d in drawn]
    low, high = limits[0]
    ratio = float(np.clip((high[1] - low[1]) / (high[0] - low[0]), 0.4, 1.6))
    n = len(parts)
    columns = max(1, min(3, n, len(class_names)))
    rows = -(-(len(class_names) + 3) // columns)
    fig = figure(3.0 * n + 0.5, 3.0 * ratio + 0.8 + 0.2 * rows)
    axes = fig.subplots(1, n, squeeze=False, sharey=shared)[0]
    for i, (ax, title) in enumerate(zip(axes, panels)):
        _draw(ax, drawn[i], y, class_names)
        _frame(ax, *limits[i], planes[i][2], first=i == 0 or not shared, short=True)
        ax.set_title(shown(title), loc="left")
    handles = [*axes[0].get_legend_handles_labels()[0], *_key(what)]
    fig.legend(handles=handles, loc="outside lower center", handlelength=1.5, ncols=columns)
    return fig


def _checked(
    support: Tensor, query: Tensor, labels: Tensor, samples: Tensor, names: Sequence[str] | None
) -> tuple[Panel, Floats, list[str]]:
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
    return (s, q, z), y, labelled(names, n, "class")


def _plane(panels: Sequence[Panel]) -> tuple[Floats, Floats, Floats]:
    """Origin `[D]`, axes `[D, 2]` and their shares of the variance in percent, by principal components."""
    cloud = np.concatenate([part for s, q, z in panels for part in (s.reshape(-1, s.shape[-1]), q, z.mean(0))])
    centre = cloud.mean(0)
    _, singular, axes = np.linalg.svd(cloud - centre, full_matrices=False)
    return centre, axes[:2].T, 100 * singular[:2] ** 2 / max((singular**2).sum(), 1e-30)


def _projected(panel: Panel, centre: Floats, plane: Floats) -> Panel:
    s, q, z = ((v - centre) @ plane for v in panel)
    return s, q, z


def _limits(panels: Sequence[Panel]) -> tuple[Floats, Floats]:
    """Lower and upper corner `[2]` of what is drawn: points and ellipses, and a margin."""
    corners = []
    for s, q, z in panels:
        corners += [s.reshape(-1, 2), q]
        for n in range(z.shape[1]):
            reach = np.sqrt(_QUANTILE * z[:, n].var(0))
            corners.append(np.stack([z[:, n].mean(0) - reach, z[:, n].mean(0) + reach]))
    points = np.concatenate(corners)
    low, high = points.min(0), points.max(0)
    margin = 0.06 * max((high - low).max(), 1e-6)
    return low - margin, high + margin


def _square(low: Floats, high: Floats) -> tuple[Floats, Floats]:
    middle, half = (low + high) / 2, (high - low).max() / 2
    return middle - half, middle + half


def _draw(ax: Axes, panel: Panel, y: Floats, names: Sequence[str]) -> None:
    s, q, z = panel
    many = s.shape[1] > 8  # then small, so that samples and queries can be seen between them
    for i, name in enumerate(names):
        colour, marker = COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]
        ax.scatter(z[:_DOTS, i, 0], z[:_DOTS, i, 1], s=3, color=colour, alpha=0.25, lw=0)
        asked = q[y == i]
        ax.scatter(asked[:, 0], asked[:, 1], s=22, marker=marker, facecolors="none", edgecolors=colour, lw=0.9)
        ax.scatter(
            s[i, :, 0], s[i, :, 1], s=18 if many else 60, marker=marker, color=colour, edgecolors="black",
            lw=0.5 if many else 0.9, zorder=3, label=name,
        )  # fmt: skip
        if len(z) > 2:
            ax.add_patch(_ellipse(z[:, i], colour, LINES[i % len(LINES)]))


def _frame(ax: Axes, low: Floats, high: Floats, share: Floats, first: bool = True, short: bool = False) -> None:
    component = "PC" if short else "principal component"
    one, two = (f"{component} 1", f"{component} 2") if short else (f"first {component}", f"second {component}")
    ax.set_xlabel(f"{one} ({share[0]:.0f} % of variance)")
    if first:
        ax.set_ylabel(f"{two} ({share[1]:.0f} %)")
    ax.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]))
    if short:
        ax.set_aspect("equal")
    ax.grid(True)


def _key(what: str) -> list[Line2D]:
    return [
        Line2D([], [], marker="o", ms=5, mfc="none", ls="", label="query", color="black"),
        Line2D([], [], marker="o", ms=1.5, ls="", label=f"sample of {what}", color="0.4"),
        Line2D([], [], label=f"95 % of {what}", color="black", lw=1.2),
    ]


def _ellipse(points: Floats, colour: str, line: Any) -> Ellipse:
    """The 95 % ellipse of a Gaussian with the mean and covariance of points `[S, 2]`."""
    values, vectors = np.linalg.eigh(np.cov(points.T))
    width, height = 2 * np.sqrt(_QUANTILE * np.maximum(values, 0))
    angle = math.degrees(math.atan2(vectors[1, 0], vectors[0, 0]))
    x, y = points.mean(0)
    return Ellipse((x, y), width, height, angle=angle, fill=False, edgecolor=colour, linestyle=line, lw=1.5)
