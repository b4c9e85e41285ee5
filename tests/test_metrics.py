"""Metrics against hand-computed values, independent implementations and simulation."""

import math

import numpy as np
import pytest
import scipy.optimize
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pyro_vsm import metrics
from pyro_vsm.errors import UserError
from pyro_vsm.metrics import Interval

# three queries of three classes: right with 0.7, wrong (right class has 0.3), right with 0.4 of a near tie
PROBS = torch.tensor([[0.7, 0.2, 0.1], [0.6, 0.3, 0.1], [0.25, 0.35, 0.4]])
LABELS = torch.tensor([0, 1, 2])


def random_probs(*shape: int, sharpness: float = 2.0) -> torch.Tensor:
    return (sharpness * torch.randn(*shape)).softmax(-1)


def test_point_metrics_against_hand_computation():
    torch.testing.assert_close(metrics.accuracy(PROBS, LABELS), torch.tensor(2 / 3, dtype=torch.float64))
    nll = -(math.log(0.7) + math.log(0.3) + math.log(0.4)) / 3
    assert float(metrics.negative_log_likelihood(PROBS, LABELS)) == pytest.approx(nll, abs=1e-7)
    # (0.3^2 + 0.2^2 + 0.1^2 + 0.6^2 + 0.7^2 + 0.1^2 + 0.25^2 + 0.35^2 + 0.6^2) / 3
    assert float(metrics.brier(PROBS, LABELS)) == pytest.approx((0.14 + 0.86 + 0.545) / 3, abs=1e-7)


def test_point_metrics_keep_leading_dimensions_and_share_labels():
    probs = random_probs(4, 2, 6, 3)
    labels = torch.randint(3, (6,))
    for metric in (metrics.accuracy, metrics.negative_log_likelihood, metrics.brier):
        value = metric(probs, labels)
        assert value.shape == (4, 2)
        assert value.dtype == torch.float64
        torch.testing.assert_close(value, metric(probs, labels.expand(4, 2, 6)))
        torch.testing.assert_close(value[1, 1], metric(probs[1, 1], labels))


def test_brier_equals_its_definition_and_its_extremes():
    probs, labels = random_probs(5, 7, 4), torch.randint(4, (5, 7))
    direct = (probs.double() - torch.nn.functional.one_hot(labels, 4)).square().sum(-1).mean(-1)
    torch.testing.assert_close(metrics.brier(probs, labels), direct)
    certain = torch.tensor([[1.0, 0.0]])
    assert float(metrics.brier(certain, torch.tensor([0]))) == 0
    assert float(metrics.brier(certain, torch.tensor([1]))) == 2


def test_log_likelihood_of_an_impossible_class_stays_at_the_floor():
    value = metrics.negative_log_likelihood(torch.tensor([[1.0, 0.0]]), torch.tensor([1]))
    assert float(value) == pytest.approx(-math.log(1e-12))


def ece_by_hand(confidence: np.ndarray, correct: np.ndarray, bins: int) -> float:
    total = 0.0
    for b in range(bins):
        low, high = b / bins, (b + 1) / bins
        inside = (confidence >= low) & ((confidence < high) | (b == bins - 1))
        if inside.any():
            total += inside.mean() * abs(correct[inside].mean() - confidence[inside].mean())
    return total


@pytest.mark.parametrize("bins", [1, 10, 15])
def test_calibration_error_against_plain_numpy(bins):
    confidence = torch.rand(5000, dtype=torch.float64)
    confidence[:50] = 1.0
    correct = torch.rand(5000) < confidence**2
    expected = ece_by_hand(confidence.numpy(), correct.numpy(), bins)
    assert metrics.expected_calibration_error(confidence, correct, bins) == pytest.approx(expected, abs=1e-10)
    curve = metrics.reliability_curve(confidence, correct, bins)
    gap = (curve.accuracy - curve.confidence).abs().nan_to_num() * curve.count / curve.count.sum()
    assert float(gap.sum()) == pytest.approx(expected, abs=1e-10)


def test_certain_queries_share_the_last_bin():
    # bin [14/15, 1] holds 0.96 (right) and 1 (wrong): |0.5 - 0.98|; apart they would give (0.04 + 1) / 2
    confidence, correct = torch.tensor([0.96, 1.0]), torch.tensor([True, False])
    assert metrics.expected_calibration_error(confidence, correct) == pytest.approx(0.48, abs=1e-6)


