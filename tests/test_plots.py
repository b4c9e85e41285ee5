"""Every figure: labelled axes, the data it should show, nothing global touched, a picture that is not blank."""

import math
import re

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse
from PIL import Image

from pyro_vsm import plots
from pyro_vsm.errors import UserError
from pyro_vsm.metrics import Interval
from pyro_vsm.plots.style import COLOURS
from pyro_vsm.results import EpisodeResults

RECORDS = [
    {"step": s, "train/loss": 2 - s / 100, "train/accuracy": s / 200, "train/log_likelihood": -2 + s / 100,
     "train/kl_z": 100 / (1 + s), "train/kl_m": 1.0, "train/lr": 1e-3}
    for s in range(0, 100, 10)
] + [{"step": s, "validation/accuracy": s / 400, "validation/accuracy_95": 0.01} for s in (30, 60, 90)]  # fmt: skip


def results(seed: int = 0) -> EpisodeResults:
    probs = (2 * torch.randn(40 * 15, 5)).softmax(-1)
    correct = torch.rand(600) < 0.6
    one = torch.rand(40, dtype=torch.float64)
    return EpisodeResults(
        correct.view(40, 15).double().mean(1), one, one, probs.amax(-1), correct, 5, 1, 3, 10, 0, 32, 1.0, "d", "h"
    )


def episode(n: int = 4, d: int = 8) -> dict[str, torch.Tensor]:
    centres = 3 * torch.randn(n, d)
    labels = torch.arange(n).repeat_interleave(6)
    return {
        "support": centres[:, None] + torch.randn(n, 3, d),
        "query": centres[labels] + torch.randn(6 * n, d),
        "labels": labels,
        "samples": centres + 0.5 * torch.randn(100, n, d),
    }


