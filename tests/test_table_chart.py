"""The chart of a table shows its means, intervals, seeds and published figures, and can be read in grey."""

import math

import numpy as np
import pytest
from matplotlib.collections import PathCollection
from PIL import Image

from pyro_vsm import plots
from pyro_vsm.errors import UserError
from pyro_vsm.metrics import Interval

PN = plots.TablePoint("PN", Interval(0.5, 0.01, 9), [0.49, 0.51], 0.474)
ONE = plots.TablePoint("one seed $x$", Interval(0.55, math.nan, 1), [0.55])


def test_everything_is_where_it_belongs():
    fig = plots.table_chart({"1-shot": [PN, ONE], "5-shot": [ONE]})
    left = fig.axes[0]
    assert [t.get_text() for t in left.get_yticklabels()] == ["PN", r"one seed \$x\$"]
    assert left.yaxis_inverted()  # the first row is on top
    assert [ax.get_xlabel() for ax in fig.axes] == ["accuracy (%)"] * 2
    assert [ax.get_title("left") for ax in fig.axes] == ["1-shot", "5-shot"]
    assert [bar.lines[0].get_xdata()[0] for bar in left.containers] == pytest.approx([50, 55])
    (segment,) = left.containers[0].lines[2][0].get_segments()
    assert segment[:, 0].tolist() == pytest.approx([49, 51])
    seeds, paper = (c for c in left.collections if isinstance(c, PathCollection))
    assert seeds.get_offsets()[:, 0].tolist() == pytest.approx([49, 51])
    assert paper.get_offsets()[:, 0].tolist() == pytest.approx([47.4])
    assert paper.get_facecolor().size == 0  # open
    assert seeds.get_offsets()[0, 1] > 0 > paper.get_offsets()[0, 1]  # neither hides the mean
    (legend,) = fig.legends
    assert [t.get_text() for t in legend.texts] == [
        "mean of training seeds and 95 % interval over episodes", "each training seed", "published",
    ]  # fmt: skip


def test_paired_differences_stand_beside_the_accuracies():
    other = plots.TablePoint("VSM", Interval(0.56, 0.01, 9), [0.55, 0.57], None, Interval(0.06, 0.02, 9))
    fig = plots.table_chart({"1-shot": [PN, other], "5-shot": [ONE]}, "PN")
    assert [ax.get_xlabel() for ax in fig.axes] == ["accuracy (%)", "Δ to PN (points)"] * 2
    beside = fig.axes[1]
    assert beside.get_ylim() == fig.axes[0].get_ylim()
    (bar,) = beside.containers  # none for the reference
    assert (bar.lines[0].get_xdata()[0], bar.lines[0].get_ydata()[0]) == pytest.approx((6, 1))
    (segment,) = bar.lines[2][0].get_segments()
    assert segment[:, 0].tolist() == pytest.approx([4, 8])
    assert beside.lines[0].get_xdata() == [0, 0]
    assert "paired difference, 95 % interval over seeds and episodes" in [t.get_text() for t in fig.legends[0].texts]


def test_two_panels_stand_side_by_side_and_others_below_them():
    fig = plots.table_chart({name: [PN, ONE] for name in ("5-way", "10-way", "20-way")})
    places = [ax.get_subplotspec() for ax in fig.axes]
    assert [(p.rowspan.start, p.colspan.start) for p in places] == [(0, 0), (0, 1), (1, 0)]
    assert [ax.get_title("left") for ax in fig.axes] == ["5-way", "10-way", "20-way"]


def test_without_seeds_and_paper_the_legend_names_neither():
    fig = plots.table_chart({"1-shot": [ONE]})
    assert [t.get_text() for t in fig.legends[0].texts] == ["mean and 95 % interval over episodes"]


PAIRED = plots.TablePoint(
    "a system of a long name", Interval(0.56, 0.01, 9), [0.5, 0.6], 0.5, Interval(0.06, 0.02, 9)
)


@pytest.mark.parametrize(
    "panels",
    [
        {"1": [PN, ONE]},
        {"1": [PN, PAIRED]},
        {"1": [PN, PAIRED], "5": [PN, PAIRED]},
        {name: [PN, PAIRED] for name in "123"},
    ],
    ids=["", "paired", "two", "three"],
)
def test_nothing_is_cut_off_and_marks_are_dark_in_grey(tmp_path, panels):
    path = plots.save(plots.table_chart(panels), tmp_path / "chart.png", dpi=60)
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("L"))
    assert np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]]).min() > 250
    assert (pixels < 140).any(1).mean() > 0.3


@pytest.mark.parametrize("panels", [{}, {"1-shot": []}])
def test_nothing_to_draw_is_refused(panels):
    with pytest.raises(UserError, match="at least one row"):
        plots.table_chart(panels)
