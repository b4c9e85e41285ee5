"""Cross-validation over classes: choosing on more classes than those of the validation split."""

from __future__ import annotations

import torch

from pyro_vsm.data.images import Splits
from pyro_vsm.errors import UserError


def leave_out(splits: Splits, fold: int, folds: int, seed: int = 0) -> Splits:
    """The training classes alone: one part of them to validate on, the others to train.

    Args:
        splits: the data set.
        fold: which part is left out, from 0 to ``folds - 1``.
        folds: parts, as equal as can be.
        seed: of the order in which the classes are dealt out.

    Returns:
        Splits whose validation classes are those left out, in their order. The test classes are not in it: in
        their place stand the validation classes, so that what is chosen on folds can be confirmed on them.

    Raises:
        UserError: there is no such fold, or there are fewer training classes than folds.
    """
    classes = splits.train.n_classes
    if not 2 <= folds <= classes or not 0 <= fold < folds:
        raise UserError(
            f"data: fold {fold} of {folds} of {classes} training classes: give 2 to {classes} folds, "
            "and a fold from 0 to one less"
        )
    order = torch.randperm(classes, generator=torch.Generator().manual_seed(seed)).tolist()
    out = set(order[fold::folds])
    kept = [c for c in range(classes) if c not in out]
    return Splits(
        f"{splits.name}, fold {fold} of {folds}",
        splits.train.subset(kept),
        splits.train.subset(sorted(out)),
        splits.validation,
    )
