"""``pyro-vsm evaluate``."""

from __future__ import annotations

from jsonargparse import ArgumentParser, Namespace

from pyro_vsm.commands.common import protocol_arguments

HELP = """Evaluate one trained model on the test episodes of its data set, or of another.

Examples:
  pyro-vsm evaluate runs/glyphs-5way-1shot/vsm --evaluation.shot 5
  pyro-vsm evaluate runs/glyphs-5way-1shot/vsm --data.name folder --data.root PICTURES --data.all_classes true"""


def arguments(parser: ArgumentParser) -> None:
    """A checkpoint and the protocol."""
    parser.add_argument("checkpoint", type=str, help="Run folder, system folder or model file.")
    protocol_arguments(parser)


def run(args: Namespace) -> None:
    """Print and keep the table."""
    from pyro_vsm import jobs

    jobs.evaluate([args.checkpoint], args.evaluation, choice=args.data, out=args.out, device=args.device)