def panels() -> dict[str, tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    one, two = episode(), episode()
    return {
        "1 shot": (one["support"][:, :1], one["query"], one["samples"]),
        "3 shots": (two["support"], two["query"], two["samples"]),
    }


def pictures(*shape: int) -> torch.Tensor:
    return torch.randint(256, (*shape, 3, 12, 12), dtype=torch.uint8)


SYSTEMS = {"low": Interval(0.5, 0.01, 9), "high": Interval(0.6, 0.02, 9), "single": Interval(0.55, math.nan, 1)}
SHOTS = {"PN": {1: Interval(0.5, 0.01, 9), 5: Interval(0.7, 0.01, 9)}, "VSM": {1: Interval(0.6, math.nan, 1)}}

FIGURES = {
    "learning_curves": (lambda: plots.learning_curves(RECORDS), [
        ("training step", "loss (nats a query)"), ("training step", "accuracy (%)")]),
    "objective_terms": (lambda: plots.objective_terms(RECORDS), [
        ("", "log-likelihood\n(nats a query)"), ("training step", "KL divergence\n(nats a class)")]),
    "reliability_diagram": (lambda: plots.reliability_diagram({"PN": results(), "VSM": results()}), [
        ("", "accuracy of the bin (%)"), ("confidence (%)", "queries (%)")]),
    "accuracy_by_system": (lambda: plots.accuracy_by_system(SYSTEMS), [
        ("accuracy (%), mean and N % interval", "system")]),
    "accuracy_by_shot": (lambda: plots.accuracy_by_shot(SHOTS), [
        ("shot (support images a class)", "accuracy (%)")]),
    "confusion_matrix": (lambda: plots.confusion_matrix(torch.randint(9, (4, 4)), ["a", "b", "c", "d"]), [
        ("predicted class", "true class"), ("", "queries of the true class (%)")]),
    "addressing_heatmap": (lambda: plots.addressing_heatmap(torch.randn(5, 60).softmax(-1)), [
        ("memory entry (40 of 60, the largest weights of each class)", "class of the episode"),
        ("", "weight (%)\neven: 1.7")]),
    "histograms": (lambda: plots.histograms({"a": torch.rand(50), "b": torch.rand(50)}, "confidence (%)"), [
        ("confidence (%)", "share (%)")]),
    "picture_grid": (lambda: plots.picture_grid(pictures(2, 3), ["a", "b"]), [
        ("", "a"), ("", ""), ("", ""), ("", "b"), ("", ""), ("", "")]),
    "probability_bars": (lambda: plots.probability_bars(pictures(2), torch.rand(2, 4), None, torch.tensor([0, 3])), [
        ("", ""), ("", ""), ("", ""), ("probability (%); hatched: the right class", "")]),
    "recalled_entries": (lambda: plots.recalled_entries(torch.eye(9)[2:3], pictures(1), pictures(9), number=1), [
        ("", "class 1"), ("entry 3", "")]),
    "rejection_curve": (lambda: plots.rejection_curve({"PN": results()}), [
        ("queries answered, the most confident first (%)", "accuracy among them (%)")]),
    "spread_against_error": (lambda: plots.spread_against_error(torch.rand(80), torch.rand(80) < 0.5), [
        ("mutual information (nats), 8 groups of equal size", "wrong predictions (%)\nwith N % interval")]),
    "spread_by_shot": (lambda: plots.spread_by_shot({1: 0.5, 5: 0.2}, {1: 0.6, 5: 0.3}), [
        ("shot (support images a class)", "RMS a feature\n(features have RMS 1)")]),
    "uncertainty_by_shot": (lambda: plots.uncertainty_by_shot({1: 0.2, 5: 0.1}, {1: 0.5, 5: 0.4}), [
        ("shot (support images a class)", "uncertainty (nats a query)")]),
    "objective_by_run": (lambda: plots.objective_by_run({"a": RECORDS, "b": RECORDS[3:]}), [
        ("training step", "log-likelihood (nats a query)"), ("training step", "KL of z (nats a class)"),
        ("training step", "KL of m (nats a class)")]),
    "prototype_panels": (lambda: plots.prototype_panels(panels(), episode()["labels"]), [
        ("PC 1 (N % of variance)", "PC 2 (N %)"), ("PC 1 (N % of variance)", "")]),
    "prototype_map": (lambda: plots.prototype_map(**episode()), [
        ("first principal component (N % of variance)", "second principal component (N %)")]),
}  # fmt: skip


def test_every_public_figure_is_tested():
    elsewhere = {"save", "TablePoint", "table_chart"}  # charts of tables have a test file of their own
    assert set(FIGURES) | elsewhere == set(plots.__all__)


@pytest.mark.parametrize("name", FIGURES)
def test_figures_are_labelled_drawn_and_touch_nothing_global(name, tmp_path):
    draw, labels = FIGURES[name]
    settings = dict(matplotlib.rcParams)
    fig = draw()
    assert isinstance(fig, Figure)
    path = plots.save(fig, tmp_path / f"{name}.png", dpi=60)
    assert dict(matplotlib.rcParams) == settings
    assert plt.get_fignums() == []
    found = [(ax.get_xlabel(), ax.get_ylabel()) for ax in fig.axes]
    assert [tuple(re.sub(r"\d+ %", "N %", label) for label in pair) for pair in found] == labels
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("L"))
    assert min(pixels.shape) > 60
    assert 0.005 < (pixels < 200).mean() < 0.95
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    assert border.min() > 250  # nothing is cut off at the edge
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_curves_differ_in_colour_marker_and_line():
    fig = plots.accuracy_by_shot({f"system {i}": SHOTS["PN"] for i in range(7)})
    lines = [bar.lines[0] for bar in fig.axes[0].containers]
    for looks in (
        {line.get_color() for line in lines},
        {line.get_marker() for line in lines},
        {str(line._dash_pattern) for line in lines},
    ):
        assert len(looks) == 7


def test_learning_curves_show_the_log_in_percent():
    loss, accuracy = plots.learning_curves(RECORDS).axes
    assert [line.get_label() for line in loss.lines] == ["train"]
    train, validation = accuracy.lines
    np.testing.assert_allclose(train.get_xdata(), range(0, 100, 10))
    np.testing.assert_allclose(train.get_ydata(), np.arange(0, 50, 5))
    np.testing.assert_allclose(validation.get_ydata(), [7.5, 15, 22.5])
    (band,) = accuracy.collections
    np.testing.assert_allclose(sorted(set(band.get_paths()[0].vertices[:, 1].round(6)))[0], 6.5)
    one = plots.learning_curves(RECORDS, {"lr": "learning rate"}, ["train"]).axes
    assert [ax.get_ylabel() for ax in one] == ["learning rate"]


