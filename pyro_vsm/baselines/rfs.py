"""Rethinking few-shot classification (RFS: Tian, Wang, Krishnan, Tenenbaum, Isola 2020).

Not imported by the package's ``__init__``: it extends the pretraining classifier, which itself extends a baseline.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pyro_vsm.classifier import Classifier
from pyro_vsm.config import ClassifierConfig, RFSConfig
from pyro_vsm.encoder import Encoder
from pyro_vsm.precision import full_precision


@dataclass(frozen=True)
class LinearClassifiers:
    """A linear softmax classifier a task.

    Attributes:
        weight: ``[T, N, D]``.
        bias: ``[T, N]``.
    """

    weight: Tensor
    bias: Tensor

    def logits(self, query: Tensor) -> Tensor:
        """``[T, Q, N]`` of ``[T, Q, D]``."""
        return query @ self.weight.mT + self.bias.unsqueeze(1)


def logistic_regression(x: Tensor, y: Tensor, *, c: float = 1.0, iterations: int = 100) -> LinearClassifiers:
    """Multinomial logistic regression of T tasks at once, without waiting for the device.

    Minimises ``c sum_i -log softmax(W x_i + b)[y_i] + |W|^2 / 2``, as scikit-learn's ``LogisticRegression(C=c)`` does
    from three classes on. (For two classes that has one weight vector, which is the same as c / 2 here.)

    Source: the bound ``H <= (I - 11'/N)/2 (x) X'X`` of the Hessian (Böhning 1992), whose Newton step has one matrix
    for all iterations and classes, with Nesterov's momentum, restarted in a task that has gone uphill (O'Donoghue,
    Candès 2015). W lies in the span of the examples, so the matrix has S + 1 rows whatever D is. In float64; on unit
    features and with 100 iterations the probabilities are exact to 1e-6 for c = 1 and up to 20 ways and 20 examples,
    and to 1e-3 for c = 10; with c = 100 take 1000.

    Args:
        x: examples ``[T, S, D]``.
        y: one-hot classes ``[T, S, N]``.
        c: inverse weight of the penalty, > 0.
        iterations: how many.

    Returns:
        Float64 weights and biases.
    """
    x, y = x.double(), y.double()
    size = x.shape[1]
    gram = x @ x.mT
    matrix = x.new_zeros(len(x), size + 1, size + 1)
    matrix[:, :size, :size] = gram / 2 + torch.eye(size, dtype=x.dtype, device=x.device) / c
    matrix[:, :size, size] = 0.5
    matrix[:, size, :size] = gram.sum(1) / 2
    matrix[:, size, size] = size / 2
    inverse, _ = torch.linalg.inv_ex(matrix)  # never singular, and inv would wait for the device to find that out
    at = ahead = x.new_zeros(len(x), size + 1, y.shape[2])  # coefficients of the examples in W, then b
    momentum = x.new_ones(len(x), 1, 1)
    for _ in range(iterations):
        residual = torch.softmax(gram @ ahead[:, :size] + ahead[:, size:], -1) - y
        # the gradient is this with its first rows times c gram
        reduced = torch.cat([residual + ahead[:, :size] / c, residual.sum(1, keepdim=True)], 1)
        new = ahead - inverse @ reduced
        step = new - at
        rise = (gram @ reduced[:, :size] * step[:, :size]).sum((1, 2)) + (reduced[:, size] * step[:, size]).sum(-1)
        momentum = torch.where(rise[:, None, None] > 0, 1.0, momentum)
        grown = (1 + (1 + 4 * momentum.square()).sqrt()) / 2
        at, ahead, momentum = new, new + (momentum - 1) / grown * step, grown
    return LinearClassifiers(at[:, :size].mT @ x, at[:, size])


class RFS(Classifier):
    """A classifier of the training classes; new ones by logistic regression on its normalised features.

    Training is that of the system ``classifier`` (settings ``classifier``, with ``teacher`` for self-distillation);
    there are no training episodes. With ``training.init`` and ``training.steps: 0`` it takes a classifier that was
    trained before. Validation and test are by episodes as for every system.

    Other than the published evaluation, it does not add five augmented copies of each support image.

    Args:
        encoder: images to features.
        classes: number of training classes.
        config: of the pretraining.
        rfs: of the logistic regression.
    """

    def __init__(self, encoder: Encoder, classes: int, config: ClassifierConfig, rfs: RFSConfig):
        super().__init__(encoder, classes, config)
        self.rfs = rfs

    def calibration_parameters(self) -> list[nn.Parameter]:
        """None: the temperature of the nearest mean has no part in the prediction."""
        return []

    def predict(self, support: Tensor, query: Tensor, samples: int = 100) -> Tensor:
        """See :class:`~pyro_vsm.fewshot.FewShotModel`; there is nothing to sample."""
        N, K = support.shape[1:3]
        return self._fit_predict(support.flatten(1, 2), [K] * N, query)

    def predict_samples(self, support: Sequence[Tensor], query: Tensor, samples: int = 100) -> Tensor:
        """See :class:`~pyro_vsm.fewshot.FewShotModel`; every example counts as one, whatever their numbers."""
        return self._fit_predict(torch.cat(list(support)).unsqueeze(0), [len(s) for s in support], query.unsqueeze(0))

    def _fit_predict(self, examples: Tensor, numbers: list[int], query: Tensor) -> Tensor:
        """``[T, Q, N]`` for examples ``[T, S, D]``, class by class, and queries ``[T, Q, D]``."""
        y = torch.block_diag(*(torch.ones(k, 1, device=examples.device) for k in numbers))
        with full_precision(examples), torch.no_grad():
            fitted = logistic_regression(
                F.normalize(examples, dim=-1),
                y.expand(len(examples), -1, -1),
                c=self.rfs.c,
                iterations=self.rfs.iterations,
            )
            return torch.softmax(fitted.logits(F.normalize(query, dim=-1).double()), -1).to(query.dtype)
