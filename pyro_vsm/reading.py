"""Checks of single values from a YAML file; each raises a `UserError` that names the place."""

from __future__ import annotations

from typing import Any

from pyro_vsm.errors import UserError


def mapping(value: Any, where: str) -> dict[str, Any]:
    """A mapping of names to values."""
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise UserError(f"{where} must be a mapping of names to values, not {value!r:.60}")
    return value


def only(values: dict[str, Any], known: set[str], where: str) -> None:
    """Refuses entries that are not known."""
    unknown = sorted(set(values) - known)
    if unknown:
        raise UserError(
            f"{where} has no entry {', '.join(map(repr, unknown))}; entries are {', '.join(sorted(known))}"
        )


def list_of(value: Any, name: str, where: object) -> list[Any]:
    """A list."""
    if not isinstance(value, list):
        raise UserError(f"{where}: {name} is {value!r:.60}; give a list")
    return value


def text_of(value: Any, name: str, where: object) -> str:
    """Text in one line; a number is taken for text."""
    if not isinstance(value, (str, int, float)) or isinstance(value, bool):
        raise UserError(f"{where}: {name} is {value!r:.60}; give text")
    return " ".join(str(value).split())


def bool_of(value: Any, name: str, where: object) -> bool:
    """True or false."""
    if not isinstance(value, bool):
        raise UserError(f"{where}: {name} is {value!r:.60}; give true or false")
    return value


def whole(value: Any) -> bool:
    """Whether a value is a whole number."""
    return isinstance(value, int) and not isinstance(value, bool)


def count_of(value: Any, name: str, where: object) -> int:
    """A whole number from 0 on."""
    if not whole(value) or value < 0:
        raise UserError(f"{where}: {name} is {value!r:.60}; give a whole number from 0 on")
    return int(value)
