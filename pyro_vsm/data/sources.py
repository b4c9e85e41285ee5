"""Which data set to load, by name, and the register of those that can be loaded."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from pyro_vsm.data.images import Splits
from pyro_vsm.errors import UserError


@dataclass
class DataConfig:
    """Which images to learn from.

    Attributes:
        name: the data set, a key of `SOURCES`.
        root: folder of the data set; not needed for "glyphs".
        image_size: height and width in pixels; None takes the source's own (glyphs 28, others 84).
        bad_files: about images that cannot be read: "stop" with an error, or "skip" and report them.
        split: fractions of the classes for training, validation and test, for "folder" without such folders.
        seed: of the glyphs' rendering and of a split drawn from fractions.
        cache: keep decoded images in the cache folder for the next start.
        threads: for decoding; 0 takes as many as help. The result does not depend on it.
    """

    name: str = "glyphs"
    root: str | None = None
    image_size: int | None = None
    bad_files: Literal["stop", "skip"] = "stop"
    split: tuple[float, float, float] | None = None
    seed: int = 0
    cache: bool = True
    threads: int = 0

    def __post_init__(self) -> None:
        if self.image_size is not None and not 8 <= self.image_size <= 1024:
            raise UserError(f"image_size is {self.image_size}: give a number of pixels from 8 to 1024")
        if self.bad_files not in ("stop", "skip"):
            raise UserError(f"bad_files is {self.bad_files!r}: give 'stop' or 'skip'")
        if self.seed < 0 or self.threads < 0:
            raise UserError(f"seed is {self.seed} and threads is {self.threads}: neither can be negative")
        if self.split is not None and (
            len(self.split) != 3 or not all(f > 0 for f in self.split) or not abs(sum(self.split) - 1) < 1e-6
        ):
            raise UserError(f"split is {self.split}: give three fractions above 0 that add up to 1")


SOURCES: dict[str, Callable[[DataConfig], Splits]] = {}
"""The data sets that can be loaded. A further one is a function in a file of its own, put in here."""


def load(config: DataConfig, log: Callable[[str], None] = print) -> Splits:
    """Loads the data set that `config` names and logs what it holds.

    Raises:
        UserError: if there is no such data set, or its files are missing or broken.
    """
    if config.name not in SOURCES:
        close = difflib.get_close_matches(config.name, SOURCES, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise UserError(f"there is no data set {config.name!r}{hint} Known are: {', '.join(sorted(SOURCES))}")
    splits = SOURCES[config.name](config)
    log(splits.describe())
    return splits
