"""Evaluating the trained models of a table: one at a time, all protocols from one pass over the images.

What an evaluation gave is kept beside the model and used again as long as the model, the episodes, the data and
the source of this package are the same.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyro_vsm import checkpoint, metrics
from pyro_vsm.answering import Evaluable
from pyro_vsm.config import EvaluationConfig
from pyro_vsm.data import Splits
from pyro_vsm.data.episodes import EpisodeIndex, fixed_episodes
from pyro_vsm.data.images import ClassImages
from pyro_vsm.errors import UserError
from pyro_vsm.evaluation import detect_unknown, evaluate_tempered, predict_probabilities
from pyro_vsm.feature_cache import split_features
from pyro_vsm.loading import load_model
from pyro_vsm.results import EpisodeResults, episodes_hash
from pyro_vsm.tables.rows import Protocol, Table
from pyro_vsm.tables.runs import sha256, source_digest

TEMPERATURE_SEED = 3
"""Of the validation episodes that temperatures are fitted to: others than those of validation and calibration."""


@dataclass(frozen=True, eq=False)
class Scores:
    """What one trained model did under one protocol.

    Attributes:
        accuracy, nll, brier: float64 `[E]`, see `results.EpisodeResults`.
        ece: expected calibration error.
        temperature: that was fitted to validation episodes; None where none was.
        nll_tempered: float64 `[E]`, of the tempered probabilities.
        ece_tempered: of those.
        auroc: of unknown classes by the doubt, float64 `[E]`; None where not asked for.
    """

    accuracy: Tensor
    nll: Tensor
    brier: Tensor
    ece: float
    temperature: float | None
    nll_tempered: Tensor | None
    ece_tempered: float | None
    auroc: Tensor | None


class TableScores:
    """Draws the episodes of a table's protocols once and evaluates models on them.

    Args:
        table: its definition.
        data: the images.
        e: the protocol's queries, samples, split, number and seed of episodes, and the precision of the features.
        device: where to compute.

    Raises:
        UserError: the split has too few classes or images for a protocol.
    """

    def __init__(self, table: Table, data: Splits, e: EvaluationConfig, device: torch.device):
        self.e, self.device = e, device
        self.split: ClassImages = getattr(data, e.split)
        self.validation = data.validation
        self.unknown, fitted = table.unknown, table.temperature_episodes

        def draw(images: ClassImages, p: Protocol, episodes: int, seed: int, times: int = 1) -> EpisodeIndex:
            return fixed_episodes(
                images, way=times * p.way, shot=p.shot, queries=e.queries, episodes=episodes, seed=seed
            )

        self.episodes = {p: draw(self.split, p, e.episodes, e.seed) for p in table.protocols}
        self.fitting = {p: draw(data.validation, p, fitted, TEMPERATURE_SEED) for p in table.protocols if fitted}
        # half of the ways are the task, the other half are the classes outside it
        self.twice = {p: draw(self.split, p, e.episodes, e.seed, 2) for p in table.protocols if table.unknown}

    def of(self, model: Path, protocols: Iterable[Protocol]) -> dict[Protocol, Scores]:
        """Scores of a trained model under each protocol, kept beside it in ``evaluations/``.

        Args:
            model: its ``model.safetensors``.
            protocols: some of the table's.

        Raises:
            UserError: damaged model, or one that gives no probabilities.
        """
        keys = self._keys(model, protocols)
        found = self._kept(model, keys)
        left = [p for p in keys if p not in found]
        if left:
            loaded = load_model(model)[0].to(self.device)
            features = split_features(loaded, self.split, device=self.device, amp=self.e.amp)
            fitting = features
            if self.fitting and self.validation is not self.split:
                fitting = split_features(loaded, self.validation, device=self.device, amp=self.e.amp)
            for p in left:
                self._evaluate(loaded, features, fitting, p, self._stem(model, p), keys[p])
                scores = _read(self._stem(model, p), keys[p])
                assert scores is not None
                found[p] = scores
        return {p: found[p] for p in keys}

    def kept(self, model: Path, protocols: Iterable[Protocol]) -> dict[Protocol, Scores]:
        """Those of the scores that lie beside the model already."""
        return self._kept(model, self._keys(model, protocols))

    def _keys(self, model: Path, protocols: Iterable[Protocol]) -> dict[Protocol, str]:
        digest = sha256(model)
        return {p: self._key(p, digest) for p in protocols}

    def _kept(self, model: Path, keys: dict[Protocol, str]) -> dict[Protocol, Scores]:
        read = {p: _read(self._stem(model, p), key) for p, key in keys.items()}
        return {p: scores for p, scores in read.items() if scores is not None}

    def _evaluate(
        self, model: Evaluable, features: Tensor, fitting: Tensor, p: Protocol, stem: Path, key: str
    ) -> None:
        settings: dict[str, Any] = {"samples": self.e.samples, "seed": self.e.seed, "progress": True}
        temperatures = [1.0]
        if self.fitting:
            answers = predict_probabilities(model, fitting, self.fitting[p], **settings)
            temperatures.append(metrics.fit_temperature(*answers))
        results = evaluate_tempered(
            model, features, self.episodes[p], temperatures, data=str(self.split.identity()), **settings
        )
        tensors = {"none": torch.zeros(())}
        if self.unknown:
            tensors["auroc"] = detect_unknown(model, features, self.twice[p], p.way, **settings)
        for name, result in zip(("plain", "tempered"), results):
            result.save(_file(stem, name))
        checkpoint.write(_file(stem, "key"), tensors, {"key": key})  # last: it says that the others are whole

    def _stem(self, model: Path, p: Protocol) -> Path:
        return model.parent / "evaluations" / f"{p.way}way-{p.shot}shot-{self.e.split}"

    def _key(self, p: Protocol, model: str) -> str:
        """Everything that the scores depend on."""
        hashes = [episodes_hash(drawn[p]) for drawn in (self.episodes, self.fitting, self.twice) if drawn]
        return json.dumps({
            "model": model,
            "code": source_digest(),
            "images": [self.split.identity().sha256, self.validation.identity().sha256],
            "episodes": [*hashes, bool(self.fitting), bool(self.twice)],
            "samples": self.e.samples,
            "seed": self.e.seed,
            "amp": self.e.amp,
            "device": self.device.type,
            "versions": checkpoint.versions(),
        })  # fmt: skip


def _file(stem: Path, kind: str) -> Path:
    return stem.parent / f"{stem.name}-{kind}.safetensors"


def _read(stem: Path, key: str) -> Scores | None:
    """What was kept; None if it is of something else, or damaged."""
    if not _file(stem, "key").is_file():
        return None
    try:
        tensors, meta = checkpoint.read(_file(stem, "key"))
        if meta.get("key") != key:
            return None
        plain = EpisodeResults.load(_file(stem, "plain"))
        tempered = EpisodeResults.load(_file(stem, "tempered")) if json.loads(key)["episodes"][-2] else None
    except UserError:
        return None
    return Scores(
        plain.accuracy,
        plain.nll,
        plain.brier,
        plain.ece,
        temperature=tempered.temperature if tempered else None,
        nll_tempered=tempered.nll if tempered else None,
        ece_tempered=tempered.ece if tempered else None,
        auroc=tensors.get("auroc"),
    )
