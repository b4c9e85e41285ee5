"""The one exception that tells a user what to mend, and a check that all settings share."""

from __future__ import annotations

from functools import cache
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints


class UserError(Exception):
    """Bad input from outside: a file, a configuration, a shape.

    The message is one sentence that says what is wrong, where, and how to mend it. The command line prints
    it without a traceback and exits with status 2.
    """


@cache
def hints(of: type) -> dict[str, Any]:
    """The types of a dataclass's fields, evaluated once."""
    return get_type_hints(of)


def check_words(settings: Any, section: str) -> None:
    """Of a dataclass, the fields that take one of a few words (``Literal``) have one of them.

    The command line sees to that itself; this is for settings that are made in Python.

    Args:
        settings: the dataclass's instance.
        section: what its settings are called.

    Raises:
        UserError: another word.
    """
    for name, hint in hints(settings.__class__).items():
        allowed = _words(hint)
        if allowed and getattr(settings, name) not in allowed:
            *most, last = map(str, allowed)
            choice = f"{', '.join(most)} or {last}" if most else last
            raise UserError(f"{section}.{name} is {getattr(settings, name)!r}; give {choice}")


def _words(hint: Any) -> tuple[Any, ...]:
    """What a Literal allows, or a union of one with None; nothing of any other type."""
    parts = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    words = tuple(word for part in parts if get_origin(part) is Literal for word in get_args(part))
    return (*words, None) if words and type(None) in parts else words