def test_objective_terms_show_every_divergence_and_a_wide_range_on_a_log_scale():
    top, bottom = plots.objective_terms(RECORDS).axes
    np.testing.assert_allclose(top.lines[0].get_ydata(), -2 + np.arange(10) / 10)
    assert [line.get_label() for line in bottom.lines] == ["KL of z", "KL of m"]
    np.testing.assert_allclose(bottom.lines[0].get_ydata(), 100 / (1 + np.arange(0, 100, 10)))
    assert bottom.get_yscale() == "linear"
    wide = [{**r, "train/kl_z": 10.0 ** (-r["step"] / 20)} for r in RECORDS[:10]]
    assert plots.objective_terms(wide).axes[1].get_yscale() == "log"


def test_reliability_diagram_shows_the_curve_the_counts_and_the_error():
    result = results()
    fig = plots.reliability_diagram({"VSM": result}, bins=5)
    top, bottom = fig.axes
    inside = (result.confidence >= 0.6) & (result.confidence < 0.8)
    x, y = (100 * float(v[inside].double().mean()) for v in (result.confidence, result.correct))
    assert np.isclose(top.lines[1].get_xdata(), x).any()
    assert np.isclose(top.lines[1].get_ydata(), y).any()
    share = bottom.patches[0].get_data().values
    assert share.sum() == pytest.approx(100)
    assert share[3] == pytest.approx(100 * float(inside.double().mean()))
    texts = [text.get_text() for text in fig.legends[0].get_texts()]
    assert texts == ["perfect calibration", f"VSM (ECE {100 * result.ece:.1f} %)"]


def test_systems_are_sorted_with_their_intervals():
    ax = plots.accuracy_by_system(SYSTEMS).axes[0]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["low", "single", "high"]
    np.testing.assert_allclose(ax.lines[0].get_xdata(), [50, 55, 60])
    assert [text.get_text() for text in ax.texts] == ["50.00 ± 1.00", "55.00", "60.00 ± 2.00"]
    (bars,) = ax.containers[0].lines[2]
    np.testing.assert_allclose(bars.get_segments()[2][:, 0], [58, 62])


def test_confusions_are_shares_of_the_true_class():
    ax = plots.confusion_matrix(torch.tensor([[3, 1], [0, 0]])).axes[0]
    np.testing.assert_allclose(ax.images[0].get_array(), [[75, 25], [0, 0]])
    assert [text.get_text() for text in ax.texts] == ["75", "25", "0", "0"]
    assert not plots.confusion_matrix(torch.eye(30)).axes[0].texts


def test_the_heat_map_keeps_the_largest_weights_of_every_class():
    weights = torch.rand(4, 50) * 0.01
    weights[0, 45:] = weights[1, 45:] = 0.5  # of two classes alike
    weights[2, :3] = 0.02
    ax = plots.addressing_heatmap(weights, list("abcd"), [f"e{i}" for i in range(50)]).axes[0]
    names = [label.get_text() for label in ax.get_xticklabels()]
    assert len(names) == len(set(names)) == 40
    assert names[:5] == ["e45", "e46", "e47", "e48", "e49"]
    assert {"e0", "e1", "e2"} < set(names)  # small beside the others, but the largest of a class
    chosen = [int(name[1:]) for name in names]
    np.testing.assert_allclose(ax.images[0].get_array(), 100 * weights[:, chosen], rtol=1e-5)
    few = plots.addressing_heatmap(weights[:, :20]).axes[0]
    assert [t.get_text() for t in few.get_xticklabels()] == [f"entry {i + 1}" for i in range(20)]


