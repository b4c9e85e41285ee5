"""``pyro-vsm predict``."""

from __future__ import annotations

from typing import Literal

from jsonargparse import ArgumentParser, Namespace

from pyro_vsm.commands.common import model_arguments

HELP = """Classify images from a few labelled examples.

EXAMPLES holds one sub-folder a class, with one or more pictures each; classes may differ in their number. Without
--checkpoint, the pretrained model is taken that tells the examples apart best.

Examples:
  pyro-vsm predict --support EXAMPLES --query NEW_PICTURES --format html --out predictions.html
  pyro-vsm predict --support EXAMPLES --query NEW_PICTURES --unknown 0.5 --format csv
  pyro-vsm predict --checkpoint runs/glyphs-5way-1shot --support EXAMPLES --query a.png b.jpg"""


def arguments(parser: ArgumentParser) -> None:
    """A checkpoint, examples and pictures to classify."""
    parser.add_argument(
        "--checkpoint",
        type=str,
        default="auto",
        help="Run folder, system folder, model file, pretrained name, or auto.",
    )
    parser.add_argument("--support", type=str, required=True, help="Folder with one sub-folder of examples a class.")
    parser.add_argument("--query", type=str, nargs="+", required=True, help="Folders or image files to classify.")
    parser.add_argument(
        "--format", type=Literal["table", "csv", "json", "html"], default="table", help="Of the output."
    )
    parser.add_argument("--out", type=str | None, help="Write there instead of printing.")
    parser.add_argument(
        "--unknown", type=float, default=0.0, metavar="P",
        help="Call an image none of these if its best class has a smaller probability.",
    )  # fmt: skip
    parser.add_argument("--samples", type=int, default=200, help="Posterior samples to average over.")
    parser.add_argument("--seed", type=int, default=0, help="Of the posterior samples.")
    parser.add_argument("--bad_files", type=Literal["stop", "skip"], default="stop", help="About unreadable images.")
    model_arguments(parser)


def run(args: Namespace) -> None:
    """Print or write the predictions."""
    from pyro_vsm import prediction

    prediction.predict_files(
        args.checkpoint, args.support, args.query, form=args.format, out=args.out, samples=args.samples,
        seed=args.seed, device=args.device, bad_files=args.bad_files, unknown=args.unknown,
    )  # fmt: skip
