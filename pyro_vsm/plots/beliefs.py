"""Figures of beliefs: pictures with their probabilities, spreads, uncertainty, and rejection."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from pyro_vsm.errors import UserError
from pyro_vsm.plots.style import COLOURS, GREY, array, figure, labelled, look, shown, styled
from pyro_vsm.results import EpisodeResults


@styled
def picture_grid(images: Tensor, rows: Sequence[str] | None = None, columns: Sequence[str] | None = None) -> Figure:
    """Pictures in rows and columns.

    Args:
        images: uint8 `[R, N, C, H, W]`, one or three channels.
        rows: what each row shows.
        columns: what each column shows.
    """
    if images.dim() != 5 or images.numel() == 0:
        raise UserError(f"the plot needs pictures [rows, columns, C, H, W], but got shape {list(images.shape)}")
    r, n = images.shape[:2]
    names = labelled(rows, r, "row") if rows is not None else [""] * r
    heads = labelled(columns, n, "column") if columns is not None else [""] * n
    fig = figure(1.2 + 0.75 * n, 0.3 + 0.75 * r)
    axes = fig.subplots(r, n, squeeze=False)
    for i, j in np.ndindex(r, n):
        picture(axes[i, j], images[i, j])
        if i == 0 and heads[j]:
            axes[i, j].set_title(heads[j])
        if j == 0 and names[i]:
            axes[i, j].set_ylabel(names[i], rotation=0, ha="right", va="center")
    return fig


@styled
def probability_bars(
    images: Tensor, probabilities: Tensor, names: Sequence[str] | None = None, truth: Tensor | None = None
) -> Figure:
    """Queries with the probability of each class beside them.

    Args:
        images: uint8 `[Q, C, H, W]`.
        probabilities: `[Q, N]`.
        names: of the classes.
        truth: int `[Q]`; the bar of the right class is hatched.
    """
    p = array(probabilities, "probabilities [queries, classes]", 2)
    if len(images) != len(p):
        raise UserError(f"the plot got {len(images)} pictures and probabilities of {len(p)}: give one row a picture")
    q, n = p.shape
    classes = labelled(names, n, "class")
    fig = figure(5.2, 0.4 + q * max(0.75, 0.16 * n))
    axes = fig.subplots(q, 2, squeeze=False, width_ratios=[1, 3])
    for i in range(q):
        picture(axes[i, 0], images[i])
        ax = axes[i, 1]
        bars = ax.barh(range(n), 100 * p[i], color=COLOURS[0], height=0.75)
        if truth is not None:
            bars[int(truth[i])].set(hatch="////", edgecolor="white")
        ax.set_yticks(range(n), classes, fontsize=7)
        ax.invert_yaxis()
        ax.set_xlim(0, 100)
        ax.set_xticks([0, 25, 50, 75, 100], [] if i + 1 < q else None)
        ax.grid(True, axis="x")
    axes[-1, 1].set_xlabel("probability (%)" + ("; hatched: the right class" if truth is not None else ""))
    return fig


@styled
def spread_by_shot(spread: Mapping[int, float], error: Mapping[int, float]) -> Figure:
    """How far the posterior of a prototype reaches, and how far its mean is from the class's, against the shots.

    Args:
        spread: root mean square of the posterior's deviation a dimension, by number of shots.
        error: root mean square distance a dimension of the posterior mean from the mean of many images, likewise.
    """
    if not spread or not error:
        raise UserError("the plot needs the spread and the error at one number of shots at least, but got none")
    fig = figure(4.4, 3.0)
    ax = fig.subplots()
    for i, (name, points) in enumerate({"posterior spread": spread, "error of the mean": error}.items()):
        x = sorted(points)
        ax.plot(x, [points[k] for k in x], label=name, **look(i))
    shots = sorted({*spread, *error})
    ax.set_xscale("log", base=2)
    ax.set_xticks(shots, [str(k) for k in shots])
    ax.minorticks_off()
    ax.set_ylim(bottom=0)
    ax.set_xlabel("shot (support images a class)")
    ax.set_ylabel("RMS a feature\n(features have RMS 1)")
    ax.grid(True)
    ax.legend()
    return fig


@styled
def uncertainty_by_shot(removable: Mapping[int, float], remaining: Mapping[int, float]) -> Figure:
    """The mean uncertainty of queries against the shots, split into what more shots remove and what they do not.

    Args:
        removable: mutual information of label and prototypes, nats a query, by number of shots.
        remaining: expected entropy, likewise.
    """
    shots = sorted(removable)
    if not shots or shots != sorted(remaining):
        raise UserError("the plot needs both parts of the uncertainty at the same numbers of shots, at least one")
    fig = figure(4.4, 3.0)
    ax = fig.subplots()
    x, low, high = range(len(shots)), [remaining[k] for k in shots], [removable[k] for k in shots]
    ax.bar(x, low, 0.6, color=GREY, label="stays: expected entropy")
    ax.bar(x, high, 0.6, bottom=low, color=COLOURS[1], hatch="////", edgecolor="white",
           label="more shots remove it: mutual information")  # fmt: skip
    ax.set_xticks(x, [str(k) for k in shots])
    ax.set_xlabel("shot (support images a class)")
    ax.set_ylabel("uncertainty (nats a query)")
    ax.grid(True, axis="y")
    handles, labels = ax.get_legend_handles_labels()
    fig.legend(handles[::-1], labels[::-1], loc="outside upper left", handlelength=1.5)
    return fig


@styled
def spread_against_error(spread: Tensor, error: Tensor, groups: int = 8) -> Figure:
    """Whether predictions that the posterior is unsure of are wrong more often.

    Args:
        spread: of each query `[Q]`, e.g. its mutual information in nats.
        error: whether its prediction was wrong `[Q]`, bool.
        groups: of equal size.
    """
    s, wrong = array(spread, "spread [queries]", 1), array(error.double(), "error [queries]", 1)
    if len(s) != len(wrong) or len(s) < groups:
        raise UserError(
            f"{len(s)} spreads and {len(wrong)} errors do not make {groups} groups: give one each a query"
        )
    parts = np.array_split(np.argsort(s, kind="stable"), groups)
    x, y = np.array([s[i].mean() for i in parts]), np.array([100 * wrong[i].mean() for i in parts])
    half = [196 * wrong[i].std() / len(i) ** 0.5 for i in parts]
    fig = figure(4.4, 3.0)
    ax = fig.subplots()
    ax.errorbar(x, y, yerr=half, fmt="o-", color=COLOURS[0], capsize=3)
    ax.set_ylim(bottom=0)
    ax.set_xlabel(f"mutual information (nats), {groups} groups of equal size")
    ax.set_ylabel("wrong predictions (%)\nwith 95 % interval")
    ax.grid(True)
    return fig


@styled
def rejection_curve(results: Mapping[str, EpisodeResults]) -> Figure:
    """Accuracy among the queries that are answered, the least confident left unanswered first.

    Args:
        results: by the name of the system.
    """
    if not results:
        raise UserError("a rejection curve needs the results of at least one system, but there are none")
    fig = figure(4.4, 3.2)
    ax = fig.subplots()
    for i, (name, result) in enumerate(results.items()):
        order = result.confidence.argsort(descending=True, stable=True)
        right = result.correct[order].double().cumsum(0).numpy()
        answered = np.arange(1, len(right) + 1)
        keep = answered >= max(20, len(right) // 50)  # of a few queries the share says nothing
        x, y = 100 * answered[keep] / len(right), 100 * right[keep] / answered[keep]
        ax.plot(x, y, label=shown(name), markevery=max(1, len(x) // 8), **look(i))
    ax.set_xlim(0, 100)
    ax.set_xlabel("queries answered, the most confident first (%)")
    ax.set_ylabel("accuracy among them (%)")
    ax.grid(True)
    ax.legend()
    return fig


@styled
def histograms(values: Mapping[str, Tensor], label: str, bins: int | Sequence[float] = 20) -> Figure:
    """Distributions over one another as outlines.

    Args:
        values: `[.]`, by name.
        label: of the axis, with its unit.
        bins: number of bins of equal width over the range of all, or their edges.
    """
    if not values:
        raise UserError("the plot needs at least one set of values, but got none")
    arrays = {name: array(v.flatten(), "values", 1) for name, v in values.items()}
    low, high = min(v.min() for v in arrays.values()), max(v.max() for v in arrays.values())
    edges = np.linspace(low, high if high > low else low + 1, bins + 1) if isinstance(bins, int) else np.array(bins)
    fig = figure(4.4, 2.8)
    ax = fig.subplots()
    for i, (name, v) in enumerate(arrays.items()):
        style = look(i)
        style.pop("marker")
        ax.stairs(100 * np.histogram(v, edges)[0] / len(v), edges, label=shown(name), lw=1.5, **style)
    ax.set_xlabel(label)
    ax.set_ylabel("share (%)")
    ax.grid(True)
    ax.legend()
    return fig


def picture(ax: Axes, image: Tensor) -> None:
    """Draw a picture, uint8 `[C, H, W]`, without axes."""
    pixels: Any = image.permute(1, 2, 0).cpu().numpy()
    ax.imshow(pixels if pixels.shape[-1] == 3 else pixels[..., 0], cmap="gray", vmin=0, vmax=255)
    ax.set_xticks([])
    ax.set_yticks([])
    ax.spines[:].set_visible(False)
    ax.grid(False)
