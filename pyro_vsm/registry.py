"""Parts by name or by dotted path: how a configuration chooses a prior, a posterior, a memory update.

A specification is a name (``"mixture"``), a dotted path (``"my_package.priors.Laplace"``) or a mapping with
arguments (``{"class_path": "my_package.priors.Laplace", "init_args": {"scale": 0.5}}``).
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import sys
from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

from torch import nn

from pyro_vsm.errors import UserError

T = TypeVar("T", bound=nn.Module)
Spec = str | Mapping[str, Any]


class Registry(Generic[T]):
    """The variants of one kind of part.

    Args:
        kind: what the part is called in messages and in the configuration, e.g. ``"prior_z"``.
        base: the class that every variant extends.
    """

    def __init__(self, kind: str, base: type[Any]):
        self.kind = kind
        self.base: type[T] = base
        self.classes: dict[str, type[T]] = {}

    def register(self, name: str) -> Callable[[type[T]], type[T]]:
        """Class decorator that files a variant under ``name``."""

        def add(cls: type[T]) -> type[T]:
            self.classes[name] = cls
            return cls

        return add

    def find(self, path: str, *, trusted: bool = True) -> type[T]:
        """The class behind a name or a dotted path.

        Args:
            path: a registered name, or ``package.module.Class``.
            trusted: whether a dotted path may import a module that is not yet imported. A checkpoint
                is not trusted: loading one must execute nothing the caller has not already imported.

        Raises:
            UserError: unknown name, nothing importable there, or a class of another kind or abstract.
        """
        if path in self.classes:
            return self.classes[path]
        module, _, name = path.rpartition(".")
        if not module:
            near = difflib.get_close_matches(path, self.classes, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(sorted(self.classes))}"
            raise UserError(f"{self.kind}: there is no part called {path!r}; {hint}")
        if not trusted and module not in sys.modules:
            raise UserError(
                f"{self.kind}: the checkpoint wants the class {path!r} from a module that is not imported; "
                f"if you trust it, import {module} first (or name it with --allow-module {module})"
            )
        try:
            found = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError, TypeError, ValueError) as error:
            raise UserError(
                f"{self.kind}: cannot import {path!r} ({error}); check the spelling and the PYTHONPATH"
            ) from error
        if not (inspect.isclass(found) and issubclass(found, self.base)):
            raise UserError(f"{self.kind}: {path!r} is no {self.base.__name__}; derive your class from it")
        if inspect.isabstract(found):
            raise UserError(f"{self.kind}: {path!r} is abstract; derive a class from it that has all its methods")
        return found

    def build(self, spec: Spec | T, *context: Any, trusted: bool = True) -> T:
        """Make the part that ``spec`` describes; an object of the right kind is returned as it is.

        Args:
            spec: name, dotted path, mapping with ``class_path`` and ``init_args``, or a ready object.
            context: leading positional arguments of every variant (the feature dimension).
            trusted: see :meth:`find`.

        Raises:
            UserError: unknown part, unknown or missing argument.
        """
        if isinstance(spec, self.base):
            return spec
        path, arguments = self._split(spec)
        cls = self.find(path, trusted=trusted)
        try:
            inspect.signature(cls).bind(*context, **arguments)
        except TypeError as error:
            allowed = list(inspect.signature(cls).parameters)[len(context) :] or ["none"]
            raise UserError(
                f"{self.kind}: {path} does not take these init_args ({error}); it takes {', '.join(allowed)}"
            ) from error
        return cls(*context, **arguments)

    def _split(self, spec: Any) -> tuple[str, dict[str, Any]]:
        if isinstance(spec, str):
            return spec, {}
        if isinstance(spec, Mapping) and "class_path" in spec:
            # jsonargparse puts `--model.backbone.init_args.pool average` beside the init_args of a configuration file
            rest = {k: v for k, v in spec.items() if k not in ("class_path", "init_args")}
            return str(spec["class_path"]), {**(spec.get("init_args") or {}), **rest}
        raise UserError(
            f"{self.kind}: {spec!r} describes no part; give a name, or a mapping with class_path and init_args"
        )
