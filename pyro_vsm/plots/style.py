"""The look that all figures share, and writing them to a file."""

from __future__ import annotations

import functools
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ParamSpec

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from pyro_vsm.errors import UserError
from pyro_vsm.files import write_atomic

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
LINES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (6, 1, 1, 1, 1, 1)), (0, (3, 1)), (0, (1, 1)))
GREY = "0.45"
_LONGEST = 40  # characters of a name
_STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": "0.9",
    "lines.linewidth": 1.5,
    "lines.markersize": 5,
    "legend.frameon": False,
    "legend.handlelength": 3.0,
    "savefig.facecolor": "white",
}

P = ParamSpec("P")


def styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Applies the style within the call and leaves matplotlib's global settings alone."""

    @functools.wraps(draw)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with matplotlib.rc_context(_STYLE):
            return draw(*args, **kwargs)

    return wrapper


def look(i: int) -> dict[str, Any]:
    """Colour, marker and line style of the i-th curve; the pairs repeat only after 56 curves."""
    return {
        "color": COLOURS[i % len(COLOURS)],
        "marker": MARKERS[i % len(MARKERS)],
        "linestyle": LINES[i % len(LINES)],
    }


def figure(width: float, height: float) -> Figure:
    """An empty figure, inches, that keeps its labels from overlapping."""
    return Figure(figsize=(width, height), layout="constrained")


def array(values: Tensor, what: str, dims: int) -> NDArray[np.float64]:
    """A finite tensor of `dims` dimensions as float64."""
    if values.dim() != dims or values.numel() == 0 or not bool(values.isfinite().all()):
        raise UserError(
            f"the plot needs {what} as a finite tensor of {dims} dimensions, but got shape {list(values.shape)}"
            + (" with NaN or infinity" if values.numel() and values.dim() == dims else "")
        )
    return values.detach().cpu().double().numpy()


def labelled(names: Sequence[str] | None, n: int, what: str) -> list[str]:
    """`n` names as by `shown`; made up as `what 1`, `what 2`, ... where none are given."""
    names = [f"{what} {i + 1}" for i in range(n)] if names is None else list(names)
    if len(names) != n:
        raise UserError(f"the plot shows {n} {what} labels, but {len(names)} names were given: give one each")
    return [shown(name) for name in names]


def shown(name: str) -> str:
    """A name in one line of readable length that matplotlib takes for neither a formula nor a hidden label."""
    name = " ".join(name.split())
    name = name if len(name) <= _LONGEST else name[: _LONGEST - 1] + "…"
    return (" " if name.startswith("_") else "") + name.replace("$", r"\$")


def save(fig: Figure, path: Path | str, dpi: int = 200) -> Path:
    """Writes a figure as .png, .pdf or .svg, whole or not at all.

    Raises:
        UserError: if the ending is another one or the file cannot be written.
    """
    kind = Path(path).suffix.lower().removeprefix(".")
    if kind not in ("png", "pdf", "svg"):
        raise UserError(f"cannot write the figure {path}: let its name end in .png, .pdf or .svg")
    out = io.BytesIO()
    with matplotlib.rc_context(_STYLE):
        fig.savefig(out, format=kind, dpi=dpi)
    return write_atomic(path, out.getvalue())


def matrix_axes(ax: Axes, rows: Sequence[str], columns: Sequence[str]) -> None:
    """Names every row and column of an image."""
    ax.set_xticks(range(len(columns)), columns, rotation=90, fontsize=6 if len(columns) > 12 else 8)
    ax.set_yticks(range(len(rows)), rows, fontsize=6 if len(rows) > 12 else 8)
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)
