"""Which data set to load, by name, and the register of those that can be loaded."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from pyro_vsm.data.folds import leave_out
from pyro_vsm.data.images import Splits
from pyro_vsm.errors import UserError, check_words


@dataclass
class DataConfig:
    """Which images to learn from.

    Attributes:
        name: the data set, a key of `SOURCES`.
        root: folder of the data set; not needed for those that are rendered.
        image_size: height and width in pixels; None takes the source's own (28 for glyphs and omniglot, 32 for
            colour-glyphs and cifar-fs, 84 for the others).
        bad_files: about images that cannot be read: "stop" with an error, or "skip" and report them.
        split: fractions of the classes for training, validation and test, for "folder" without such folders.
        variant: which of the splits of a data set that has several; None takes its first. omniglot: alphabets,
            vinyals, small.
        rotations: of omniglot: each character turned by 0, 90, 180 and 270 degrees makes four classes, in no
            split, in training, or in all; None does what the variant is published with.
        grouped: draw all classes of an episode from one group; a group is what class names have in common up to
            the last "/" (an alphabet of omniglot, a folder of folders).
        seed: of the glyphs' rendering, of a split drawn from fractions and of folds.
        fold: from the training classes alone: leave this one of their folds out and validate on it (from 0); the
            validation classes stand in for the test classes. None takes the splits as they are.
        folds: number of folds.
        cache: keep decoded images in the cache folder for the next start.
        threads: for decoding; 0 takes as many as help. The result does not depend on it.
    """

    name: str = "glyphs"
    root: str | None = None
    image_size: int | None = None
    bad_files: Literal["stop", "skip"] = "stop"
    split: tuple[float, float, float] | None = None
    variant: str | None = None
    rotations: Literal["none", "train", "all"] | None = None
    grouped: bool = False
    seed: int = 0
    fold: int | None = None
    folds: int = 4
    cache: bool = True
    threads: int = 0

    def __post_init__(self) -> None:
        if self.image_size is not None and not 8 <= self.image_size <= 1024:
            raise UserError(f"image_size is {self.image_size}: give a number of pixels from 8 to 1024")
        check_words(self, "data")
        if self.seed < 0 or self.threads < 0:
            raise UserError(f"seed is {self.seed} and threads is {self.threads}: neither can be negative")
        if self.split is not None and (
            len(self.split) != 3 or not all(f > 0 for f in self.split) or not abs(sum(self.split) - 1) < 1e-6
        ):
            raise UserError(f"split is {self.split}: give three fractions above 0 that add up to 1")

    @property
    def remarks(self) -> list[str]:
        """What a reader of results must know of the splits."""
        if self.fold is None:
            return []
        return [
            f"Trained without fold {self.fold} of {self.folds} of the training classes: there the classes left out "
            "are the validation split, and the validation classes stand in for the test split."
        ]


SOURCES: dict[str, Callable[[DataConfig], Splits]] = {}
"""The data sets that can be loaded. A further one is a function in a file of its own, put in here."""

OPTIONS: dict[str, dict[str, tuple[str, ...]]] = {}
"""What `variant` and `rotations` may be for the data sets that have such a choice."""


def load(config: DataConfig, log: Callable[[str], None] = print) -> Splits:
    """Loads the data set that `config` names and logs what it holds.

    Raises:
        UserError: if there is no such data set, or its files are missing or broken.
    """
    if config.name not in SOURCES:
        close = difflib.get_close_matches(config.name, SOURCES, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise UserError(f"there is no data set {config.name!r}{hint} Known are: {', '.join(sorted(SOURCES))}")
    for option in ("variant", "rotations"):
        value, allowed = getattr(config, option), OPTIONS.get(config.name, {}).get(option, ())
        if value is not None and value not in allowed:
            known = f"give one of {', '.join(allowed)}" if allowed else "leave it out"
            raise UserError(f"data set {config.name!r} has no {option} {value!r}: {known}")
    splits = SOURCES[config.name](config)
    if config.grouped:
        splits = splits.by_group()
    if config.fold is not None:
        splits = leave_out(splits, config.fold, config.folds, config.seed)
    log(splits.describe())
    return splits
