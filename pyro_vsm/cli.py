"""The command line ``pyro-vsm``; each command has a module in :mod:`pyro_vsm.commands`."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext, redirect_stdout
from dataclasses import fields
from functools import cache
from io import StringIO
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from pyro_vsm import commands, parallel
from pyro_vsm.errors import UserError

PROGRAM = """Recognise new classes of images from one or five labelled examples, with uncertainty.

Start with "pyro-vsm train": it trains Variational Semantic Memory and two baselines on an embedded data set and
compares them. "pyro-vsm COMMAND --help" explains each command."""


@cache
def _parsers(command: str) -> tuple[ArgumentParser, dict[str, Callable[[Namespace], None]]]:
    """All commands, with the arguments of the one given, or of all if none is: arguments take long to set up."""
    parser = ArgumentParser(prog="pyro-vsm", description=PROGRAM, formatter_class=_formatter())
    subcommands = parser.add_subcommands(dest="command", required=True)
    handlers: dict[str, Callable[[Namespace], None]] = {}
    for name in commands.NAMES:
        module = importlib.import_module(f"pyro_vsm.commands.{name.replace('-', '_')}")
        sub = ArgumentParser(description=module.HELP, formatter_class=_formatter())
        subcommands.add_subcommand(name, sub, help=module.HELP.splitlines()[0])  # before its arguments
        if command in (name, ""):
            module.arguments(sub)
        handlers[name] = module.run
    return parser, handlers


def _formatter() -> Any:
    from argparse import RawDescriptionHelpFormatter

    from jsonargparse import DefaultHelpFormatter

    class Formatter(RawDescriptionHelpFormatter, DefaultHelpFormatter):
        """Keeps the line breaks of descriptions, shows types and defaults of options."""

    return Formatter


def _forget_parts(argv: Sequence[str]) -> list[str]:
    """Resets a part to a mere name before it is given anew: jsonargparse 4.53 fails on mapping after mapping."""
    from pyro_vsm.config import ModelConfig

    parts = {f"--model.{f.name}" for f in fields(ModelConfig) if f.type == "Part"}
    words: list[str] = []
    for word in argv:
        name = word.partition("=")[0]
        words += [f"{name}=none", word] if name in parts else [word]
    return words


def _import_modules(names: list[str]) -> None:
    """A checkpoint may use parts from these, as the user trusts them."""
    for name in names:
        try:
            importlib.import_module(name)
        except (ImportError, ValueError, TypeError) as error:
            raise UserError(f"--allow-module {name}: cannot import it ({error}); check PYTHONPATH") from error


def _parsed(parser: ArgumentParser, argv: list[str]) -> Namespace:
    """The arguments, settings as dataclasses.

    Raises:
        UserError: settings that the parser stumbles over.
    """
    from pyro_vsm.settings import check_values, instantiated

    try:
        args = parser.parse_args(argv)
        if args.command == "train" and args.train.resume:  # the run's settings come first, those given after them
            from pyro_vsm.loading import read_config

            read_config(args.train.resume)  # says clearly what is wrong with it
            stored = str(Path(args.train.resume) / "config.yaml")
            args = parser.parse_args([argv[0], "--config", stored, *argv[1:]])
        if args.command == "train":
            from pyro_vsm.config import Config

            check_values(args.train.as_dict(), Config)
        return instantiated(parser, args)
    except (UserError, UnicodeDecodeError):
        raise
    except (ValueError, TypeError, ImportError, AttributeError) as error:
        said = " ".join(str(error).split())[:300]
        raise UserError(
            f"the settings cannot be read ({said}); a part of the model, a prior say, that is set in several places "
            "must be a mere name in the first of them, or stand in one place alone"
        ) from error


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0, 2 for bad input, 130 if interrupted."""
    try:
        argv = _forget_parts(sys.argv[1:] if argv is None else argv)
        parser, handlers = _parsers(next((word for word in argv if word in commands.NAMES), ""))
        args = _parsed(parser, argv)
        _import_modules(args[args.command].get("allow_module") or [])
        parallel.start()
        with nullcontext() if parallel.is_main() else redirect_stdout(StringIO()):  # one of several speaks
            handlers[args.command](args[args.command])
    except UserError as error:
        print(f"pyro-vsm: {error}", file=sys.stderr)
        return 2
    except UnicodeDecodeError as error:
        print(f"pyro-vsm: --config is no text in UTF-8 ({error}); give a YAML file", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("pyro-vsm: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        sys.stderr.close()
        return 0
    finally:
        parallel.finish()
    return 0


if __name__ == "__main__":
    sys.exit(main())