def test_perfect_and_worst_calibration():
    ones = torch.ones(10)
    assert metrics.expected_calibration_error(ones, ones.bool()) == pytest.approx(0, abs=1e-12)
    assert metrics.expected_calibration_error(ones, ~ones.bool()) == pytest.approx(1, abs=1e-12)
    confidence = torch.rand(200_000)
    drawn = torch.rand(200_000) < confidence
    assert metrics.expected_calibration_error(confidence, drawn) < 0.01


def test_reliability_curve_by_hand_with_an_empty_bin():
    curve = metrics.reliability_curve(
        torch.tensor([0.1, 0.3, 0.8, 1.0]), torch.tensor([True, False, False, True]), bins=4
    )
    assert curve.edges.tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert curve.count.tolist() == [1, 1, 0, 2]
    torch.testing.assert_close(curve.confidence[[0, 1, 3]], torch.tensor([0.1, 0.3, 0.9]).double())
    assert curve.accuracy[[0, 1, 3]].tolist() == [1, 0, 0.5]
    assert bool(curve.accuracy[2].isnan())
    assert bool(curve.confidence[2].isnan())


def test_interval_by_hand():
    interval = metrics.mean_interval(torch.tensor([1.0, 2.0, 3.0, 6.0]))
    assert interval.mean == 3
    assert interval.half_width == pytest.approx(1.96 * math.sqrt(14 / 3) / 2)
    assert interval.n == 4
    assert interval.excludes_zero
    assert str(Interval(0.5, 0.01, 3)) == "0.5000 ± 0.0100"


def test_one_episode_has_a_mean_but_no_interval():
    interval = metrics.mean_interval(torch.tensor([0.4]))
    assert interval.mean == pytest.approx(0.4)
    assert math.isnan(interval.half_width)
    assert not interval.excludes_zero


def test_interval_covers_the_truth_95_times_in_100():
    # 4000 experiments of 200 episodes, each with 75 queries answered with probability 0.5
    values = torch.distributions.Binomial(75, torch.tensor(0.5)).sample((4000, 200)) / 75
    covered = 0
    for row in values:
        interval = metrics.mean_interval(row)
        covered += abs(interval.mean - 0.5) <= interval.half_width
    # standard error of the coverage is 0.0034
    assert covered / 4000 == pytest.approx(0.95, abs=0.013)


def test_paired_difference_equals_manual_and_is_narrower():
    difficulty = torch.randn(1000).double()
    a = difficulty + 0.1 * torch.randn(1000) + 0.05
    b = difficulty + 0.1 * torch.randn(1000)
    interval = metrics.paired(a, b)
    d = (a - b).numpy()
    assert interval.mean == pytest.approx(d.mean())
    assert interval.half_width == pytest.approx(1.96 * d.std(ddof=1) / math.sqrt(1000))
    assert interval.half_width < metrics.mean_interval(a).half_width / 3
    # the textbook's paired t statistic
    t = scipy.stats.ttest_rel(a.numpy(), b.numpy()).statistic
    assert interval.mean / (interval.half_width / 1.96) == pytest.approx(t)


def auroc_by_rank(scores: np.ndarray, positive: np.ndarray) -> float:
    """Mann-Whitney U over average ranks."""
    ranks = scipy.stats.rankdata(scores)
    p, n = positive.sum(), (~positive).sum()
    return (ranks[positive].sum() - p * (p + 1) / 2) / (p * n)


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=2, max_size=30).filter(
        lambda pairs: 0 < sum(flag for _, flag in pairs) < len(pairs)
    ),
    st.sampled_from([1.0, 0.1, 1e6]),
)
def test_auroc_with_ties_equals_the_rank_formula(pairs, scale):
    scores = torch.tensor([scale * value for value, _ in pairs], dtype=torch.float64)
    positive = torch.tensor([flag for _, flag in pairs])
    expected = auroc_by_rank(scores.numpy(), positive.numpy())
    assert metrics.auroc(scores, positive) == pytest.approx(expected, abs=1e-6)
    by_episode = metrics.auroc_by_episode(scores[positive], scores[~positive])
    assert float(by_episode) == pytest.approx(expected, abs=1e-12)


def test_auroc_of_large_scores_and_of_many():
    # a sigmoid would round both to 1
    assert metrics.auroc(torch.tensor([100.0, 120.0]), torch.tensor([False, True])) == 1
    scores, positive = torch.randn(300_000), torch.rand(300_000) < 0.3
    scores[positive] += 1
    expected = auroc_by_rank(scores.numpy(), positive.numpy())
    assert metrics.auroc(scores, positive) == pytest.approx(expected, abs=1e-5)
    assert expected == pytest.approx(scipy.stats.norm.cdf(1 / math.sqrt(2)), abs=0.005)


