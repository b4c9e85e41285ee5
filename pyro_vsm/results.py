"""What evaluations leave behind: results an episode, stored, summarised and compared on equal terms."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_safetensors
from torch import Tensor

from pyro_vsm import metrics
from pyro_vsm.errors import UserError
from pyro_vsm.files import write_atomic
from pyro_vsm.metrics import Interval

if TYPE_CHECKING:
    from pyro_vsm.data.episodes import EpisodeIndex

_FORMAT = "pyro_vsm.EpisodeResults/1"
_PER_EPISODE = ("accuracy", "nll", "brier")
_PER_QUERY = ("confidence", "correct")


@dataclass(frozen=True, eq=False)
class EpisodeResults:
    """What one model did on E episodes, on the CPU. An episode has Q' = way * queries queries.

    Attributes:
        accuracy: float64 `[E]`, in [0, 1].
        nll: negative log-likelihood, float64 `[E]`, nats a query.
        brier: Brier score, float64 `[E]`, in [0, 2].
        confidence: probability of the predicted class, float32 `[E * Q']`.
        correct: whether it is the right class, bool `[E * Q']`.
        way: classes in an episode.
        shot: support images of a class.
        queries: query images of a class.
        samples: posterior samples asked for.
        seed: seed of the posterior samples.
        block: episodes in one call of `predict`; `BLOCK` unless memory was too small.
        temperature: the probabilities were tempered by this, 1 where they were not.
        data: identity of the images.
        episodes_hash: identity of the episodes, see `episodes_hash`.
    """

    accuracy: Tensor
    nll: Tensor
    brier: Tensor
    confidence: Tensor
    correct: Tensor
    way: int
    shot: int
    queries: int
    samples: int
    seed: int
    block: int
    temperature: float
    data: str
    episodes_hash: str

    def __post_init__(self) -> None:
        episodes, pooled = len(self.accuracy), len(self.accuracy) * self.way * self.queries
        for names, size in ((_PER_EPISODE, episodes), (_PER_QUERY, pooled)):
            for name in names:
                value = getattr(self, name)
                if value.shape != (size,) or size == 0 or not bool(value.isfinite().all()):
                    raise UserError(
                        f"episode results need {size or 'at least one'} finite values of {name}, "
                        f"but got a tensor of shape {list(value.shape)} or with NaN: evaluate again"
                    )

    def __len__(self) -> int:
        return len(self.accuracy)

    @cached_property
    def ece(self) -> float:
        """Expected calibration error over all queries pooled, see `metrics.expected_calibration_error`."""
        return metrics.expected_calibration_error(self.confidence, self.correct)

    def interval(self, metric: str) -> Interval:
        """Mean and 95 % interval over episodes of `accuracy`, `nll` or `brier`."""
        return metrics.mean_interval(getattr(self, metric))

    def metadata(self) -> dict[str, Any]:
        """Everything but the tensors, as plain values."""
        skip = (*_PER_EPISODE, *_PER_QUERY)
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in skip}

    def summary(self) -> dict[str, Any]:
        """Plain values ready for JSON.

        `accuracy`, `nll` and `brier`, the half widths of their 95 % intervals as `accuracy_95` and so on
        (None for a single episode), `ece`, `episodes` and the metadata.
        """
        row: dict[str, Any] = {}
        for name in _PER_EPISODE:
            interval = self.interval(name)
            row[name] = interval.mean
            row[f"{name}_95"] = interval.half_width if interval.n > 1 else None
        return {**row, "ece": self.ece, "episodes": len(self), **self.metadata()}

    def save(self, path: Path | str) -> Path:
        """Writes a safetensors file with the metadata in its header."""
        tensors = {name: getattr(self, name).contiguous() for name in (*_PER_EPISODE, *_PER_QUERY)}
        header = {"format": _FORMAT, "metadata": json.dumps(self.metadata())}
        return write_atomic(path, to_safetensors(tensors, header))

    @classmethod
    def load(cls, path: Path | str) -> EpisodeResults:
        """Reads what `save` wrote.

        Raises:
            UserError: if the file is missing, truncated or something else.
        """
        wrong = f"{path} holds no episode results: give a file written by EpisodeResults.save, or evaluate again"
        try:
            with safe_open(path, framework="pt") as file:
                header = file.metadata() or {}
                if header.get("format") != _FORMAT:
                    raise UserError(wrong)
                tensors = {name: file.get_tensor(name) for name in (*_PER_EPISODE, *_PER_QUERY)}
            metadata = json.loads(header["metadata"])
            kinds = {f.name: f.type for f in fields(cls) if f.name not in tensors}
            if {name: type(value).__name__ for name, value in metadata.items()} != kinds:
                raise UserError(wrong)
            try:
                return cls(**tensors, **metadata)
            except UserError as error:
                raise UserError(f"{path}: {error}") from error
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror or error}; check the path") from error
        except (SafetensorError, KeyError, ValueError, AttributeError, TypeError) as error:
            raise UserError(f"{wrong} ({error})") from error


def episodes_hash(episodes: EpisodeIndex) -> str:
    """SHA-256 over the shapes and values of the three index tensors, in hexadecimal."""
    digest = hashlib.sha256()
    for name in ("classes", "support", "query"):
        values = getattr(episodes, name).cpu().contiguous().numpy().astype("<i8")
        digest.update(f"{name}{values.shape}".encode() + values.tobytes())
    return digest.hexdigest()


def compare(results: Mapping[str, EpisodeResults], reference: str) -> list[dict[str, Any]]:
    """Compares systems on the same episodes, each with a reference.

    Args:
        results: results by the name of the system.
        reference: the name of the system that the differences are taken from.

    Returns:
        One row a system, in the order given, for `report`: `system`, the intervals `accuracy`, `nll` and
        `brier`, the number `ece`, and the paired intervals `accuracy_difference` and `nll_difference` (system
        minus reference, None in the reference's own row).

    Raises:
        UserError: if the reference is missing, or the systems answered different episodes or images.
    """
    if reference not in results:
        raise UserError(f"the reference {reference!r} is none of {', '.join(map(repr, results)) or 'no results'}")
    base = results[reference]
    for name, result in results.items():
        for what in ("episodes_hash", "data"):
            if getattr(result, what) != getattr(base, what):
                kind = "episodes" if what == "episodes_hash" else "images"
                raise UserError(
                    f"{name!r} and {reference!r} were evaluated on different {kind} "
                    f"({getattr(result, what)[:40]!r} and {getattr(base, what)[:40]!r}): "
                    "evaluate both with the same data, seed, way, shot and number of episodes"
                )
    return [
        {
            "system": name,
            **{metric: result.interval(metric) for metric in _PER_EPISODE},
            "ece": result.ece,
            "accuracy_difference": None if result is base else metrics.paired(result.accuracy, base.accuracy),
            "nll_difference": None if result is base else metrics.paired(result.nll, base.nll),
        }
        for name, result in results.items()
    ]
