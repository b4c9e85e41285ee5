"""``pyro-vsm data``."""

from __future__ import annotations

from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

HELP = """Load a data set, print what it holds and draw a contact sheet of each split.

Example:
  pyro-vsm data --data.name glyphs --out sheets"""


def arguments(parser: ArgumentParser) -> None:
    """The data set."""
    from pyro_vsm.data import DataConfig

    parser.add_class_arguments(DataConfig, "data")
    parser.add_argument("--out", type=str | None, help="Folder for the contact sheets; none are drawn without it.")


def run(args: Namespace) -> None:
    """Print the data set's classes, images and identity."""
    from pyro_vsm.data import load
    from pyro_vsm.data.contact_sheet import contact_sheet

    data = load(args.data)
    if args.out:
        for name in ("train", "validation", "test"):
            path = Path(args.out) / f"{data.name}-{name}.png"
            contact_sheet(getattr(data, name), path)
            print(f"Wrote {path}")