def test_auroc_by_episode_is_batched():
    positive, negative = torch.randn(6, 5), torch.randn(6, 9)
    value = metrics.auroc_by_episode(positive, negative)
    assert value.shape == (6,)
    flags = torch.arange(14) < 5
    for e in range(6):
        single = metrics.auroc(torch.cat([positive[e], negative[e]]), flags)
        assert float(value[e]) == pytest.approx(single, abs=1e-6)


def test_temperature_scaling_finds_the_optimum_of_an_independent_search():
    logits, labels = 3 * torch.randn(40, 50, 5, dtype=torch.float64), torch.randint(5, (40, 50))
    labels = torch.where(torch.rand(40, 50) < 0.5, logits.argmax(-1), labels)
    probs = logits.softmax(-1)

    def loss(log_t: float) -> float:
        return float(metrics.negative_log_likelihood((logits / math.exp(log_t)).softmax(-1), labels).mean())

    best = scipy.optimize.minimize_scalar(loss, bounds=(-3, 3), method="bounded", options={"xatol": 1e-8})
    fitted = metrics.fit_temperature(probs, labels)
    assert fitted == pytest.approx(math.exp(best.x), rel=1e-5)
    assert fitted > 1.5  # overconfident: to be softened
    cooled = metrics.apply_temperature(probs, fitted)
    torch.testing.assert_close(cooled, (logits / fitted).softmax(-1), rtol=1e-6, atol=1e-9)
    assert bool((cooled.argmax(-1) == probs.argmax(-1)).all())


def test_temperature_of_calibrated_probabilities_is_one():
    logits = 2 * torch.randn(200_000, 5)
    labels = torch.distributions.Categorical(logits=logits).sample()
    assert metrics.fit_temperature(logits.softmax(-1), labels) == pytest.approx(1, abs=0.02)


def test_temperature_at_the_ends():
    certain = random_probs(20, 5)
    assert metrics.fit_temperature(certain, certain.argmax(-1)) == pytest.approx(0.01)
    assert metrics.fit_temperature(certain, certain.argmin(-1)) == pytest.approx(100)
    assert metrics.fit_temperature(torch.full((4, 5), 0.2), torch.zeros(4, dtype=torch.int64)) == 1.0
    assert metrics.apply_temperature(certain, 1.0) is certain
    torch.testing.assert_close(
        metrics.apply_temperature(torch.eye(3), 1e6), torch.full((3, 3), 1 / 3).double(), atol=1e-4, rtol=0
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: metrics.accuracy(torch.rand(5), torch.zeros(5, dtype=torch.int64)), "probabilities must be"),
        (lambda: metrics.accuracy(torch.ones(3, 2, dtype=torch.int64), LABELS), "floating-point"),
        (lambda: metrics.brier(PROBS, LABELS[:2]), r"labels must be int64 \[3\]"),
        (lambda: metrics.negative_log_likelihood(PROBS, LABELS.float()), "labels must be int64"),
        (lambda: metrics.expected_calibration_error(torch.rand(3), torch.rand(2) < 1), "calibration needs"),
        (lambda: metrics.reliability_curve(torch.rand(0), torch.rand(0) < 1), "at least one query"),
        (lambda: metrics.expected_calibration_error(torch.tensor([2.0]), torch.tensor([True])), "not logits"),
        (
            lambda: metrics.expected_calibration_error(torch.tensor([math.nan]), torch.tensor([True])),
            "must lie",
        ),
        (lambda: metrics.mean_interval(torch.rand(2, 3)), "one value for each"),
        (lambda: metrics.mean_interval(torch.rand(0)), "at least one episode"),
        (lambda: metrics.mean_interval(torch.tensor([0.0, math.nan])), "value of episode 1 is nan"),
        (lambda: metrics.paired(torch.rand(2), torch.rand(3)), "same episodes"),
        (lambda: metrics.auroc(torch.rand(2), torch.tensor([0, 1])), "one bool a query"),
        (lambda: metrics.auroc(torch.tensor([0.0, math.nan]), torch.tensor([True, False])), "finite scores"),
        (lambda: metrics.auroc(torch.rand(2), torch.tensor([True, True])), "one kind is missing"),
        (lambda: metrics.apply_temperature(PROBS, 0.0), "must be a finite number above 0"),
        (lambda: metrics.apply_temperature(PROBS, math.nan), "must be a finite number above 0"),
        (lambda: metrics.fit_temperature(PROBS * math.nan, LABELS), "without NaN"),
        (lambda: metrics.fit_temperature(PROBS[:0], LABELS[:0]), "at least one query"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(call, message):
    with pytest.raises(UserError, match=message):
        call()
