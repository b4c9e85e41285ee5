"""The command line: ``pyro-vsm train | evaluate | compare | predict | data``."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal

from jsonargparse import ArgumentParser, Namespace

from pyro_vsm.errors import UserError

PROGRAM = """Recognise new classes of images from one or five labelled examples, with uncertainty.

Start with "pyro-vsm train": it trains Variational Semantic Memory and two baselines on an embedded data set and
compares them. "pyro-vsm COMMAND --help" explains each command."""

TRAIN = """Train systems under one recipe and compare them on the same test episodes.

Examples:
  pyro-vsm train                                           the embedded glyphs, on whatever device is here
  pyro-vsm train --data.name folder --data.root PICTURES   your own tree with one folder a class
  pyro-vsm train --config experiments/mini_imagenet/conv4_1shot.yaml --data.root MINI_IMAGENET
  pyro-vsm train --model.prior_z empirical_bayes --model.posterior_z conjugate
  pyro-vsm train --resume runs/glyphs-5way-1shot           go on after an interruption
  pyro-vsm train --print_config                            every setting, as YAML to start from"""


def _parsers() -> tuple[ArgumentParser, dict[str, Callable[[Namespace], None]]]:
    from pyro_vsm.config import Config, EvaluationConfig
    from pyro_vsm.data import DataConfig

    parser = ArgumentParser(prog="pyro-vsm", description=PROGRAM, formatter_class=_formatter())
    commands = parser.add_subcommands(dest="command", required=True)

    def command(name: str, text: str) -> ArgumentParser:
        sub = ArgumentParser(description=text, formatter_class=_formatter())
        commands.add_subcommand(name, sub, help=text.splitlines()[0])
        return sub

    sub = command("train", TRAIN)
    sub.add_argument("--config", action="config", help="YAML file with settings; options after it override.")
    sub.add_argument("--out", type=str | None, help="Run folder; by default a new one under runs/.")
    sub.add_argument("--resume", type=str | None, metavar="RUN", help="Go on with this run, with its settings.")
    sub.add_argument("--force", action="store_true", help="Resume although configuration or data differ.")
    sub.add_class_arguments(Config, None)

    sub = command(
        "evaluate",
        "Evaluate one trained model on the test episodes.\n\n"
        "Example:\n  pyro-vsm evaluate runs/glyphs-5way-1shot/vsm --evaluation.shot 5",
    )
    sub.add_argument("checkpoint", type=str, help="Run folder, system folder or model file.")
    _protocol(sub, EvaluationConfig, DataConfig)

    sub = command(
        "compare",
        "Evaluate several trained models on the same test episodes, with paired differences to the first.\n\n"
        "Example:\n  pyro-vsm compare runs/a/pn runs/a/vsm runs/b/vsm --out comparison",
    )
    sub.add_argument("checkpoints", type=str, nargs="+", help="Run folders, system folders or model files.")
    _protocol(sub, EvaluationConfig, DataConfig)

    sub = command(
        "predict",
        "Classify images from a few labelled examples.\n\n"
        "Example:\n  pyro-vsm predict --checkpoint runs/glyphs-5way-1shot --support examples --query new_pictures",
    )
    sub.add_argument("--checkpoint", type=str, required=True, help="Run folder, system folder or model file.")
    sub.add_argument("--support", type=str, required=True, help="Folder with one sub-folder of examples a class.")
    sub.add_argument("--query", type=str, nargs="+", required=True, help="Folders or image files to classify.")
    sub.add_argument("--format", type=Literal["table", "csv", "json"], default="table", help="Of the output.")
    sub.add_argument("--out", type=str | None, help="Write there instead of printing.")
    sub.add_argument("--samples", type=int, default=200, help="Posterior samples to average over.")
    sub.add_argument("--seed", type=int, default=0, help="Of the posterior samples.")
    sub.add_argument("--device", type=str, default="auto", help="auto, cpu or cuda.")
    sub.add_argument(
        "--allow-module", type=str, nargs="+", default=[], help="Modules of yours that define parts of the model."
    )
    sub.add_argument("--bad_files", type=Literal["stop", "skip"], default="stop", help="About unreadable images.")

    sub = command(
        "data",
        "Load a data set, print what it holds and draw a contact sheet of each split.\n\n"
        "Example:\n  pyro-vsm data --data.name glyphs --out sheets",
    )
    sub.add_class_arguments(DataConfig, "data")
    sub.add_argument("--out", type=str | None, help="Folder for the contact sheets; none are drawn without it.")
    handlers: dict[str, Callable[[Namespace], None]] = {
        "train": _train,
        "evaluate": _compare,
        "compare": _compare,
        "predict": _predict,
        "data": _data,
    }
    return parser, handlers


def _formatter() -> Any:
    from argparse import RawDescriptionHelpFormatter

    from jsonargparse import DefaultHelpFormatter

    class Formatter(RawDescriptionHelpFormatter, DefaultHelpFormatter):
        """Keeps the line breaks of descriptions, shows types and defaults of options."""

    return Formatter


def _protocol(sub: ArgumentParser, evaluation: type, data: type) -> None:
    sub.add_class_arguments(evaluation, "evaluation")
    sub.add_argument("--data.root", type=str | None, help="Folder of the data set, if it has moved.")
    sub.add_argument("--out", type=str, default="evaluation", help="Folder for tables and per-episode results.")
    sub.add_argument("--device", type=str, default="auto", help="auto, cpu or cuda.")
    sub.add_argument(
        "--allow-module", type=str, nargs="+", default=[], help="Modules of yours that define parts of the model."
    )


def _train(args: Namespace) -> None:
    from pyro_vsm import jobs
    from pyro_vsm.config import Config

    if args.resume and args.out:
        raise UserError("--out has no place beside --resume, which goes on in the folder of the run; leave it out")
    config = Config(**{k: args[k] for k in Config.__dataclass_fields__})
    out = args.resume or args.out
    if jobs.train(config, out, resume=bool(args.resume), force=args.force) is None:
        raise SystemExit(130)


def _compare(args: Namespace) -> None:
    from pyro_vsm import jobs

    paths = [args.checkpoint] if "checkpoint" in args else args.checkpoints
    jobs.evaluate(paths, args.evaluation, root=args.data.root, out=args.out, device=args.device)


def _predict(args: Namespace) -> None:
    from pyro_vsm import prediction

    prediction.predict_files(
        args.checkpoint, args.support, args.query, form=args.format, out=args.out, samples=args.samples,
        seed=args.seed, device=args.device, bad_files=args.bad_files,
    )  # fmt: skip


def _data(args: Namespace) -> None:
    from pyro_vsm.data import load
    from pyro_vsm.data.contact_sheet import contact_sheet

    data = load(args.data)
    if args.out:
        for name in ("train", "validation", "test"):
            path = Path(args.out) / f"{data.name}-{name}.png"
            contact_sheet(getattr(data, name), path)
            print(f"Wrote {path}")


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


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0, 2 for bad input, 130 if interrupted."""
    try:
        parser, handlers = _parsers()
        argv = _forget_parts(sys.argv[1:] if argv is None else argv)
        args = parser.parse_args(argv)
        if args.command == "train" and args.train.resume:  # the run's settings come first, those given after them
            from pyro_vsm.jobs import read_config

            read_config(args.train.resume)  # says clearly what is wrong with it
            stored = str(Path(args.train.resume) / "config.yaml")
            args = parser.parse_args([argv[0], "--config", stored, *argv[1:]])
        args = parser.instantiate(args) if hasattr(parser, "instantiate") else parser.instantiate_classes(args)
        _import_modules(args[args.command].get("allow_module") or [])
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
    return 0


if __name__ == "__main__":
    sys.exit(main())
