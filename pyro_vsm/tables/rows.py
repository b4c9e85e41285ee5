"""Rows of a table of results, and what it says of all of them; `definition` reads them from a file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyro_vsm.config import Config
from pyro_vsm.errors import UserError
from pyro_vsm.settings import leaves

_RUN, _FILE = "run:", "file:"


@dataclass(frozen=True)
class Protocol:
    """Classes and support images a class of the evaluation's episodes."""

    way: int
    shot: int

    def __str__(self) -> str:
        return f"{self.way}-way {self.shot}-shot"


def _replaced(value: Any, of: Callable[[str, str], Any], name: str = "") -> Any:
    """A copy of nested settings in which texts, those in lists, too, are what ``of(dotted name, text)`` gives."""
    if isinstance(value, dict):
        return {k: _replaced(v, of, f"{name}.{k}".lstrip(".")) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_replaced(v, of, name) for v in value)
    return of(name, value) if isinstance(value, str) else value


@dataclass(frozen=True)
class Row:
    """One system under its settings.

    Attributes:
        name: of its folder.
        system: a key of `systems.SYSTEMS`.
        label: for readers.
        settings: all of them, nested; the seed is without effect.
        paper: the published accuracies in percent, by the number of shots.
        note: for readers.
        protocols: that it is evaluated on.
        shown: whether the table has a line of it.
        folder: that files are named from.
        folds: of the training classes, of which a training leaves one out; 0 for none.
    """

    name: str
    system: str
    label: str
    settings: dict[str, Any]
    paper: dict[int, float]
    note: str
    protocols: tuple[Protocol, ...]
    shown: bool
    folder: Path
    folds: int = 0

    @property
    def needs(self) -> list[str]:
        """Names of the rows whose runs the settings name."""
        return [v.removeprefix(_RUN) for _, v in leaves(self.settings) if str(v).startswith(_RUN)]

    def fold(self, seed: int) -> int | None:
        """The fold that the training with this seed leaves out; None where there are no folds."""
        return seed % self.folds if self.folds else None

    def config(self, seed: int, folder_of: Callable[[str], Path]) -> Config:
        """The configuration of the training with this seed.

        Args:
            seed: of the training.
            folder_of: the run folder of a row.

        Raises:
            UserError: there is no file of that name.
        """

        def lies(name: str, text: str) -> str:
            if text.startswith(_RUN):
                return str(folder_of(text.removeprefix(_RUN)))
            if not text.startswith(_FILE):
                return text
            file = self.folder / text.removeprefix(_FILE).replace("{seed}", str(seed))
            if not file.is_file():
                raise UserError(
                    f"row {self.name!r}: there is no {file} for {name} and seed {seed}; name a file from the "
                    "table's folder, or leave that seed out"
                )
            return str(file)

        settings = _replaced(self.settings, lies)
        settings["training"]["seed"] = seed
        if self.folds:
            settings["data"] |= {"fold": self.fold(seed), "folds": self.folds}
        return Config.from_dict(settings)


@dataclass(frozen=True)
class Table:
    """What a TABLE.yaml says; see the head of this module."""

    path: Path
    title: str
    seeds: tuple[int, ...]
    reference: str
    protocols: tuple[Protocol, ...]
    unknown: bool
    temperature_episodes: int
    folds: int
    rows: tuple[Row, ...]
    notes: tuple[str, ...]

    def row(self, name: str) -> Row:
        """The row of that name.

        Raises:
            UserError: there is none.
        """
        for row in self.rows:
            if row.name == name:
                return row
        raise UserError(f"{self.path}: there is no row {name!r}; rows are {', '.join(r.name for r in self.rows)}")