def test_pictures_stand_beside_their_rows_and_columns():
    weights = torch.eye(3, 60) * 0.9
    rows, columns = pictures(3), pictures(60)
    ax = plots.addressing_heatmap(weights, None, None, rows, columns).axes[0]
    heat, *thumbnails = ax.images
    shown = [int(label.get_text().split()[1]) - 1 for label in ax.get_xticklabels()]
    assert shown[0] == 0
    assert heat.get_array().shape == (3, 24)
    for image, expected in zip(thumbnails, torch.cat([rows, columns[shown]])):
        np.testing.assert_array_equal(image.get_array(), expected.permute(1, 2, 0))
    for i, image in enumerate(thumbnails[3:]):
        left, right, bottom, top = image.get_extent()
        assert (left + right) / 2 == pytest.approx(i)
        assert min(bottom, top) > 2.5
    with pytest.raises(UserError, match="need 60 pictures"):
        plots.addressing_heatmap(weights, column_pictures=columns[:5])


@pytest.mark.parametrize("n", [2, 4, 7])
def test_a_map_keeps_its_margins_and_one_unit_both_ways(n, tmp_path):
    fig = plots.prototype_map(**episode(n))
    with Image.open(plots.save(fig, tmp_path / "a.png", dpi=60)) as image:
        pixels = np.asarray(image.convert("L"))
    assert min(pixels[0].min(), pixels[-1].min(), pixels[:, 0].min(), pixels[:, -1].min()) > 250
    (ax,) = fig.axes
    box = ax.get_window_extent()
    sideways, upwards = np.ptp(ax.get_xlim()) / box.width, np.ptp(ax.get_ylim()) / box.height
    assert sideways == pytest.approx(upwards, rel=0.02)


def test_panels_share_a_plane_and_a_scale_or_have_their_own():
    data, y = panels(), episode()["labels"]
    shared = plots.prototype_panels(data, y).axes
    assert shared[0].get_xlim() == shared[1].get_xlim()
    assert [ax.get_title(loc="left") for ax in shared] == list(data)
    own = plots.prototype_panels(data, y, shared=False).axes
    assert own[0].get_xlim() != own[1].get_xlim()
    for ax in (*shared, *own):  # everything lies within
        (x0, x1), (y0, y1) = ax.get_xlim(), ax.get_ylim()
        for dots in ax.collections:
            x, y_ = np.asarray(dots.get_offsets()).T
            assert x0 <= x.min()
            assert y_.max() <= y1
        for patch in ax.patches:
            box = patch.get_path().transformed(patch.get_patch_transform()).get_extents()
            assert x0 <= box.x0 < box.x1 <= x1
            assert y0 <= box.y0 < box.y1 <= y1


def test_uncertainty_is_stacked():
    ax = plots.uncertainty_by_shot({5: 0.1, 1: 0.2}, {1: 0.5, 5: 0.4}).axes[0]
    low, high = ax.containers
    assert [b.get_height() for b in low] == pytest.approx([0.5, 0.4])
    assert [b.get_y() for b in high] == pytest.approx([0.5, 0.4])
    assert [b.get_height() for b in high] == pytest.approx([0.2, 0.1])
    with pytest.raises(UserError, match="same numbers of shots"):
        plots.uncertainty_by_shot({1: 0.2}, {5: 0.4})


def luminance(colour):
    """Grey value in [0, 1] of an sRGB colour, as a printer without colours shows it."""
    return float(np.dot(matplotlib.colors.to_rgb(colour), [0.299, 0.587, 0.114]))


# Machado, Oliveira, Fernandes 2009: severity 1, on linear RGB; the two common forms, blindness to red and to green
BLIND = {
    "protanopia": [[0.1523, 1.0526, -0.2049], [0.1145, 0.7863, 0.0992], [-0.0039, -0.0481, 1.0520]],
    "deuteranopia": [[0.3673, 0.8606, -0.2280], [0.2801, 0.6725, 0.0474], [-0.0118, 0.0429, 0.9689]],
}


@pytest.mark.parametrize("kind", BLIND)
def test_colours_of_curves_differ_for_the_colour_blind(kind):
    linear = np.array([matplotlib.colors.to_rgb(c) for c in COLOURS]) ** 2.2
    seen = np.clip(linear @ np.array(BLIND[kind]).T, 0, 1) ** (1 / 2.2)
    gaps = np.linalg.norm(seen[:, None] - seen, axis=-1)[np.triu_indices(len(COLOURS), 1)]
    assert gaps.min() > 0.12  # white is sqrt(3) from black


