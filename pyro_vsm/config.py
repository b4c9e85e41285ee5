"""What a run is: every setting in one place, with defaults that make the embedded glyphs train in a minute or so."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields, is_dataclass
from typing import Any, Literal, Optional, Union

from pyro_vsm.baseline_config import ClassifierConfig, MAMLConfig, RFSConfig, VersaConfig
from pyro_vsm.data import DataConfig
from pyro_vsm.data.augment import AugmentConfig
from pyro_vsm.errors import UserError, check_words, hints
from pyro_vsm.feature_map import FeatureConfig

Part = Union[str, dict[str, Any]]  # noqa: UP007  jsonargparse reads this form on Python 3.10


@dataclass
class EpisodeConfig:
    """The episodes that a model is trained on.

    Args:
        way: classes in an episode.
        shot: support images of a class.
        queries: query images of a class.
        tasks: episodes in a training step.
    """

    way: int = 5
    shot: int = 1
    queries: int = 10
    tasks: int = 2

    def __post_init__(self) -> None:
        for name in ("way", "shot", "queries", "tasks"):
            if getattr(self, name) < 1:
                raise UserError(f"episodes.{name} is {getattr(self, name)}; it must be at least 1")


@dataclass
class ModelConfig:
    """The parts of a system. Each part is a name, a dotted path to your class, or {class_path, init_args}.

    Args:
        backbone: conv4, resnet12, resnet12_half, wrn.
        prior_m: mixture, support, standard_normal.
        prior_z: memory, empirical_bayes, conditional, standard_normal, vamp.
        posterior_m: mixture, moment_matched, relaxed.
        posterior_z: amortised, conjugate, deterministic.
        likelihood: euclidean, cosine, gaussian, generative.
        memory_use: latent, rote, transformed, moments, off, shuffled.
        memory_update: attention, mean, none.
        capacity: entries of the memory; 0 for one a training class.
        alpha: share of the old entry that consolidation keeps, in [0, 1).
        address_dim: dimension of the learned similarity between entries and support features.
        top_k: recall only the k most similar entries; 0 for all.
        retrieve: let each class of a task find so many entries by exact search, and the task see no others: for
            memories of many thousand entries; 0 for all.
        within_rank: leading eigenvectors of the within-class covariance that the memory keeps for conjugate,
            gaussian and generative; 0 for its diagonal alone.
        objective: elbo or importance_weighted.
        integrate_z: train with z integrated out in closed form, as in prediction (likelihood generative).
        particles: posterior samples in a training step.
        beta_z: final weight of KL(q(z|m,S) || p(z|m)); 1 is the evidence lower bound. Unused under integrate_z.
        beta_m: final weight of KL(q(m|M,S) || p(m|M)).
        warmup: fraction of the training over which both weights rise from 0.
    """

    backbone: Part = "conv4"
    prior_m: Part = "mixture"
    prior_z: Part = "memory"
    posterior_m: Part = "mixture"
    posterior_z: Part = "amortised"
    likelihood: Part = "euclidean"
    memory_use: Part = "latent"
    memory_update: Part = "attention"
    capacity: int = 0
    alpha: float = 0.9
    address_dim: int = 64
    top_k: int = 0
    within_rank: int = 0
    retrieve: int = 0
    objective: Literal["elbo", "importance_weighted"] = "elbo"
    integrate_z: bool = False
    particles: int = 4
    beta_z: float = 1e-4
    beta_m: float = 1e-4
    warmup: float = 0.2


@dataclass
class TrainingConfig:
    """How a system is trained.

    Args:
        steps: optimiser steps.
        lr: learning rate of the backbone (Adam).
        head_lr: learning rate of everything else.
        weight_decay: decoupled (AdamW).
        schedule: of the learning rates: cosine to zero, constant, or steps, a tenth after each of the milestones.
        milestones: fractions of the training after which the rates fall; for schedule steps, and there at least one.
        clip: largest norm of the gradient; 0 for none.
        bad_steps: stop after so many steps in a row whose loss or gradient is not finite; every such step is skipped
            and counted in the log (looked at every log_every steps).
        ema: decay of the moving average of the weights that is validated and kept; 0 for none.
        seed: of initialisation, episodes, augmentation and posterior noise.
        device: auto, cpu, cuda or cuda:N.
        amp: run the backbone in bfloat16 (on CUDA only).
        amp_heads: run the networks of priors and posteriors in bfloat16, too (on CUDA only; densities stay float32).
        compile: run the backbone and the augmentation through torch.compile while training.
        compile_heads: compile the loss with everything in it, Pyro's program included; pays in long trainings.
        cuda_graph: capture the whole step as a CUDA graph (on CUDA only).
        sync_batch_norm: with several processes (torchrun), normalise by the moments of the joint batch.
        log_every: steps between lines of the log.
        validate_every: steps between validations; the best model by validation accuracy is kept. 0: at the end only.
        validation_episodes: episodes of a validation.
        checkpoint_every: steps between checkpoints to resume from; 0: at the end only.
        optimizer: adamw, or sgd with Nesterov momentum 0.9.
        init: a trained model (run folder, system folder or file) whose encoder this training starts from.
        freeze: keep the encoder as it is and train on its features, computed once.
        views: with freeze, augmented views of each training image.
        calibrate: after training, fit the few scalars that a system names (temperature, noise scale) on
            validation episodes.
    """

    steps: int = 150
    lr: float = 2e-3
    head_lr: float = 2e-3
    weight_decay: float = 0.0
    schedule: Literal["cosine", "constant", "steps"] = "cosine"
    milestones: list[float] = field(default_factory=list)
    clip: float = 5.0
    bad_steps: int = 10
    ema: float = 0.99
    seed: int = 0
    device: str = "auto"
    amp: bool = False
    amp_heads: bool = False
    compile: bool = False
    compile_heads: bool = False
    cuda_graph: bool = False
    sync_batch_norm: bool = False
    log_every: int = 10
    validate_every: int = 75
    validation_episodes: int = 200
    checkpoint_every: int = 500
    optimizer: Literal["adamw", "sgd"] = "adamw"
    init: Optional[str] = None  # noqa: UP045  jsonargparse reads this form on Python 3.10
    freeze: bool = False
    views: int = 1
    calibrate: bool = False

    def __post_init__(self) -> None:
        check_words(self, "training")
        if self.steps < 0 or self.log_every < 1 or self.validation_episodes < 2:
            raise UserError(
                f"training: steps={self.steps}, log_every={self.log_every}, "
                f"validation_episodes={self.validation_episodes}; give at least 0, 1 and 2"
            )
        if not 0 <= self.seed < 2**32:
            raise UserError(f"training.seed is {self.seed}; give a number from 0 to 2^32 - 1")
        if min(self.lr, self.head_lr, self.weight_decay, self.clip) < 0 or not 0 <= self.ema < 1:
            raise UserError(
                f"training: lr={self.lr}, head_lr={self.head_lr}, weight_decay={self.weight_decay}, "
                f"clip={self.clip}, ema={self.ema}; rates cannot be negative and ema lies in [0, 1)"
            )
        if not all(0 < m < 1 for m in self.milestones) or self.milestones != sorted(set(self.milestones)):
            raise UserError(
                f"training.milestones are {self.milestones}; give rising fractions between 0 and 1, [0.6, 0.8] say"
            )
        if (self.schedule == "steps") != bool(self.milestones):
            raise UserError(
                f"training: schedule={self.schedule!r} with milestones {self.milestones}; rates fall at milestones, "
                "one or more, under schedule steps alone"
            )
        if self.bad_steps < 1:
            raise UserError(f"training.bad_steps is {self.bad_steps}; give at least 1")
        if self.views < 1:
            raise UserError(f"training.views is {self.views}; give at least 1")
        if not self.init and (self.freeze or self.steps == 0):
            raise UserError(
                f"training: freeze={self.freeze}, steps={self.steps} without init; give training.init, a trained "
                "model to start from"
            )


@dataclass
class EvaluationConfig:
    """The test protocol: the same episodes for every system.

    Args:
        episodes: how many.
        way: classes in an episode; 0 as in training.
        shot: support images of a class; 0 as in training.
        queries: query images of a class.
        samples: posterior samples that probabilities are averaged over.
        seed: of the episodes and the samples.
        split: classes to evaluate on: test, or validation while you are still choosing settings.
        amp: encode the images in bfloat16, for speed: on CUDA, or on a processor with matrix units for it (AMX, say);
            on others it is many times slower. A frozen encoder's features, and maml, which has none before it knows
            the task, are float32 all the same.
    """

    episodes: int = 600
    way: int = 0
    shot: int = 0
    queries: int = 15
    samples: int = 50
    seed: int = 0
    split: Literal["test", "validation"] = "test"
    amp: bool = False

    def __post_init__(self) -> None:
        check_words(self, "evaluation")
        if self.episodes < 2 or self.queries < 1 or self.samples < 1 or min(self.way, self.shot, self.seed) < 0:
            raise UserError(
                f"evaluation: episodes={self.episodes}, queries={self.queries}, samples={self.samples}, "
                f"way={self.way}, shot={self.shot}, seed={self.seed}; give at least 2 episodes, 1 query, 1 sample, "
                "and nothing negative"
            )


@dataclass
class Config:
    """A whole run.

    Args:
        systems: what to train, in this order, under one recipe.
        data: the images.
        augment: distortions of training images.
        episodes: training episodes.
        model: the parts of the systems.
        features: of the encoder of every system.
        classifier: the system of that name, and the training of rfs.
        maml: the systems maml and maml_first_order.
        versa: the system of that name.
        rfs: the system of that name.
        training: optimisation.
        evaluation: the test protocol.
    """

    systems: list[str] = field(default_factory=lambda: ["vsm", "vpn", "pn"])
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    episodes: EpisodeConfig = field(default_factory=EpisodeConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    features: FeatureConfig = field(default_factory=FeatureConfig)
    classifier: ClassifierConfig = field(default_factory=ClassifierConfig)
    maml: MAMLConfig = field(default_factory=MAMLConfig)
    versa: VersaConfig = field(default_factory=VersaConfig)
    rfs: RFSConfig = field(default_factory=RFSConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)

    def to_dict(self) -> dict[str, Any]:
        """Nested plain dictionaries, ready for YAML or JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Config:
        """The inverse of :meth:`to_dict`.

        Raises:
            UserError: unknown or missing names, values that a section refuses.
        """
        return _read(cls, values, "configuration")


def _read(cls: type, values: Any, where: str) -> Any:
    if not isinstance(values, dict):
        raise UserError(f"{where} must be a mapping, not {type(values).__name__}")
    types = hints(cls)
    unknown = set(values) - {f.name for f in fields(cls)}
    if unknown:
        raise UserError(f"{where} has no setting {', '.join(map(repr, sorted(unknown)))}; remove it or mend its name")
    arguments = {}
    for name, value in values.items():
        if is_dataclass(types[name]):
            value = _read(types[name], value, f"{where}.{name}")  # type: ignore[arg-type]
        elif isinstance(value, list) and "tuple" in str(types[name]):
            value = tuple(value)
        arguments[name] = value
    try:
        return cls(**arguments)
    except (TypeError, ValueError) as error:
        raise UserError(f"{where}: {error}") from error
