"""``pyro-vsm export``."""

from __future__ import annotations

from jsonargparse import ArgumentParser, Namespace

from pyro_vsm.commands.common import model_arguments

HELP = """Make a pretrained model of a trained one: small files and a card of what they were measured to do.

Example:
  pyro-vsm export runs/glyphs-5way-1shot/vsm glyphs-conv4-vsm-1shot --shots 1 5"""


def arguments(parser: ArgumentParser) -> None:
    """A checkpoint and a name."""
    parser.add_argument("checkpoint", type=str, help="Run folder, system folder or model file.")
    parser.add_argument("name", type=str, help="Of the pretrained model.")
    parser.add_argument("--folder", type=str | None, help="Of all weights; by default that of the package.")
    parser.add_argument("--shots", type=int, nargs="+", default=None, help="To measure at; by default as trained.")
    parser.add_argument("--data.root", type=str | None, help="Folder of the data set, if it has moved.")
    parser.add_argument("--note", type=str, default="", help="A remark for the model card.")
    parser.add_argument("--half", type=bool, default=True, help="Keep matrices in half precision.")
    model_arguments(parser)


def run(args: Namespace) -> None:
    """Write the files and the card."""
    from pathlib import Path

    from pyro_vsm import pretrained
    from pyro_vsm.exporting import export

    export(
        args.checkpoint, args.name, folder=Path(args.folder) if args.folder else pretrained.WEIGHTS, shots=args.shots,
        root=args.data.root, device=args.device, note=args.note, half=args.half,
    )  # fmt: skip
