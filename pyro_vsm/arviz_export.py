"""Posterior samples for ArviZ (optional: ``pip install 'pyro-vsm[arviz]'``)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pyro_vsm.errors import UserError
from pyro_vsm.vsm import Inference


def to_arviz(belief: Inference, names: Sequence[str] | None = None, features: Sequence[int] | None = None) -> Any:
    """What a model believes of an episode as an ``arviz.InferenceData``.

    Group ``posterior`` holds z and m (dimensions class, feature), ``posterior_predictive`` the class probabilities of
    the queries under each sample (query, class), ``constant_data`` the support features and the recall weights.
    The samples are independent: one chain.

    Args:
        belief: of :meth:`VSM.infer <pyro_vsm.vsm.VSM.infer>`.
        names: of the classes.
        features: which feature dimensions to keep; None for all.

    Raises:
        UserError: ArviZ is not installed, or names do not fit.
    """
    try:
        import arviz
    except ImportError as error:
        raise UserError("this export needs ArviZ; install it with: pip install 'pyro-vsm[arviz]'") from error
    n, d = belief.z.shape[1:]
    classes = [str(i) for i in range(n)] if names is None else list(names)
    if len(classes) != n:
        raise UserError(f"the episode has {n} classes, but {len(classes)} names were given; give one each")
    kept = list(range(d)) if features is None else list(features)
    if any(not 0 <= f < d for f in kept):
        raise UserError(f"features {kept} are not all from 0 to {d - 1}")

    def plain(x: Any) -> Any:
        return x.detach().cpu().numpy()

    return arviz.from_dict(
        posterior={"z": plain(belief.z[None, ..., kept]), "m": plain(belief.m[None, ..., kept])},
        posterior_predictive={"probability": plain(belief.sample_probabilities[None])},
        constant_data={"support": plain(belief.support[..., kept]), "addressing": plain(belief.addressing)},
        coords={"class": classes, "feature": kept},
        dims={
            "z": ["class", "feature"],
            "m": ["class", "feature"],
            "probability": ["query", "class"],
            "support": ["class", "shot", "feature"],
            "addressing": ["class", "entry"],
        },
    )
