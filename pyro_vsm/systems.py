"""The systems by name: from a configuration and what is known of the images to a model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from pyro_vsm.backbones import BACKBONES
from pyro_vsm.baselines import MAML, GaussianProcess, PrototypicalNetwork, Versa
from pyro_vsm.baselines.rfs import RFS
from pyro_vsm.classifier import Classifier
from pyro_vsm.config import Config, ModelConfig
from pyro_vsm.data import Splits
from pyro_vsm.encoder import Encoder
from pyro_vsm.errors import UserError
from pyro_vsm.feature_map import FeatureMap
from pyro_vsm.fewshot import FewShotModel
from pyro_vsm.views import PLAIN
from pyro_vsm.vsm import VSM


@dataclass(frozen=True)
class ImageSpec:
    """What a model must know of the images it is trained on.

    Attributes:
        channels, size: of the images.
        mean, std: of each channel of the training images, in [0, 1].
        classes: number of training classes.
    """

    channels: int
    size: int
    mean: list[float]
    std: list[float]
    classes: int

    @classmethod
    def of(cls, data: Splits) -> ImageSpec:
        """Read off the training split."""
        channels, height, width = data.train.image_shape
        if height != width:
            raise UserError(f"{data.name}: images of {height}x{width} pixels; set data.image_size for square ones")
        mean, std = data.statistics()
        return cls(channels, height, mean, std, data.train.n_classes)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a checkpoint."""
        return asdict(self)


SYSTEMS: dict[str, Callable[..., FewShotModel]] = {}
"""System name to a function of (encoder, configuration, image spec, trusted)."""


def system(name: str):
    """Decorator that files a builder under ``name``."""

    def add(builder: Callable[..., FewShotModel]) -> Callable[..., FewShotModel]:
        SYSTEMS[name] = builder
        return builder

    return add


@system("vsm")
def vsm(encoder: Encoder, config: Config, images: ImageSpec, trusted: bool) -> VSM:
    """Variational Semantic Memory as configured."""
    return _vsm(encoder, config.model, images, trusted)


def _vsm(encoder: Encoder, parts: ModelConfig, images: ImageSpec, trusted: bool) -> VSM:
    settings = dict(vars(parts))
    del settings["backbone"]
    settings["capacity"] = parts.capacity or images.classes
    model = VSM(encoder, **settings, trusted=trusted)
    _check_closed_forms(model)
    return model


def _check_closed_forms(model: VSM) -> None:
    """Let parts that need a Gaussian refuse another one now, and not at the first validation."""
    program = model.program
    closed = program.likelihood.closed
    if not (closed or program.posterior_z.uses_prior):
        return
    zeros = model.encoder.mean.new_zeros(1, 2, 1, model.dim)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        task = model.task(zeros, zeros[:, 0])
        q = program.posterior_z(zeros[:, :, 0], task, program.prior_z(zeros[:, :, 0], task))
        if closed:
            program.likelihood.marginal(q, task)


@system("vpn")
def vpn(encoder: Encoder, config: Config, images: ImageSpec, trusted: bool) -> VSM:
    """Variational prototype network: the same guide network fed no memory, p(z) = N(0, 1), no closed form."""
    changed = {
        **vars(config.model),
        "memory_use": "off",
        "prior_z": "standard_normal",
        "posterior_z": "amortised",
        "likelihood": "euclidean",
        "integrate_z": False,
    }
    return _vsm(encoder, ModelConfig(**changed), images, trusted)


@system("pn")
def pn(encoder: Encoder, config: Config, images: ImageSpec, trusted: bool) -> PrototypicalNetwork:
    """Prototypical network."""
    return PrototypicalNetwork(encoder)


@system("gp")
def gp(encoder: Encoder, config: Config, images: ImageSpec, trusted: bool) -> GaussianProcess:
    """Gaussian-process regression of the classes on the features of a task."""
    return GaussianProcess(encoder)


@system("classifier")
def classifier(encoder: Encoder, config: Config, images: ImageSpec, trusted: bool) -> Classifier:
    """Classifier of the training classes; classifies new ones by the nearest mean feature."""
    _trains_its_encoder("classifier", config)
    return Classifier(encoder, images.classes, config.classifier)


def _trains_its_encoder(name: str, config: Config) -> None:
    if config.training.freeze and config.training.steps:
        raise UserError(f"{name} trains its encoder; leave training.freeze off, or set training.steps: 0 to test it")


@system("maml")
def maml(encoder: Encoder, config: Config, images: ImageSpec, trusted: bool) -> MAML:
    """Model-agnostic meta-learning, of second order unless configured otherwise."""
    if config.training.freeze:
        raise UserError("maml adapts its encoder; leave training.freeze off")
    if encoder.views != [PLAIN]:
        raise UserError("maml adapts to images as they are; leave features.flip, shift, enlarge, pieces and crop off")
    return MAML(encoder, config.maml, config.episodes.way)


@system("maml_first_order")
def maml_first_order(encoder: Encoder, config: Config, images: ImageSpec, trusted: bool) -> MAML:
    """Model-agnostic meta-learning without second derivatives."""
    return maml(encoder, replace(config, maml=replace(config.maml, first_order=True)), images, trusted)


@system("versa")
def versa(encoder: Encoder, config: Config, images: ImageSpec, trusted: bool) -> Versa:
    """Amortised weights of a linear classifier."""
    return Versa(encoder, config.versa)


@system("rfs")
def rfs(encoder: Encoder, config: Config, images: ImageSpec, trusted: bool) -> RFS:
    """Classifier of the training classes; classifies new ones by logistic regression on its features."""
    _trains_its_encoder("rfs", config)
    return RFS(encoder, images.classes, config.classifier, config.rfs)


def build_model(
    name: str,
    config: Config,
    images: ImageSpec,
    *,
    amp: bool = False,
    compiled: bool = False,
    trusted: bool = True,
) -> FewShotModel:
    """The system called ``name``.

    Args:
        name: a key of :data:`SYSTEMS`.
        config: the run, of which the parts matter here.
        images: what the encoder and the memory must fit.
        amp, compiled: see :class:`~pyro_vsm.encoder.Encoder`.
        trusted: whether the configuration may import modules by dotted path.

    Raises:
        UserError: unknown system or part.
    """
    if name not in SYSTEMS:
        raise UserError(f"there is no system {name!r}; known are {', '.join(sorted(SYSTEMS))}")
    try:
        backbone = BACKBONES.build(config.model.backbone, images.channels, images.size, trusted=trusted)
        settings = dict(vars(config.features))
        evaluation = {name: settings.pop(name) for name in ("flip", "shift", "enlarge", "pieces", "crop")}
        feature_map = FeatureMap(backbone.dim, **settings)
        encoder = Encoder(
            backbone,
            images.mean,
            images.std,
            amp=amp,
            compiled=compiled,
            feature_map=feature_map,
            cached=config.training.freeze and config.data.cache,
            **evaluation,
        )
        return SYSTEMS[name](encoder, config, images, trusted)
    except (TypeError, ValueError, RuntimeError) as error:  # of a value that a part cannot work with
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{name}: the model cannot be built ({type(error).__name__}: {reason}); check the values under model"
        ) from error
