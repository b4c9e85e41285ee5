"""``pyro-vsm compare``."""

from __future__ import annotations

from jsonargparse import ArgumentParser, Namespace

from pyro_vsm.commands.common import protocol_arguments

HELP = """Evaluate several trained models on the same test episodes, with paired differences to the first.

Example:
  pyro-vsm compare runs/a/pn runs/a/vsm runs/b/vsm --out comparison"""


def arguments(parser: ArgumentParser) -> None:
    """Checkpoints and the protocol."""
    parser.add_argument("checkpoints", type=str, nargs="+", help="Run folders, system folders or model files.")
    protocol_arguments(parser)


def run(args: Namespace) -> None:
    """Print and keep the table."""
    from pyro_vsm import jobs

    jobs.evaluate(args.checkpoints, args.evaluation, choice=args.data, out=args.out, device=args.device)
