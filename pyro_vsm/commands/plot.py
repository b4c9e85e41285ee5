"""``pyro-vsm plot``."""

from __future__ import annotations

from typing import Literal

from jsonargparse import ArgumentParser, Namespace

from pyro_vsm.commands.common import model_arguments

HELP = """Draw what a run folder holds: learning curves, objective by term, calibration, accuracies, confusions among
test classes, accuracy by shot, and an episode with its prototypes and what the memory recalls. Given the name of a
pretrained model instead, draw an episode: of your own pictures, of its data set, or of embedded ones.

Examples:
  pyro-vsm plot runs/glyphs-5way-1shot
  pyro-vsm plot runs/glyphs-5way-1shot --shots 1 2 5 10 20 --format pdf --out figures
  pyro-vsm plot glyphs-conv4-vsm-1shot
  pyro-vsm plot glyphs-conv4-vsm-1shot --pictures EXAMPLES"""


def arguments(parser: ArgumentParser) -> None:
    """A run folder or the name of a pretrained model."""
    parser.add_argument(
        "run", type=str, help="Folder of a run, or of results of evaluate, compare or bench; or a pretrained name."
    )
    parser.add_argument("--out", type=str | None, help="Folder of the figures; by default plots in the run folder.")
    parser.add_argument("--format", type=Literal["png", "pdf", "svg"], default="png", help="Of the figures.")
    parser.add_argument("--shots", type=int, nargs="+", default=[1, 2, 5], help="Of the accuracies by shot.")
    parser.add_argument("--episodes", type=int, default=200, help="Behind accuracies by shot and confusions.")
    parser.add_argument("--logs", type=bool, default=False, help="Only what needs neither the models nor the data.")
    parser.add_argument("--data.root", type=str | None, help="Folder of the data set, if it has moved.")
    parser.add_argument(
        "--pictures", type=str | None, help="Draw an episode of these pictures, a folder for each class."
    )
    model_arguments(parser)


def run(args: Namespace) -> None:
    """Draw and name the files."""
    from pathlib import Path

    from pyro_vsm import pretrained
    from pyro_vsm.figures import draw_models, draw_pretrained, draw_run

    out = Path(args.out) if args.out else None
    if pretrained.is_name(args.run) or args.pictures:
        written = draw_pretrained(
            args.run, out, args.format, pictures=args.pictures, root=args.data.root, device=args.device
        )
    else:
        written = draw_run(args.run, out, args.format)
        if not args.logs and any(Path(args.run).glob("*/model.safetensors")):
            written += draw_models(
                args.run, out, args.format, shots=args.shots, episodes=args.episodes, root=args.data.root,
                device=args.device,
            )  # fmt: skip
    for path in written:
        print(f"Wrote {path}")
