"""The evaluation protocol: every model on the same fixed episodes, compared episode by episode.

Images are encoded once; the episodes are then answered from the features, in blocks of bounded memory. The
model, its memory and the random generators are left as they were.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pyro_vsm import metrics
from pyro_vsm.answering import BLOCK, Evaluable, answer, encode_all
from pyro_vsm.errors import UserError
from pyro_vsm.feature_cache import split_features
from pyro_vsm.results import EpisodeResults, compare, episodes_hash

if TYPE_CHECKING:
    from pyro_vsm.data.episodes import EpisodeIndex
    from pyro_vsm.data.images import ClassImages

__all__ = [
    "BLOCK",
    "EpisodeResults",
    "Evaluable",
    "compare",
    "detect_unknown",
    "encode_all",
    "episodes_hash",
    "evaluate",
    "evaluate_model",
    "evaluate_tempered",
    "predict_probabilities",
    "split_features",
]


def predict_probabilities(
    model: Evaluable,
    features: Tensor,
    episodes: EpisodeIndex,
    *,
    samples: int = 100,
    seed: int = 0,
    max_elements: int = 2**27,
    progress: bool = False,
) -> tuple[Tensor, Tensor]:
    """Class probabilities of all episodes, to fit a temperature on validation episodes, say.

    Arguments and errors as in `evaluate`.

    Returns:
        Probabilities float32 `[E, Q', N]` and labels int64 `[Q']`, on the CPU.
    """
    (probs,), _ = answer(
        model,
        features,
        episodes,
        lambda p: (p.float(),),
        samples=samples,
        seed=seed,
        max_elements=max_elements,
        progress=progress,
    )
    return probs, _labels(episodes)


def _labels(episodes: EpisodeIndex, device: torch.device | str = "cpu") -> Tensor:
    """Queries of class n are labelled n: `[Q']`, class by class."""
    return torch.arange(episodes.way, device=device).repeat_interleave(episodes.queries)


def evaluate(
    model: Evaluable,
    features: Tensor,
    episodes: EpisodeIndex,
    *,
    samples: int = 100,
    seed: int = 0,
    data: str = "",
    temperature: float = 1.0,
    max_elements: int = 2**27,
    progress: bool = False,
) -> EpisodeResults:
    """Answers all episodes from features and scores them.

    Deterministic given the arguments, on one device. Episodes are answered `BLOCK` at a time and the noise of
    each block comes from a seed derived from `seed` and the block's first episode, so that the result depends
    neither on the state of the random generators, nor on the episodes of other blocks, nor on `max_elements`
    as long as a whole block fits. Where it does not, blocks are halved: a deterministic model gives the same
    answers, a sampling one draws other noise of the same distribution (`EpisodeResults.block` tells).

    Args:
        model: its parameters, buffers, modes and the random generators are as before afterwards.
        features: `[I, D]` of `encode_all`.
        episodes: indices into the features; queries of class n are labelled n.
        samples: posterior samples.
        seed: of the posterior samples, from 0 on.
        data: identity of the images, kept in the results.
        temperature: of `metrics.apply_temperature`, fitted on validation episodes.
        max_elements: bound on the elements, within a block, of sampled prototypes `[samples, T, N, D]`, of
            sampled probabilities `[samples, T, Q', N]` and of features.
        progress: show a bar.

    Raises:
        UserError: if the episodes do not fit the features, an episode does not fit into `max_elements`, or
            the model returns a wrong shape, NaN or no probabilities.
    """
    (results,) = evaluate_tempered(
        model,
        features,
        episodes,
        (temperature,),
        samples=samples,
        seed=seed,
        data=data,
        max_elements=max_elements,
        progress=progress,
    )
    return results


def evaluate_tempered(
    model: Evaluable,
    features: Tensor,
    episodes: EpisodeIndex,
    temperatures: Sequence[float],
    *,
    samples: int = 100,
    seed: int = 0,
    data: str = "",
    max_elements: int = 2**27,
    progress: bool = False,
) -> list[EpisodeResults]:
    """`evaluate` at several temperatures, from one and the same answers.

    Args:
        temperatures: of `metrics.apply_temperature`.

    Other arguments and errors as in `evaluate`.

    Returns:
        Results, one a temperature.
    """
    labels = _labels(episodes, features.device)

    def score(probs: Tensor) -> tuple[Tensor, ...]:
        tempered = [metrics.apply_temperature(probs.float(), t) for t in temperatures]
        return tuple(value for p in tempered for value in _scores(p, labels))

    joined, block = answer(
        model,
        features,
        episodes,
        score,
        samples=samples,
        seed=seed,
        max_elements=max_elements,
        progress=progress,
    )
    identity, kinds = episodes_hash(episodes), len(joined) // len(temperatures)
    found = []
    for i, temperature in enumerate(temperatures):
        accuracy, nll, brier, confidence, correct = joined[i * kinds : (i + 1) * kinds]
        found.append(
            EpisodeResults(
                accuracy=accuracy,
                nll=nll,
                brier=brier,
                confidence=confidence.flatten(),
                correct=correct.flatten(),
                way=episodes.way,
                shot=episodes.shot,
                queries=episodes.queries,
                samples=samples,
                seed=seed,
                block=block,
                temperature=float(temperature),
                data=data,
                episodes_hash=identity,
            )
        )
    return found


def _scores(p: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
    """Accuracy, NLL and Brier score `[T]`, confidence and correctness `[T, Q']` of probabilities `[T, Q', N]`."""
    return (
        metrics.accuracy(p, labels),
        metrics.negative_log_likelihood(p, labels),
        metrics.brier(p, labels),
        p.amax(-1).float(),
        p.argmax(-1) == labels,
    )


def evaluate_model(
    model: Evaluable,
    data: ClassImages,
    episodes: EpisodeIndex,
    *,
    samples: int = 100,
    seed: int = 0,
    temperature: float = 1.0,
    max_elements: int = 2**27,
    progress: bool = False,
    batch: int | None = None,
    device: torch.device | str | None = None,
    amp: bool = False,
) -> EpisodeResults:
    """`split_features` of a split, then `evaluate` with its identity; arguments as in `encode_all` and `evaluate`."""
    return evaluate(
        model,
        split_features(model, data, batch=batch, device=device, amp=amp),
        episodes,
        samples=samples,
        seed=seed,
        data=str(data.identity()),
        temperature=temperature,
        max_elements=max_elements,
        progress=progress,
    )


def detect_unknown(
    model: Evaluable,
    features: Tensor,
    episodes: EpisodeIndex,
    known: int,
    *,
    samples: int = 100,
    seed: int = 0,
    max_elements: int = 2**27,
    progress: bool = False,
) -> Tensor:
    """How well queries from outside the task's classes are told from those inside.

    The first `known` classes of each episode make up the task; the queries of the others belong to none of
    them. The score of a query is one minus the probability of its most probable class.

    Args:
        known: ways of the task, fewer than the ways of the episodes (10-way episodes for 5-way tasks, say).

    Other arguments and errors as in `evaluate`.

    Returns:
        Area under the receiver operating characteristic an episode, float64 `[E]`; 0.5 is chance.
    """
    if not 2 <= known < episodes.way:
        raise UserError(
            f"{known} known classes of {episodes.way}-way episodes: "
            "give at least 2 and fewer than the episodes have, so that unknown ones remain"
        )

    def score(probs: Tensor) -> tuple[Tensor]:
        doubt = (1 - probs.float().amax(-1)).unflatten(1, (episodes.way, episodes.queries))
        return (metrics.auroc_by_episode(doubt[:, known:].flatten(1), doubt[:, :known].flatten(1)),)

    (area,), _ = answer(
        model,
        features,
        episodes,
        score,
        samples=samples,
        seed=seed,
        max_elements=max_elements,
        progress=progress,
        known=known,
    )
    return area
