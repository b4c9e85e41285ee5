"""Settings of single systems: the pretraining classifier and the baselines."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Union

from pyro_vsm.errors import UserError, check_words


@dataclass
class ClassifierConfig:
    """Pretraining as a classifier of the training classes (system ``classifier``).

    Args:
        batch: images in a step.
        head: linear on the backbone's output, or cosine.
        tau: scale of the cosines at the start.
        dropout: rate at which features are dropped before the heads while training, in [0, 1).
        rotations: copies of each image turned by a random one of 90, 180 and 270 degrees, whose angle a second
            head tells (self-supervision); 0 for none.
        rotation_weight: of that head's cross-entropy.
        rotation_from: what that head sees, the features or the logits of the classes.
        smoothing: label smoothing, in [0, 1).
        teacher: a trained classifier (run folder or file) that is distilled; of a list of several, the mean of their
            probabilities.
        taught: what the teachers are asked about: all copies of an image, or the images as they are, which costs less
            where there are turned copies.
        distillation: weight of the teacher's part of the loss, in [0, 1].
        temperature: of the teacher's probabilities.
        mix: none, or what is done to images and labels: mixup or cutmix; see :func:`~pyro_vsm.mixing.mixed`.
        mix_alpha: of the Beta distribution of the shares.
        mix_share: fraction of the images that are mixed, in [0, 1].
    """

    batch: int = 64
    head: Literal["linear", "cosine"] = "linear"
    tau: float = 10.0
    dropout: float = 0.0
    rotations: int = 1
    rotation_weight: float = 1.0
    rotation_from: Literal["features", "logits"] = "features"
    smoothing: float = 0.0
    teacher: Union[str, list[str], None] = None  # noqa: UP007
    taught: Literal["all", "images"] = "all"
    distillation: float = 0.5
    temperature: float = 4.0
    mix: Literal["none", "mixup", "cutmix"] = "none"
    mix_alpha: float = 1.0
    mix_share: float = 0.5

    @property
    def teachers(self) -> list[str]:
        """Of none, one or several teachers where they lie."""
        given = self.teacher or []
        return [given] if isinstance(given, str) else given

    def __post_init__(self) -> None:
        check_words(self, "classifier")
        if not self.mix_alpha > 0 or not 0 <= self.mix_share <= 1:
            raise UserError(
                f"classifier: mix_alpha={self.mix_alpha}, mix_share={self.mix_share}; give a number above 0 and a "
                "fraction in [0, 1]"
            )
        if self.rotation_from == "logits" and not self.rotations:
            raise UserError("classifier: rotation_from=logits without turned copies; give rotations from 1 on")
        if self.batch < 1 or self.rotations < 0 or self.rotation_weight < 0 or not self.tau > 0:
            raise UserError(
                f"classifier: batch={self.batch}, rotations={self.rotations}, tau={self.tau}, "
                f"rotation_weight={self.rotation_weight}; give a batch from 1 on, tau above 0 and nothing negative"
            )
        if not 0 <= self.dropout < 1:
            raise UserError(f"classifier: dropout={self.dropout}; give a rate in [0, 1)")
        if not 0 <= self.smoothing < 1 or not 0 <= self.distillation <= 1 or not self.temperature > 0:
            raise UserError(
                f"classifier: smoothing={self.smoothing}, distillation={self.distillation}, "
                f"temperature={self.temperature}; give [0, 1), [0, 1] and a number above 0"
            )


@dataclass
class MAMLConfig:
    """Model-agnostic meta-learning (systems ``maml`` and ``maml_first_order``).

    The numbers of steps are those of Finn et al. 2017 for miniImageNet.

    Args:
        inner_steps: gradient steps on the support set while training.
        test_steps: gradient steps on the support set in validation and test.
        inner_lr: rate of these steps; 0 for 16 / D, because features of unit RMS move the logits in proportion to
            their number D. That is 0.01 with the 1600 features of Conv-4 on miniImageNet (published: 0.01 with 800)
            and 0.25 with its 64 features of 28 pixels (published for Omniglot: 0.4, one step).
        first_order: leave second derivatives out (maml_first_order always does).
        batch_norm: whose moments normalise the queries: support, those of the task's examples, so that each query
            is answered for itself; transductive, those of all queries of the task together, as published.
        head: shared, the same start for every class, zero (any number of ways, their order does not matter);
            per_way, a learned one for each position, as published.
    """

    inner_steps: int = 5
    test_steps: int = 10
    inner_lr: float = 0.0
    first_order: bool = False
    batch_norm: Literal["support", "transductive"] = "support"
    head: Literal["shared", "per_way"] = "shared"

    def __post_init__(self) -> None:
        if not min(self.inner_steps, self.test_steps, self.inner_lr) >= 0:
            raise UserError(
                f"maml: inner_steps={self.inner_steps}, test_steps={self.test_steps}, inner_lr={self.inner_lr}; "
                "give nothing negative"
            )
        check_words(self, "maml")


@dataclass
class VersaConfig:
    """Amortised classifier weights (system ``versa``).

    Args:
        hidden: width of the two hidden layers of each inference network.
        samples: classifiers sampled in a training step (L of Gordon et al. 2019).
        log_sigma: log standard deviation of the weights at the start.
    """

    hidden: int = 256
    samples: int = 10
    log_sigma: float = -1.0

    def __post_init__(self) -> None:
        if self.hidden < 1 or self.samples < 1:
            raise UserError(f"versa: hidden={self.hidden}, samples={self.samples}; give at least 1 of each")


@dataclass
class RFSConfig:
    """Logistic regression on the features of a task (system ``rfs``).

    Args:
        c: inverse weight of the squared norm of the weights, scikit-learn's C (published: 1).
        iterations: of the solver; more are needed for c far above 1.
    """

    c: float = 1.0
    iterations: int = 100

    def __post_init__(self) -> None:
        if not self.c > 0 or self.iterations < 1:
            raise UserError(f"rfs: c={self.c}, iterations={self.iterations}; give c above 0 and at least 1 iteration")
