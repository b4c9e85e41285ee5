"""Nested settings: read from YAML, changed by dotted names, turned into a configuration as the command line does."""

from __future__ import annotations

import copy
import math
import re
from argparse import ArgumentError
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, cast, get_args

import yaml
from jsonargparse import ArgumentParser

from pyro_vsm.config import Config
from pyro_vsm.errors import UserError, hints


class _Loader(yaml.SafeLoader):
    """Reads 1e-3 as a number, as YAML 1.2 does and PyYAML's own loader does not."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def parse_yaml(text: str, where: str) -> Any:
    """What a text in YAML says.

    Raises:
        UserError: it is none.
    """
    try:
        return yaml.load(text, _Loader)  # a SafeLoader
    except yaml.YAMLError as error:
        raise UserError(f"{where} is no YAML ({' '.join(str(error).split())}); mend it") from error


def load_yaml(path: Path) -> Any:
    """What a YAML file says.

    Raises:
        UserError: it cannot be read, or is none.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot read {path} ({reason}); give a YAML file") from error
    return parse_yaml(text, str(path))


def put(settings: dict[str, Any], name: str, value: Any, where: str) -> None:
    """Lay a value over nested settings: ``training.lr``, or a whole section ``training`` entry by entry.

    Raises:
        UserError: the name runs through something that is no mapping.
    """
    *path, last = name.split(".")
    for key in path:
        settings = settings.setdefault(key, {})
        if not isinstance(settings, dict):
            raise UserError(f"{where}: {name} cannot be set, as {key} is no mapping")
    if not path and isinstance(value, dict) and isinstance(settings.get(last), dict):
        settings[last] = {**settings[last]}
        for key, entry in value.items():
            put(settings[last], str(key), entry, where)
    else:
        settings[last] = copy.deepcopy(value)


def check_values(values: Mapping[str, Any], of: type, where: str = "") -> None:
    """Of nested settings, none is null that must have a value, and all numbers are finite; nothing else is checked.

    Args:
        values: by name.
        of: the dataclass that they are for.
        where: what stands before their names in a message.

    Raises:
        UserError: which is.
    """
    for name, hint in hints(of).items():
        value = values.get(name, 0)
        if is_dataclass(hint) and isinstance(value, Mapping):
            check_values(value, cast(type, hint), f"{where}{name}.")
        elif value is None and hint is not Any and type(None) not in get_args(hint):
            raise UserError(f"{where}{name} is null; give a value, or leave it out for its default")
        for number in value if isinstance(value, (list, tuple)) else [value]:
            if isinstance(number, float) and not math.isfinite(number):
                raise UserError(f"{where}{name} is {number}; give a finite number")


def read_settings(settings: dict[str, Any], where: str) -> Config:
    """The configuration of nested settings, with the command line's conversions and defaults.

    Raises:
        UserError: unknown settings or values.
    """
    for name, section in settings.items():
        if name != "systems" and not isinstance(section, dict):
            raise UserError(f"{where}: {name} is {section!r}; a section of settings is a mapping")
    check_values(settings, Config, f"{where}: ")
    try:
        return Config(**{name: _section(name, values) for name, values in settings.items()})
    except (ArgumentError, TypeError, ValueError, KeyError, RecursionError, UserError):
        pass  # what is wrong, the parser of all settings says with their whole names
    try:
        return _parsed(Config, settings)
    except (ArgumentError, TypeError, ValueError, UserError) as error:
        raise UserError(f"{where}: {' '.join(str(error).split())}") from error


_sections: dict[str, Any] = {}
"""What was read before, by name and text: the rows of a table share most of their sections."""


def _section(name: str, values: Any) -> Any:
    """One section by a parser of its own, as jsonargparse takes ten times as long over all of them."""
    if name == "systems":
        if not isinstance(values, list) or not all(isinstance(v, str) for v in values):
            raise TypeError("no names of systems")
        return list(values)
    key = f"{name} {values!r}"
    if key not in _sections:
        _sections[key] = _parsed(hints(Config)[name], values)
    return copy.deepcopy(_sections[key])


def _parsed(of: type, values: dict[str, Any]) -> Any:
    parser = _parser(of)
    read = instantiated(parser, parser.parse_object(values))
    return of(**{f.name: read[f.name] for f in fields(of)})


def instantiated(parser: ArgumentParser, read: Any) -> Any:
    """What was read, with dataclasses made of its sections; jsonargparse has renamed the method."""
    return parser.instantiate(read) if hasattr(parser, "instantiate") else parser.instantiate_classes(read)


@cache
def _parser(of: type) -> ArgumentParser:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(of, None)
    return parser


def leaves(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted names and values of nested settings; each entry of a list under the list's name."""
    for key, value in settings.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield from ((f"{prefix}{key}", v) for v in (value if isinstance(value, (list, tuple)) else [value]))
