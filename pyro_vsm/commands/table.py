"""``pyro-vsm table``."""

from __future__ import annotations

from typing import Any, Literal

from jsonargparse import ArgumentParser, Namespace

from pyro_vsm.commands.common import model_arguments
from pyro_vsm.errors import UserError

HELP = """Make a whole table of results: train what is missing, evaluate on the same episodes, write and draw it.

The table file names the rows (system, settings, published figure), the training seeds and the protocols. Runs are
kept in OUT/runs/ROW/seed-S: the same command goes on after an interruption, and tables with the same OUT share them.

Examples:
  pyro-vsm table experiments/glyphs/tables/systems.yaml --out tables
  pyro-vsm table experiments/mini_imagenet/tables/systems_1shot.yaml --data.root MINI_IMAGENET --out tables
  pyro-vsm table TABLE.yaml --out tables --seeds 0 --only pn vsm --evaluation.split validation
  pyro-vsm table TABLE.yaml --out trial --override training.steps=100 training.compile=false
  pyro-vsm table TABLE.yaml --out tables --devices cuda:0 cuda:1 cuda:1"""


def arguments(parser: ArgumentParser) -> None:
    """The table, and what to make of it."""
    parser.add_argument("table", type=str, help="Table file (YAML).")
    parser.add_argument("--out", type=str, default="tables", help="Folder of the tables and their runs.")
    parser.add_argument("--data.root", type=str | None, help="Folder of the data set.")
    parser.add_argument("--seeds", type=int, nargs="+", help="Training seeds, instead of the table's.")
    parser.add_argument(
        "--only", type=str, nargs="+", default=[], metavar="ROW",
        help="Train these rows and what they need; of the others, show what has been evaluated before.",
    )  # fmt: skip
    split = Literal["test", "validation"] | None
    parser.add_argument("--evaluation.split", type=split, help="Classes to evaluate on.")
    for name, what in (("episodes", "How many episodes."), ("samples", "Posterior samples."), ("seed", "Of both.")):
        parser.add_argument(f"--evaluation.{name}", type=int | None, help=what)
    parser.add_argument(
        "--override", type=str, nargs="+", default=[], metavar="NAME=VALUE", help="Settings laid over every row's."
    )
    parser.add_argument("--force", action="store_true", help="Use runs although their settings or data differ.")
    parser.add_argument(
        "--devices", type=str, nargs="+", default=[], metavar="DEVICE",
        help="Train rows and seeds side by side on these, each in a process of its own (named twice: two at a time).",
    )  # fmt: skip
    parser.add_argument(
        "--prepare", action="store_true", help="Train and evaluate only; write no table (for a part of a larger job)."
    )
    model_arguments(parser)


def run(args: Namespace) -> None:
    """Make the table; ends with status 130 if interrupted."""
    from pyro_vsm.tables import make_table

    evaluation = {k: v for k, v in vars(args.evaluation).items() if v is not None}
    given: dict[str, Any] = {
        "root": args.data.root,
        "seeds": args.seeds,
        "only": args.only,
        "evaluation": evaluation,
        "override": _settings(args.override),
        "force": args.force,
    }
    if args.devices:
        from pyro_vsm.tables.lines import settings_words
        from pyro_vsm.tables.make import make_side_by_side

        if args.device != "auto":
            raise UserError(f"--device {args.device} beside --devices; give one of the two")
        command = [args.table, "--out", args.out, *(["--force"] if args.force else [])]
        command += ["--data.root", args.data.root] if args.data.root else []
        command += settings_words(evaluation, args.override)
        command += ["--allow-module", *args.allow_module] if args.allow_module else []
        made = make_side_by_side(args.table, args.out, args.devices, command, write=not args.prepare, **given)
    else:
        made = make_table(args.table, args.out, device=args.device, write=not args.prepare, **given)
    if made is None:
        raise SystemExit(130)


def _settings(words: list[str]) -> dict[str, Any]:
    from pyro_vsm.settings import parse_yaml

    found: dict[str, Any] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not name or not equals:
            raise UserError(f"--override {word}: give settings as NAME=VALUE, training.lr=1e-3 say")
        found[name] = parse_yaml(value, f"--override {word}")
    return found