def test_maps_of_colours_become_lighter_step_by_step_in_grey():
    greys = np.array([luminance(c) for c in matplotlib.colormaps["cividis"](np.linspace(0, 1, 32))])
    assert (np.diff(greys) > 0).all()
    for draw in (lambda: plots.addressing_heatmap(torch.rand(3, 9)), lambda: plots.confusion_matrix(torch.eye(3))):
        assert draw().axes[0].images[0].get_cmap().name == "cividis"


def test_the_prototype_map_is_an_isometry_of_the_plane_and_its_ellipses_hold_95_percent():
    data = episode(n=2, d=2)
    spread = torch.tensor([[2.0, 0.0], [1.5, 0.3]])
    data["samples"] = torch.tensor([[1.0, 2.0], [-8.0, 3.0]]) + torch.randn(20_000, 2, 2) @ spread
    ax = plots.prototype_map(**data).axes[0]
    queries = np.asarray(ax.collections[1].get_offsets())
    expected = torch.pdist(data["query"][data["labels"] == 0]).numpy()
    np.testing.assert_allclose(torch.pdist(torch.tensor(queries)).numpy(), expected, rtol=1e-5)
    ellipses = [patch for patch in ax.patches if isinstance(patch, Ellipse)]
    assert len(ellipses) == 2
    # 20 000 samples, projected with the same isometry, which the 200 drawn of them reveal
    drawn = np.asarray(ax.collections[0].get_offsets())
    assert len(drawn) == 200
    source = np.c_[data["samples"][:200, 0].numpy(), np.ones(200)]
    motion, *_ = np.linalg.lstsq(source, drawn, rcond=None)
    points = np.c_[data["samples"][:, 0].numpy(), np.ones(20_000)] @ motion
    inside = ellipses[0].get_patch_transform().inverted().transform(points)
    share = (np.linalg.norm(inside, axis=1) <= 1).mean()
    assert share == pytest.approx(0.95, abs=0.005)


def test_awkward_names_are_drawn_as_they_are(tmp_path):
    names = ["a $b$ \\frac{", "_hidden", "two\nlines", "x" * 300]
    fig = plots.prototype_map(**episode(), names=names)
    plots.save(fig, tmp_path / "a.png", dpi=50)
    texts = [text.get_text() for text in fig.legends[0].get_texts()]
    assert texts[:4] == ["a \\$b\\$ \\frac{", " _hidden", "two lines", "x" * 39 + "…"]
    plots.save(plots.accuracy_by_shot({"_$": SHOTS["PN"]}), tmp_path / "b.png", dpi=50)


@pytest.mark.parametrize("kind", ["png", "pdf", "svg"])
def test_saving_replaces_whole_files(tmp_path, kind):
    path = tmp_path / f"figure.{kind}"
    path.write_text("old")
    plots.save(plots.accuracy_by_system(SYSTEMS), path)
    start = {"png": b"\x89PNG", "pdf": b"%PDF", "svg": b"<?xml"}[kind]
    assert path.read_bytes().startswith(start)
    assert list(tmp_path.iterdir()) == [path]


