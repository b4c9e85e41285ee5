"""Charts of the measurements."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.patches import Patch

from pyro_vsm.plots.style import COLOURS, GREY, figure, look, styled


def _filling(i: int) -> dict[str, Any]:
    """Colour and hatching of the i-th part, so that parts differ in grey, too."""
    hatch = ("", "////", "....", "\\\\\\\\", "xxxx", "----", "||||")[i % len(COLOURS)]
    return {"facecolor": COLOURS[i % len(COLOURS)], "hatch": hatch, "edgecolor": "white"}


@styled
def step_chart(rows: Sequence[Mapping[str, Any]], parts: Mapping[str, Mapping[str, float]]) -> Figure:
    """Bars of milliseconds a step with the floor as a line; beside each the parts, stacked, where they were timed."""
    fig = figure(6.4, 1.2 + 0.55 * len(rows))
    ax = fig.subplots()
    floor = rows[0]["ms"]
    names = [str(r["step"]) for r in rows]
    labels: dict[str, dict[str, Any]] = {}
    for i, row in enumerate(rows):
        ax.barh(i - 0.2, row["ms"], 0.36, color="0.75" if i else "0.45")
        ax.annotate(f"{row['ms']:.2f} ms, {row['ratio']:.2f}×", (row["ms"], i - 0.2), (3, 0), va="center",
                    textcoords="offset points", fontsize=8)  # fmt: skip
        left = 0.0
        for name, ms in parts.get(names[i], {}).items():
            if name.startswith("of which"):
                continue
            style = labels.setdefault(name, _filling(len(labels)))
            ax.barh(i + 0.2, ms, 0.36, left=left, **style)
            left += ms
    ax.axvline(floor, color=GREY, linestyle=":")
    ax.set_yticks(range(len(rows)), names)
    ax.invert_yaxis()
    ax.set_xlim(0, 1.25 * max(float(r["ms"]) for r in rows))
    ax.set_xlabel("ms a step (grey); its parts, each timed alone (colours)")
    if labels:
        patches = [Patch(**style, label=name) for name, style in labels.items()]
        fig.legend(handles=patches, loc="outside lower center", ncols=3, fontsize=8)
    return fig


@styled
def memory_chart(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Time, and memory where it was measured, against the number of entries, both axes logarithmic."""
    curves = [("recall_ms", "recall"), ("consolidate_and_store_ms", "consolidation"),
              ("consolidate_recall_backward_ms", "both, with backward pass")]  # fmt: skip
    sizes = [("held_MB", "entries and variances")]
    if any("working_MB" in r for r in rows):
        sizes.append(("working_MB", "working memory at the peak"))
    fig = figure(7.2, 4.2)
    left, right = fig.subplots(1, 2)
    for ax, lines, unit in ((left, curves, "ms a batch"), (right, sizes, "MB")):
        number = 0
        for kind in ("retrieved", "all"):
            chosen = [r for r in rows if r["recall"] == kind]
            for key, label in lines:
                # consolidation and what is held do not depend on how the memory is read
                if chosen and not (kind == "all" and key in ("held_MB", "consolidate_and_store_ms")):
                    suffix = {"retrieved": "", "all": ", all entries recalled"}[kind]
                    style = look(number)
                    ax.plot([r["entries"] for r in chosen], [r[key] for r in chosen], label=label + suffix, **style)
                    number += 1
        ax.set_xscale("log")
        ax.set_yscale("log")
        ax.set_xlabel("entries C")
        ax.set_ylabel(unit)
        ax.grid(True)
        ax.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.2))
    return fig
