"""Metrics of class probabilities, and intervals over episodes.

Shapes: `...` stands for any leading dimensions, usually the episodes; Q' is the number of queries of an
episode and N the number of its classes. Everything is computed in float64 (float32 where a device has none).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_vsm.errors import UserError

# torchmetrics is imported inside the functions that use it: the import takes seconds

FLOOR = 1e-12
"""Probabilities are clamped to at least this in a logarithm, so one query costs at most 27.6 nats."""

BINS = 15
"""Equal-width bins of the confidence for calibration, as in Guo et al. 2017."""


def _wide(values: Tensor) -> Tensor:
    return values.to(torch.float32 if values.device.type == "mps" else torch.float64)


def _checked(probs: Tensor, labels: Tensor) -> Tensor:
    """`probs` [..., Q', N] widened, after a check that `labels` [..., Q'] can belong to them."""
    if probs.dim() < 2 or not probs.is_floating_point():
        raise UserError(f"probabilities must be floating-point [..., queries, classes], not {_named(probs)}")
    if labels.dtype != torch.int64 or labels.shape not in (probs.shape[:-1], probs.shape[-2:-1]):
        raise UserError(
            f"labels must be int64 {list(probs.shape[:-1])} for probabilities {list(probs.shape)}, "
            f"not {_named(labels)}"
        )
    return _wide(probs)


def _named(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def _of_label(probs: Tensor, labels: Tensor) -> Tensor:
    return probs.gather(-1, labels.expand(probs.shape[:-1]).unsqueeze(-1)).squeeze(-1)


def accuracy(probs: Tensor, labels: Tensor) -> Tensor:
    """Fraction of queries whose most probable class is the right one: `mean_i [argmax_n p_in = y_i]`.

    Args:
        probs: `[..., Q', N]`.
        labels: int64 `[..., Q']`, or `[Q']` where all episodes share it.

    Returns:
        `[...]` in [0, 1].
    """
    return _wide(_checked(probs, labels).argmax(-1) == labels).mean(-1)


def negative_log_likelihood(probs: Tensor, labels: Tensor) -> Tensor:
    """Mean negative log probability of the right class, nats a query: `mean_i -log max(p_{i, y_i}, FLOOR)`.

    The logarithmic score of Good 1952, "Rational Decisions". Arguments as in `accuracy`; returns `[...]`.
    """
    return -_of_label(_checked(probs, labels), labels).clamp_min(FLOOR).log().mean(-1)


def brier(probs: Tensor, labels: Tensor) -> Tensor:
    """Brier score: `mean_i sum_n (p_in - [n = y_i])^2`, in [0, 2].

    Summed over the classes as in Brier 1950, "Verification of forecasts expressed in terms of probability".
    Arguments as in `accuracy`; returns `[...]`.
    """
    wide = _checked(probs, labels)
    # sum_n (p_n - [n = y])^2 = sum_n p_n^2 - 2 p_y + 1
    return (wide.square().sum(-1) - 2 * _of_label(wide, labels) + 1).mean(-1)


def _calibration_inputs(confidence: Tensor, correct: Tensor) -> tuple[Tensor, Tensor]:
    if confidence.shape != correct.shape or confidence.numel() == 0 or not confidence.is_floating_point():
        raise UserError(
            "calibration needs a floating-point confidence and a correctness for each of at least one query, "
            f"not {_named(confidence)} and {_named(correct)}"
        )
    # On the CPU, where sums have a fixed order. A confidence of exactly 1 would open a bin of its own beyond
    # the last: the bins are [lower, upper), the last is meant to include 1.
    wide = confidence.reshape(-1).cpu().double()
    if not bool(((wide >= 0) & (wide <= 1 + 1e-5)).all()):
        raise UserError("confidences must lie in [0, 1]: pass probabilities, not logits")
    return wide.clamp_max(math.nextafter(1.0, 0.0)), correct.reshape(-1).cpu().long()


def expected_calibration_error(confidence: Tensor, correct: Tensor, bins: int = BINS) -> float:
    """Expected calibration error: `sum_b (n_b / n) |accuracy_b - confidence_b|`, in [0, 1].

    Over equal-width bins of the confidence, all queries pooled (Naeini et al. 2015; Guo et al. 2017, "On
    Calibration of Modern Neural Networks", eq. 3).

    Args:
        confidence: probability of the most probable class, `[queries]`.
        correct: whether that class is the right one, bool `[queries]`.
        bins: number of bins.

    Raises:
        UserError: if shapes differ, nothing is given, or a confidence is NaN or outside [0, 1].
    """
    from torchmetrics.functional.classification import binary_calibration_error

    wide, hit = _calibration_inputs(confidence, correct)
    return float(binary_calibration_error(wide, hit, n_bins=bins, norm="l1"))


@dataclass(frozen=True, eq=False)
class ReliabilityCurve:
    """One entry a bin, all float64 `[bins]` but `count`.

    Attributes:
        edges: bin edges, `[bins + 1]`, from 0 to 1; bins are [lower, upper), the last includes 1.
        confidence: mean confidence of the bin's queries; NaN in an empty bin.
        accuracy: fraction of them that is right; NaN in an empty bin.
        count: number of them, int64.
    """

    edges: Tensor
    confidence: Tensor
    accuracy: Tensor
    count: Tensor


def reliability_curve(confidence: Tensor, correct: Tensor, bins: int = BINS) -> ReliabilityCurve:
    """Accuracy against confidence over equal-width bins (DeGroot & Fienberg 1983).

    Arguments and errors as in `expected_calibration_error`, which is the mean distance of this curve from the
    diagonal, weighted by `count`.
    """
    wide, hit = _calibration_inputs(confidence, correct)
    edges = torch.linspace(0, 1, bins + 1, dtype=torch.float64)
    index = torch.bucketize(wide, edges, right=True) - 1
    count = torch.bincount(index, minlength=bins)
    means = [torch.bincount(index, weights=w, minlength=bins) / count for w in (wide, hit.double())]
    return ReliabilityCurve(edges, means[0], means[1], count)


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % confidence interval, mean ± half_width.

    Attributes:
        mean: the mean.
        half_width: half the width of the interval; NaN where n is 1.
        n: number of values averaged.
    """

    mean: float
    half_width: float
    n: int

    @property
    def excludes_zero(self) -> bool:
        """Whether zero lies outside the interval."""
        return abs(self.mean) > self.half_width

    def __str__(self) -> str:
        return f"{self.mean:.4f} ± {self.half_width:.4f}"


def mean_interval(values: Tensor) -> Interval:
    """Mean over episodes with its 95 % interval: `mean ± 1.96 sd / sqrt(n)`, sd with n - 1.

    The normal approximation, customary in few-shot learning; for a handful of values (training seeds, say) it
    is too narrow.

    Args:
        values: `[E]`, one value an episode.

    Raises:
        UserError: if `values` is not one-dimensional, is empty or holds NaN or infinity.
    """
    if values.dim() != 1 or len(values) == 0:
        raise UserError(f"an interval needs one value for each of at least one episode, not {_named(values)}")
    wide = values.cpu().double()
    if not bool(wide.isfinite().all()):
        at = int((~wide.isfinite()).nonzero()[0])
        raise UserError(f"the value of episode {at} is {float(wide[at])}: an interval needs finite values")
    n = len(wide)
    half = 1.96 * float(wide.std()) / math.sqrt(n) if n > 1 else math.nan
    return Interval(float(wide.mean()), half, n)


def paired(a: Tensor, b: Tensor) -> Interval:
    """Mean of `a - b` over the same episodes, with its 95 % interval.

    The variance that the episodes share cancels, so the interval is narrower than that of two separate means.

    Args:
        a: `[E]`, one value an episode.
        b: `[E]`, the reference's value on the same episodes in the same order.
    """
    if a.shape != b.shape:
        raise UserError(
            f"paired values must be of the same episodes, but there are {list(a.shape)} and {list(b.shape)}"
        )
    return mean_interval(a.cpu().double() - b.cpu().double())


def auroc(scores: Tensor, positive: Tensor) -> float:
    """Area under the receiver operating characteristic: `P(s+ > s-) + P(s+ = s-) / 2`.

    For the detection of unknown classes: `scores` say how unknown a query looks, `positive` which ones are.

    Args:
        scores: `[queries]`, any finite real numbers; only their order counts.
        positive: bool `[queries]`.

    Raises:
        UserError: if shapes differ, scores are not finite, or positives or negatives are missing.
    """
    from torchmetrics.functional.classification import binary_auroc

    if scores.shape != positive.shape or positive.dtype != torch.bool:
        raise UserError(f"AUROC needs one score and one bool a query, not {_named(scores)} and {_named(positive)}")
    if not bool(scores.isfinite().all()):
        raise UserError("AUROC needs finite scores, but some are NaN or infinite")
    if not bool(positive.any()) or bool(positive.all()):
        raise UserError("AUROC needs both positive and negative queries, but one kind is missing")
    # torchmetrics squashes scores outside [0, 1] by a sigmoid, which ties large ones: hand it ranks
    distinct, rank = scores.reshape(-1).unique(return_inverse=True)
    ranks = _wide(rank) / len(distinct)
    return float(binary_auroc(ranks, positive.reshape(-1).long()))


def auroc_by_episode(positive: Tensor, negative: Tensor) -> Tensor:
    """`auroc` of every episode by itself, by comparing all pairs.

    Args:
        positive: scores of the positive queries, `[..., A]`.
        negative: scores of the negative queries, `[..., B]`.

    Returns:
        `[...]` in [0, 1], float64.
    """
    p, n = positive.unsqueeze(-1), negative.unsqueeze(-2)
    return (_wide(p > n) + 0.5 * _wide(p == n)).mean((-2, -1))


def apply_temperature(probs: Tensor, temperature: float) -> Tensor:
    """Tempered probabilities `p_n^(1/T) / sum_m p_m^(1/T)`; T > 1 softens them, the argmax stays.

    The same as dividing logits by T (Guo et al. 2017, eq. 9). Probabilities are raised to `FLOOR` first.

    Args:
        probs: `[..., N]`.
        temperature: T > 0.
    """
    if not temperature > 0 or math.isinf(temperature):
        raise UserError(f"temperature is {temperature}: it must be a finite number above 0")
    if temperature == 1.0:
        return probs
    return (_wide(probs).clamp_min(FLOOR).log() / temperature).softmax(-1)


def fit_temperature(probs: Tensor, labels: Tensor) -> float:
    """The temperature with the least negative log-likelihood on validation episodes.

    The loss is convex in b = 1/T with slope `mean_i (sum_n p^b_in log p_in - log p_{i, y_i})`, so the root of
    the slope is found by bisection in log T.

    Args:
        probs: `[..., Q', N]`, of validation classes, never of the test episodes.
        labels: int64 `[..., Q']` or `[Q']`.

    Returns:
        T in [0.01, 100]; an end of that range if the optimum lies beyond (0, if every query is right); 1.0
        where every temperature is as good (all probabilities uniform).

    Raises:
        UserError: if the probabilities hold NaN or are empty.
    """
    logp = _checked(probs, labels).clamp_min(FLOOR).log()
    if logp.numel() == 0 or not bool(logp.isfinite().all()):
        raise UserError("a temperature can be fitted only to at least one query, and to probabilities without NaN")
    target = _of_label(logp, labels).mean()
    low, high = -math.log(100.0), math.log(100.0)
    for _ in range(50):
        middle = (low + high) / 2
        slope = float(((logp * math.exp(-middle)).softmax(-1) * logp).sum(-1).mean() - target)
        if abs(slope) < 1e-13:  # rounding; the first middle is T = 1
            return math.exp(middle)
        # slope in b = 1/T is positive where b is too large, that is where T is too small
        low, high = (middle, high) if slope > 0 else (low, middle)
    return math.exp((low + high) / 2)