def test_a_single_sample_a_single_shot_and_two_queries_can_be_drawn(tmp_path):
    x = torch.randn(2, 1, 4)
    fig = plots.prototype_map(x, torch.randn(2, 4), torch.tensor([0, 0]), torch.randn(1, 2, 4))
    plots.save(fig, tmp_path / "a.png", dpi=50)


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: plots.learning_curves([]), "none of 0 metrics records holds train/loss"),
        (lambda: plots.learning_curves([{"step": 1, "other": 2}]), "none of 1 metrics records"),
        (lambda: plots.learning_curves([{"train/loss": 2.0}]), "record 0 has no number as its step"),
        (lambda: plots.learning_curves([{"step": 1, "train/loss": "x"}]), "as its train/loss"),
        (lambda: plots.objective_terms([{"step": 1, "train/log_likelihood": 1.0}]), "train/kl_z"),
        (lambda: plots.reliability_diagram({}), "at least one system"),
        (lambda: plots.accuracy_by_system({}), "at least one system"),
        (lambda: plots.accuracy_by_shot({"PN": {}}), "at least one accuracy"),
        (lambda: plots.confusion_matrix(torch.ones(2, 3)), "square"),
        (lambda: plots.confusion_matrix(torch.eye(3), ["a"]), "3 class labels, but 1 names"),
        (lambda: plots.confusion_matrix(-torch.eye(3)), "not negative"),
        (lambda: plots.addressing_heatmap(torch.tensor([[math.nan]])), "with NaN or infinity"),
        (lambda: plots.addressing_heatmap(torch.ones(3)), "weights"),
        (lambda: plots.addressing_heatmap(torch.ones(0, 3)), "weights"),
        (lambda: plots.prototype_map(**{**episode(), "query": torch.ones(24, 3)}), "belong to one episode"),
        (lambda: plots.prototype_map(**{**episode(), "labels": torch.full((24,), 4)}), "from 4 to 4, but"),
        (lambda: plots.picture_grid(torch.ones(3, 8, 8)), "pictures"),
        (lambda: plots.probability_bars(pictures(2), torch.ones(3, 2)), "one row a picture"),
        (lambda: plots.prototype_panels({}, torch.zeros(3)), "at least one panel"),
        (lambda: plots.objective_by_run({"a": [{"step": 1}]}), "none of 1 runs has logged"),
        (lambda: plots.recalled_entries(torch.ones(1, 9), pictures(1), pictures(8)), "need 1 and 9 pictures"),
        (lambda: plots.rejection_curve({}), "at least one system"),
        (lambda: plots.spread_by_shot({}, {}), "at least"),
        (lambda: plots.spread_against_error(torch.rand(5), torch.rand(4) < 1), "5 spreads and 4 errors"),
        (lambda: plots.histograms({}, "x"), "at least one set"),
        (lambda: plots.save(Figure(), "figure.exe"), r"let its name end in \.png"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(draw, message):
    with pytest.raises(UserError, match=message):
        draw()


def test_of_many_classes_the_most_confused_are_shown():
    counts = 10 * torch.eye(50)
    counts[7, 31] = counts[44, 2] = 5
    ax = plots.confusion_matrix(counts, [f"c{i}" for i in range(50)], most=4).axes[0]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["c2", "c7", "c31", "c44"]
    np.testing.assert_allclose(ax.images[0].get_array()[1], [0, 100 * 10 / 15, 100 * 5 / 15, 0])
    assert "4 of 50" in ax.get_ylabel()


def test_of_many_classes_only_confusions_are_coloured():
    counts = 80 * torch.eye(20) + torch.rand(20, 20)
    counts[3, 8] = 20
    shares = plots.confusion_matrix(counts).axes[0].images[0].get_array()
    assert shares.mask.diagonal().all()
    assert shares.mask.sum() == 20
    assert np.unravel_index(shares.argmax(), shares.shape) == (3, 8)


def test_rejection_leaves_the_least_confident_out_first():
    result = results()
    (line,) = plots.rejection_curve({"VSM": result}).axes[0].lines
    half = result.confidence >= result.confidence.median()
    x, y = line.get_xdata(), line.get_ydata()
    at = np.argmin(np.abs(x - 100 * half.double().mean().item()))
    assert y[at] == pytest.approx(100 * result.correct[half].double().mean().item(), abs=0.5)
    assert y[-1] == pytest.approx(100 * result.correct.double().mean().item())


def test_groups_of_rising_spread_hold_the_errors_in_them():
    spread = torch.arange(80.0)
    ax = plots.spread_against_error(spread, spread >= 40, groups=4).axes[0]
    np.testing.assert_allclose(ax.lines[0].get_xdata(), [9.5, 29.5, 49.5, 69.5])
    np.testing.assert_allclose(ax.lines[0].get_ydata(), [0, 0, 100, 100])


def test_the_entries_recalled_most_stand_first():
    weights = torch.tensor([[0.1, 0.6, 0.3]])
    fig = plots.recalled_entries(weights, pictures(1), pictures(3), ["x"], ["a", "b", "c"], number=2)
    assert [ax.get_xlabel() for ax in fig.axes] == ["", "b", "c"]
    assert [ax.get_title() for ax in fig.axes] == ["class", "60.0 %", "30.0 %"]
