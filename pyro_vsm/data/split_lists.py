"""The published splits by class name, kept in the package as text files with their sources."""

from __future__ import annotations

from functools import lru_cache
from importlib.resources import files

from pyro_vsm.errors import UserError

PARTS = ("train", "validation", "test")

SplitNames = dict[str, tuple[str, ...]]
"""Split -> names of its classes."""


def list_names() -> tuple[str, ...]:
    """The split lists that there are."""
    folder = files("pyro_vsm.data") / "splits"
    return tuple(sorted(p.name.removesuffix(".txt") for p in folder.iterdir() if p.name.endswith(".txt")))


def split_names(name: str) -> SplitNames:
    """Class names of each split, in the order of the list.

    Args:
        name: one of `list_names()`.

    Raises:
        UserError: if the file in the package is damaged.
    """
    return {part: tuple(rows) for part, rows in _rows(name).items()}


def class_groups(name: str) -> dict[str, str]:
    """Class name -> its category, for lists that have one in their second column."""
    return {row: group for rows in _rows(name).values() for row, group in rows.items() if group}


def split_source(name: str) -> str:
    """Where the list is from: the comment at the head of its file."""
    lines = _text(name).splitlines()
    return "\n".join(line.removeprefix("#").strip() for line in lines if line.startswith("#"))


def _text(name: str) -> str:
    return (files("pyro_vsm.data") / "splits" / f"{name}.txt").read_text(encoding="utf-8")


@lru_cache(maxsize=8)
def _rows(name: str) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = {}
    rows: dict[str, str] | None = None
    for number, line in enumerate(_text(name).splitlines(), 1):
        words = line.split()
        if not words or line.startswith("#"):
            continue
        if line.startswith("["):
            rows = found.setdefault(line.strip("[]"), {})
        elif rows is None or len(words) > 2 or any(words[0] in r for r in found.values()):
            raise UserError(f"split list {name}, line {number}, is damaged ({line!r}): install the package again")
        else:
            rows[words[0]] = words[1] if len(words) == 2 else ""
    if tuple(found) != PARTS or not all(found.values()):
        raise UserError(f"split list {name} lacks one of {', '.join(PARTS)}: install the package again")
    return found
