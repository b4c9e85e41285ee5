"""Figures of what a memory recalls: addressing weights as a heat map, and with pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from torch import Tensor

from pyro_vsm.errors import UserError
from pyro_vsm.plots.beliefs import picture
from pyro_vsm.plots.style import COLOURS, array, figure, labelled, matrix_axes, styled

_MOST_ENTRIES = 40  # columns of a heat map whose labels can be read
_MOST_PICTURES = 25  # and with pictures


@styled
def addressing_heatmap(
    weights: Tensor,
    rows: Sequence[str] | None = None,
    columns: Sequence[str] | None = None,
    row_pictures: Tensor | None = None,
    column_pictures: Tensor | None = None,
) -> Figure:
    """Which memory entries each class of an episode recalls.

    Args:
        weights: `[N, C]`, in [0, 1]. Of more than 40 entries (25 with pictures) those are shown that a class of the
            episode gives its largest weights, those of the first class first.
        rows: names of the episode's classes.
        columns: names of the memory's entries.
        row_pictures: one of each class, uint8 `[N, channels, H, W]`.
        column_pictures: one of each entry's class, uint8 `[C, channels, H, W]`.

    Raises:
        UserError: names or pictures that do not fit the weights.
    """
    values = array(weights, "weights [classes, entries]", 2)
    n, c = values.shape
    row_labels, column_labels = labelled(rows, n, "class"), labelled(columns, c, "entry")
    for pictures, number in ((row_pictures, n), (column_pictures, c)):
        if pictures is not None and (pictures.dim() != 4 or len(pictures) != number):
            raise UserError(
                f"weights {list(values.shape)} need {number} pictures [., C, H, W], not {list(pictures.shape)}"
            )
    illustrated = row_pictures is not None or column_pictures is not None
    chosen = _largest(values, _MOST_PICTURES if illustrated else _MOST_ENTRIES)
    shown = values[:, chosen]
    cell = 0.32 if illustrated else 0.2
    reach = [
        0.056 * max(len(names) for names in labels) for labels in ([column_labels[i] for i in chosen], row_labels)
    ]
    fig = figure(
        1.9 + reach[1] + cell * max(len(chosen), 12),
        0.7 + reach[0] + max(cell, 0.28) * (n + 1.3 * (column_pictures is not None)),
    )
    ax = fig.subplots()
    image = ax.imshow(100 * shown, cmap="cividis", vmin=0, aspect="equal" if illustrated else "auto")
    matrix_axes(ax, row_labels, [column_labels[i] for i in chosen])
    if row_pictures is not None:
        for i in range(n):
            _thumbnail(ax, row_pictures[i], -1.65, i - 0.5)
    if column_pictures is not None:
        for j, entry in enumerate(chosen):
            _thumbnail(ax, column_pictures[int(entry)], j - 0.5, n - 0.35)
    if illustrated:
        ax.set_xlim(-1.75 if row_pictures is not None else -0.5, len(chosen) - 0.5)
        ax.set_ylim(n + 0.75 if column_pictures is not None else n - 0.5, -0.5)
        ax.tick_params(axis="x", labelsize=6)
    which = "" if c == len(chosen) else f" ({len(chosen)} of {c}, the largest weights of each class)"
    ax.set_xlabel(f"memory entry{which}")
    ax.set_ylabel("class of the episode")
    label = f"weight (%)\neven: {100 / c:.2g}"
    bar = fig.colorbar(image, ax=ax, label=label, aspect=10, shrink=0.5 if illustrated else 1.0, anchor=(0.0, 0.8))
    bar.locator = MaxNLocator(4)
    bar.update_ticks()
    return fig


@styled
def recalled_entries(
    weights: Tensor,
    support: Tensor,
    entries: Tensor,
    rows: Sequence[str] | None = None,
    columns: Sequence[str] | None = None,
    number: int = 8,
) -> Figure:
    """For each class of an episode, its picture and those of the memory entries it recalls most, with their weights.

    Args:
        weights: `[N, C]`, in [0, 1].
        support: a picture of each class, uint8 `[N, channels, H, W]`.
        entries: a picture of each entry's class, uint8 `[C, channels, H, W]`.
        rows: names of the classes.
        columns: names of the entries.
        number: of entries shown.
    """
    values = array(weights, "weights [classes, entries]", 2)
    n, c = values.shape
    if len(support) != n or len(entries) != c:
        raise UserError(
            f"weights {list(values.shape)} need {n} and {c} pictures, not {len(support)} and {len(entries)}"
        )
    names, entry_names = labelled(rows, n, "class"), labelled(columns, c, "entry")
    number = min(number, c)
    fig = figure(1.6 + 0.85 * (number + 1), 0.4 + 1.05 * n)
    axes = fig.subplots(n, number + 1, squeeze=False)
    for i in range(n):
        picture(axes[i, 0], support[i])
        axes[i, 0].set_ylabel(names[i], rotation=0, ha="right", va="center", fontsize=7)
        for spine in axes[i, 0].spines.values():
            spine.set(visible=True, linewidth=2, edgecolor=COLOURS[1])
        for j, entry in enumerate(np.argsort(-values[i], kind="stable")[:number], start=1):
            picture(axes[i, j], entries[int(entry)])
            axes[i, j].set_title(f"{100 * values[i, entry]:.1f} %", fontsize=7, pad=2)
            axes[i, j].set_xlabel(_short(entry_names[entry]), fontsize=5)
    axes[0, 0].set_title("class", fontsize=7, pad=2)
    return fig


def _largest(values: NDArray[np.float64], most: int) -> NDArray[np.intp]:
    """Columns in which a row has one of its largest values, by row and size; all in their order if they are few."""
    n, c = values.shape
    if c <= most:
        return np.arange(c)
    order = np.argsort(-values, axis=1, kind="stable")
    chosen: list[int] = []
    each = max(1, most // n)
    for i in range(n):
        fresh = [j for j in order[i].tolist() if j not in chosen]
        chosen += fresh[:each]
    return np.array(chosen[:most])


def _thumbnail(ax: Axes, image: Tensor, left: float, top: float) -> None:
    """A picture of the size of a cell."""
    pixels: Any = image.permute(1, 2, 0).cpu().numpy()
    ax.imshow(
        pixels if pixels.shape[-1] == 3 else pixels[..., 0], cmap="gray", vmin=0, vmax=255,
        extent=(left + 0.04, left + 0.96, top + 0.96, top + 0.04),
    )  # fmt: skip


def _short(name: str, width: int = 18) -> str:
    """The end of a long name, where the names of letters differ."""
    return name if len(name) <= width else "…" + name[-width + 1 :]
